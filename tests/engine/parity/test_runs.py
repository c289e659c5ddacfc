"""What is compared with what, and how far apart two runs are: on made-up files of runs."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from kdscale.engine.parity.likeness import Tolerance, compare, loss_apart
from kdscale.engine.parity.runs import Parity, Row, told_of
from kdscale.engine.parity.shortened import shortened, terms
from kdscale.methods import KD, Crd, Shake
from kdscale.recipe import AdamW, Constant, Cosine, Ema, FromPhase, Machine, Model, MultiStep, Phase, Recipe, Timm, to_json

from .. import small

FP32, BETWEEN = Tolerance.of("fp32", equal=False), Tolerance.of("fp32", equal=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.shards(tmp_path_factory.mktemp("data"))


def made(folder: Path, losses: dict[str, list[float | None]], weights: dict[str, Tensor]) -> Path:
    """A run's folder: losses by name of each step of its only phase, and what the phase left."""
    (folder / "phases" / "01-student").mkdir(parents=True)
    save_file(weights, folder / "phases" / "01-student" / "end.safetensors")
    lines = [{"event": "evaluation", "phase": "student", "step": 0, "loss": 9.0}]
    for step, values in enumerate(zip(*losses.values(), strict=True), 1):
        total = None if None in values else sum(filter(None, values))
        lines.append(
            {
                "event": "train",
                "phase": "student",
                "step": step,
                "loss": total,
                "losses": dict(zip(losses, values, strict=True)),
            }
        )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


WEIGHTS = {"student.a": torch.full((100,), 2.0), "student.n.running_mean": torch.ones(3), "ema/body.a": torch.ones(4)}


def test_the_largest_differences_are_found_with_their_places(tmp_path: Path) -> None:
    one = made(tmp_path / "a", {"ce": [100.0, 1.0], "kd": [0.5, 0.5]}, WEIGHTS)
    other = made(
        tmp_path / "b", {"ce": [100.001, 1.0], "kd": [0.5, 0.5001]}, WEIGHTS | {"student.a": torch.full((100,), 2.004)}
    )
    found = compare(other, one, BETWEEN)
    assert found.step == 2
    assert found.loss == pytest.approx(1e-4)
    assert found.weight == pytest.approx(4e-3, rel=1e-3)
    assert found.weight_name == "01-student/student.a"
    assert found.part == pytest.approx(2e-3, rel=1e-3)
    assert found.part_name == "01-student/student"
    assert found.wrong == (
        "'ce' by 1.0e-05 in step 1 of phase student",
        "weights of 01-student/student by 2.0e-03 of their norm",
    )
    assert compare(other, one, Tolerance.of("bf16", equal=False)).wrong == ()


def test_what_is_allowed_of_a_loss_grows_with_the_steps(tmp_path: Path) -> None:
    assert [FP32.at(step) for step in (1, 3, 11, 1000)] == pytest.approx([2e-5, 4e-5, 6.4e-4, 6.4e-4])
    assert Tolerance.of("fp32", equal=False, alike=False).at(1) > FP32.at(1) > BETWEEN.at(1)
    steps = 20
    one = made(tmp_path / "a", {"ce": [1.0] * steps}, WEIGHTS)
    late = made(tmp_path / "b", {"ce": [1.0] * (steps - 1) + [1.00005]}, WEIGHTS)
    early = made(tmp_path / "c", {"ce": [1.00005] + [1.0] * (steps - 1)}, WEIGHTS)
    assert compare(late, one, FP32).wrong == ()
    assert compare(early, one, FP32).wrong == ("'ce' by 5.0e-05 in step 1 of phase student",)


def test_equal_runs_are_alike_and_one_that_stopped_early_is_not(tmp_path: Path) -> None:
    one = made(tmp_path / "a", {"ce": [2.0, 1.0]}, WEIGHTS)
    same = compare(made(tmp_path / "b", {"ce": [2.0, 1.0]}, WEIGHTS), one, BETWEEN)
    assert (same.wrong, same.loss, same.step, same.weight) == ((), 0.0, None, 0.0)
    short = compare(made(tmp_path / "c", {"ce": [2.0]}, WEIGHTS), one, FP32)
    assert math.isinf(short.loss)
    assert short.step == 2
    assert short.wrong == ("'ce' by inf in step 2 of phase student",)
    lost = {name: tensor for name, tensor in WEIGHTS.items() if not name.startswith("ema/")}
    assert "ema/body" in compare(made(tmp_path / "d", {"ce": [2.0, 1.0]}, lost), one, FP32).wrong[0]
    poisoned = WEIGHTS | {"student.a": torch.full((100,), math.nan)}
    assert math.isinf(compare(made(tmp_path / "e", {"ce": [2.0, 1.0]}, poisoned), one, FP32).part)
    assert math.isinf(loss_apart(None, 1.0))


def test_statistics_of_batch_norm_can_be_left_out(tmp_path: Path) -> None:
    one = made(tmp_path / "a", {"ce": [2.0]}, WEIGHTS)
    other = made(tmp_path / "b", {"ce": [2.0]}, WEIGHTS | {"student.n.running_mean": torch.zeros(3)})
    assert "01-student/student, statistics" in compare(other, one, FP32).wrong[0]
    assert compare(other, one, BETWEEN, statistics=False).wrong == ()


def test_a_recipe_is_cut_and_its_rates_are_drawn_together(data: Path) -> None:
    long = small.recipe(data, ema=Ema(0.9999), machine=Machine(log_every=50, trackers=("tensorboard",)))
    steps = replace(long.phases[0], steps=None, epochs=40, schedule=Cosine(warmup=10, total=40))
    cut = shortened(replace(long, phases=(steps,)), 20)
    assert cut.ema is not None
    assert (cut.phases[0].steps, cut.ema.decay, cut.machine.log_every, cut.machine.trackers) == (20, 0.9, 1, ())
    assert cut.phases[0].schedule == Cosine(warmup=1, total=4)  # 20 steps of 24 images are 4 epochs of 120
    stages = replace(steps, schedule=MultiStep(milestones=(20, 30)))
    assert shortened(replace(long, phases=(stages,)), 20).phases[0].schedule == MultiStep(milestones=(2, 3))
    short = shortened(small.recipe(data), 50).phases[0]
    assert (short.steps, short.schedule) == (22, small.recipe(data).phases[0].schedule)  # it is not made longer
    assert long.phases[0].optimizer.eps < cut.phases[0].optimizer.eps == 1e-4  # type: ignore[union-attr]
    two = shortened(small.two_phases(data), 5)
    assert [phase.steps for phase in two.phases] == [5, 5]
    assert two.phases[1].networks["teacher"] == FromPhase("teacher", floor=0)


def with_method(data: Path, method: object, **changes: object) -> Recipe:
    networks = {"student": Model("resnet8"), "teacher": Model("cnn6", floor=0)}
    phase = Phase(method, steps=4, optimizer=AdamW(), schedule=Constant())  # type: ignore[arg-type]
    return small.recipe(data, networks=networks, phases=(phase,), **changes)


def cut(recipe: Recipe) -> Recipe:
    return shortened(recipe, 4)


def test_one_process_meets_the_micro_batches_of_all_ranks(data: Path) -> None:
    kd = cut(with_method(data, KD()))
    assert (terms(kd, 2).accumulate, terms(kd, 2).alone, terms(kd, 2).batch_norm) == (2, 4, "local")
    assert (terms(kd, 1).accumulate, terms(kd, 1).alone) == (2, 2)
    for recipe in (
        cut(with_method(data, Crd(negatives=16))),
        cut(with_method(data, KD(), batch_norm="sync")),
        cut(small.two_phases(data)),
    ):
        found = terms(recipe, 2)
        assert (found.accumulate, found.alone, found.batch_norm) == (1, 1, "sync")
        assert "one micro-batch" in found.notes[0]
    student = Model("deit_tiny_distilled_patch16_224", args={**small.TINY, "patch_drop_rate": 0.5})
    found = terms(cut(small.recipe(data, networks={**small.recipe(data).networks, "student": student})), 2)
    assert (found.accumulate, found.alone) == (2, None)
    assert "student draws by" in found.notes[0]


def test_what_a_back_end_cannot_take_is_refused_in_a_line_before_it_starts(data: Path, tmp_path: Path) -> None:
    recipe = small.recipe(data)
    lamb = replace(recipe, phases=(replace(recipe.phases[0], optimizer=Timm("lamb")),))
    parity = parity_of(lamb, tmp_path / "a")
    assert [row.name for row in parity.rows] == ["one process", "ddp", "zero1", "zero2", "zero3", "fsdp2"]
    for row in parity.rows:
        state, why = parity._refused(row)
        assert state == ("" if row.parallel == "ddp" else "refused")
        assert row.parallel == "ddp" or f"machine.parallel={row.parallel}" in why
    shared = replace(recipe, phases=(replace(recipe.phases[0], method=Shake(own_bn=True)),))
    parity = parity_of(shared, tmp_path / "b")
    refused = [row.name for row in parity.rows if parity._refused(row)[0]]
    assert refused == ["zero3", "fsdp2"]


def parity_of(recipe: Recipe, folder: Path) -> Parity:
    folder.mkdir()
    small.write(folder / "recipe.json", recipe)
    assert to_json(recipe)
    return Parity(str(folder / "recipe.json"), [], recipe, folder / "out", ranks=2, steps=4, say=lambda text: None)


def test_a_run_is_told_by_its_verdict_or_else_by_its_log(tmp_path: Path) -> None:
    row = Row("zero2", "zero2", 2, 1, tmp_path / "zero2")
    row.out.mkdir()
    row.log.write_text("noise\n[rank0]:kdscale: WORLD_SIZE is 2 but RANK is not set\nmore\n")
    assert told_of(row, 1) == ("failed", "WORLD_SIZE is 2 but RANK is not set")
    row.log.write_text("Segmentation fault\n")
    assert told_of(row, -11) == ("failed", "it ended with -11")
    row.log.write_text("kdscale: no field 'epoch': did you mean 'epochs'?\n")
    assert told_of(row, 64) == ("refused", "no field 'epoch': did you mean 'epochs'?")
    (row.out / "verdict.json").write_text(json.dumps({"code": 64, "reason": "cannot be\nsharded"}))
    assert told_of(row, 1) == ("refused", "cannot be sharded")
    (row.out / "verdict.json").write_text(json.dumps({"code": 70, "reason": "not finite"}))
    assert told_of(row, 1) == ("failed", "not finite")
