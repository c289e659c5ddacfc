"""The running average against its definition, and what the student is while it is swapped in and after."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from kdscale.engine.checkpoint.files import write_tensors
from kdscale.engine.ema import Ema
from kdscale.engine.meter import Meter
from kdscale.engine.parallel import Session, connect, wrap
from kdscale.methods import Supervised
from kdscale.recipe import Ema as EmaValue
from tests.engine import stages


def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def averaged(net: nn.Module, value: EmaValue) -> Ema:
    groups = [{"names": [n for n, _ in net.named_parameters()], "params": list(net.parameters())}]
    made = wrap(connect(), net, groups, lambda groups: torch.optim.SGD(groups[0]["params"], 0.1))
    return Ema(dict(net.named_parameters()), value, made)


def move(net: nn.Module, generator: torch.Generator) -> None:
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))


@given(st.floats(0.5, 0.9999), st.integers(0, 12))
def test_it_is_the_exponentially_weighted_mean(decay: float, steps: int) -> None:
    net, generator = module(), torch.Generator().manual_seed(1)
    ema = averaged(net, EmaValue(decay))
    expected = {name: p.detach().double().clone() for name, p in net.named_parameters()}
    for _ in range(steps):
        move(net, generator)
        ema.update()
        for name, parameter in net.named_parameters():
            expected[name] = decay * expected[name] + (1 - decay) * parameter.detach().double()
    for name, average in ema.average.items():
        torch.testing.assert_close(average.double(), expected[name], rtol=1e-5, atol=1e-5)


def test_the_warm_up_grows_to_the_decay_and_counts_its_own_updates() -> None:
    net = module()
    ema = averaged(net, EmaValue(0.9, warmup=True))
    seen = []
    for _ in range(120):
        ema.update()
        seen.append(ema.decay())
    assert seen[0] == pytest.approx(2 / 11)
    assert seen == sorted(seen)
    assert seen[-1] == 0.9
    assert averaged(net, EmaValue(0.9)).decay() == 0.9


def test_swapped_it_answers_with_the_average_and_comes_back_to_the_bit() -> None:
    net = module().eval()
    ema, generator = averaged(net, EmaValue(0.9)), torch.Generator().manual_seed(2)
    places = [p.data_ptr() for p in net.parameters()]
    for _ in range(3):
        move(net, generator)
        ema.update()
    raw = {name: t.clone() for name, t in net.state_dict().items()}

    def evaluate() -> None:
        with ema.swapped():
            for name, parameter in net.named_parameters():
                assert torch.equal(parameter, ema.average[name])
            raise RuntimeError("in the midst of an evaluation")

    with pytest.raises(RuntimeError, match="in the midst"):
        evaluate()
    assert all(torch.equal(t, raw[name]) for name, t in net.state_dict().items())
    assert [p.data_ptr() for p in net.parameters()] == places, "an optimizer would hold other tensors than the module"


def test_buffers_are_not_averaged_and_the_average_has_no_gradient() -> None:
    ema = averaged(module(), EmaValue(0.9))
    assert set(ema.average) == {name for name, _ in module().named_parameters()}
    assert not any(t.requires_grad for t in ema.average.values())


def test_the_average_of_a_half_precision_module_is_float32() -> None:
    """Steps of a hundredth of a unit in the last place of bfloat16 would else be lost, all of them."""
    ema = averaged(module().bfloat16(), EmaValue(0.999))
    assert {t.dtype for t in ema.average.values()} == {torch.float32}


def test_saved_and_loaded_it_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    net, generator = module(), torch.Generator().manual_seed(3)
    ema = averaged(net, EmaValue(0.99, warmup=True))
    for _ in range(4):
        move(net, generator)
        ema.update()
    write_tensors(tmp_path / "ema.safetensors", ema.average)
    other = module()
    other.load_state_dict(net.state_dict())
    fresh = averaged(other, EmaValue(0.99, warmup=True))
    fresh.load(load_file(tmp_path / "ema.safetensors"), ema.updates)
    move(net, torch.Generator().manual_seed(4))
    other.load_state_dict(net.state_dict())
    ema.update()
    fresh.update()
    assert fresh.updates == ema.updates == 5
    assert all(torch.equal(t, ema.average[name]) for name, t in fresh.average.items())


def test_a_phases_average_begins_with_the_weights_before_its_first_step(data: Path, session: Session) -> None:
    (stage,) = stages.stages(stages.recipe_of(Supervised(), "token", data), session)
    before = {name: p.detach().clone() for name, p in stage.distiller.student.named_parameters()}
    stages.run(stage, Meter(session), 0, 1)
    assert stage.ema is not None
    assert stage.ema.updates == 1
    moved = dict(stage.distiller.student.named_parameters())
    for name, average in stage.ema.average.items():
        expected = before[name].lerp(moved[name].detach(), 1 - stage.ema.decay())
        torch.testing.assert_close(average, expected, rtol=1e-6, atol=1e-8)
    assert any(not torch.equal(average, moved[name]) for name, average in stage.ema.average.items())
    stage.wrapped.release()
