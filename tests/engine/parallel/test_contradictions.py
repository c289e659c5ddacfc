"""What a launcher says and the recipe does not: each is one error that names both, before anything is built."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdscale.engine.parallel import contradictions, refuse_unfit
from kdscale.engine.parallel.zero import configuration
from kdscale.errors import RunError
from kdscale.methods import KD, Shake
from kdscale.recipe import SGD, AdamW, Machine, Phase, Timm, override
from tests.engine import small

CONTRADICTIONS = [
    ({"ACCELERATE_USE_DEEPSPEED": "true"}, Machine(), "machine.parallel=ddp"),
    ({"ACCELERATE_USE_CPU": "true"}, Machine(parallel="zero1"), "machine.parallel=zero1"),
    ({"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, Machine(parallel="zero2"), "machine.parallel=zero2"),
    ({"ACCELERATE_DEEPSPEED_CONFIG_FILE": "ds.json"}, Machine(parallel="zero2"), "builds DeepSpeed's configuration itself"),
    ({"ACCELERATE_USE_FSDP": "true"}, Machine(parallel="zero1"), "machine.parallel=zero1"),
    ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, Machine(parallel="fsdp2"), "machine.parallel=fsdp2"),
    ({"ACCELERATE_MIXED_PRECISION": "bf16"}, Machine(), "precision=fp32"),
    ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, Machine(accumulate=2), "machine.accumulate=2"),
    ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, Machine(), "machine.compile=false"),
    ({"ACCELERATE_DISPATCH_BATCHES": "true"}, Machine(), "stream of samples"),
    ({"ACCELERATE_TORCH_DEVICE": "cuda:0"}, Machine(), "a device for each rank"),
]
AGREEING = [
    ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}, Machine(parallel="zero2")),
    ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, Machine(parallel="fsdp2")),
    ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, Machine(accumulate=4)),
    ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, Machine(compile=True)),
    ({"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_DYNAMO_BACKEND": "NO", "ACCELERATE_USE_CPU": "true"}, Machine()),
    ({}, Machine(parallel="zero3")),
]


@pytest.mark.parametrize(("variables", "machine", "ours"), CONTRADICTIONS, ids=lambda v: str(v)[:60])
def test_a_contradiction_names_both(variables: dict[str, str], machine: Machine, ours: str) -> None:
    with pytest.raises(RunError) as told:
        contradictions.refuse(variables, machine, "fp32")
    name, given = list(variables.items())[-1]
    assert f"{name}={given}" in str(told.value)
    assert ours in str(told.value)


@pytest.mark.parametrize(("variables", "machine"), AGREEING, ids=lambda v: str(v)[:60])
def test_what_agrees_or_is_switched_off_is_let_be(variables: dict[str, str], machine: Machine) -> None:
    contradictions.refuse(variables, machine, "fp32")


def test_the_command_line_says_it_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = small.write(tmp_path / "r.json", override(small.recipe(tmp_path), ["machine.parallel=fsdp2"]))
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    done = small.kdscale("train", recipe, "--out", tmp_path / "out", expect=64)
    assert done.stderr.startswith(
        "kdscale: the launcher says ACCELERATE_USE_DEEPSPEED=true and the recipe machine.parallel=fsdp2:"
    )
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("parallel", ["zero1", "zero2", "zero3", "fsdp2"])
def test_an_optimizer_that_reads_whole_tensors_is_refused_where_they_are_cut(parallel: str) -> None:
    phase = Phase(KD(), epochs=1, name="kd", optimizer=Timm("lamb"))
    with pytest.raises(RunError, match=f"machine.parallel={parallel} .*phase 'kd' has optimizer 'timm'.*sgd or adamw"):
        refuse_unfit(parallel, phase, phase.method.needs())
    refuse_unfit("ddp", phase, phase.method.needs())
    refuse_unfit(parallel, Phase(KD(), epochs=1, optimizer=SGD()), KD().needs())


@pytest.mark.parametrize(("parallel", "fits"), [("ddp", 1), ("zero1", 1), ("zero2", 1), ("zero3", 0), ("fsdp2", 0)])
def test_networks_that_share_weights_are_not_sharded(parallel: str, fits: int) -> None:
    phase = Phase(Shake(own_bn=True), epochs=1, name="p", optimizer=AdamW())
    if fits:
        refuse_unfit(parallel, phase, phase.method.needs())
    else:
        with pytest.raises(RunError, match="cannot shard two networks that share weights, as method 'shake' of phase 'p'"):
            refuse_unfit(parallel, phase, phase.method.needs())


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_deepspeeds_configuration_leaves_nothing_to_be_filled_in(stage: int) -> None:
    told = configuration(stage, None, 8, 4, 1000, cuda=False)
    assert "auto" not in str(told)
    assert told["gradient_clipping"] == 0.0, "without the key Accelerate puts in 1.0"
    assert (told["train_batch_size"], told["gradient_accumulation_steps"]) == (32, 1)
    assert configuration(stage, 0.5, 8, 4, 1000, cuda=True)["gradient_clipping"] == 0.5


def test_restarts_by_torchrun_are_refused_where_they_would_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = small.write(tmp_path / "r.json", small.recipe(tmp_path))
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "2")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    told = small.kdscale("train", recipe, "--out", tmp_path / "out", expect=64).stderr
    assert "torchrun was asked for 2 restarts" in told
    assert "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in told
