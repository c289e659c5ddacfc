"""Who is in which group, with what rate and decay; and that every optimizer continues from a save to the same bits."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn

from kdscale.engine.checkpoint.files import write_tensors
from kdscale.engine.optim import build_optimizer, parameter_groups, set_rates
from kdscale.engine.parallel import Session, Wrapped, connect, wrap
from kdscale.errors import RecipeError
from kdscale.methods import Distiller, Shake
from kdscale.recipe import SGD, AdamW, Part, Timm
from tests.methods.small import MODELS, built, drawn_batch, taught, total

OPTIMIZERS = [SGD(0.05), SGD(0.05, momentum=0.0), AdamW(1e-3), Timm("lamb"), Timm("lion"), Timm("nadamw"), Timm("adafactor")]
every_optimizer = pytest.mark.parametrize("value", OPTIMIZERS, ids=lambda v: f"{v.kind}-{getattr(v, 'name', v.lr)}")


def distiller(kind: str = "cnn", seed: int = 0) -> Distiller:
    return built(Shake(), kind, seed)[0]


def by_name(groups: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: group for group in groups for name in group["names"]}


@pytest.mark.parametrize("kind", ["cnn", "token"])
@pytest.mark.parametrize("value", [SGD(), AdamW(), Timm("lamb")], ids=["sgd", "adamw", "timm"])
def test_every_trained_parameter_is_in_one_group_under_its_own_name(kind: str, value: Any) -> None:
    module = distiller(kind)
    frozen = next(module.student.body.parameters()).requires_grad_(False)
    groups = parameter_groups(module, module.parts(), value)
    named = dict(module.named_parameters())
    pairs = [(name, p) for group in groups for name, p in zip(group["names"], group["params"], strict=True)]
    assert len(pairs) == len({name for name, _ in pairs})
    assert all(named[name] is parameter for name, parameter in pairs)
    assert {name for name, _ in pairs} == {name for name, p in named.items() if p.requires_grad}
    assert not any(p is frozen for _, p in pairs)


def test_decay_is_left_out_where_timm_leaves_it_out() -> None:
    """timm's own grouping of the plain architecture is the oracle, by names."""
    from timm.optim import param_groups_weight_decay

    model = MODELS["token"]
    plain = timm.create_model(model.name, num_classes=10, img_size=32, **model.args)
    kept, decayed = param_groups_weight_decay(plain, 0.05, no_weight_decay_list=plain.no_weight_decay())
    names = {id(p): name for name, p in plain.named_parameters()}
    module = distiller("token")
    mine = by_name(parameter_groups(module, module.parts(), AdamW(decay=0.05)))
    for group in (kept, decayed):
        for parameter in group["params"]:
            name = f"student.body.{names[id(parameter)]}"
            assert mine[name]["weight_decay"] == group["weight_decay"], name


def test_decay_all_has_no_exemption() -> None:
    module = distiller()
    assert {g["weight_decay"] for g in parameter_groups(module, module.parts(), SGD(decay=5e-4))} == {5e-4}
    told = by_name(parameter_groups(module, module.parts(), SGD(decay=5e-4, decay_all=False)))
    for name, parameter in module.named_parameters():
        assert told[name]["weight_decay"] == (0.0 if parameter.ndim <= 1 else 5e-4), name


def test_a_part_has_its_own_rate_and_decay() -> None:
    module = distiller()
    value = AdamW(1e-2, decay=0.05, parts={"shadow": Part(lr=10.0, decay=0.2)})
    groups = parameter_groups(module, module.parts(), value)
    told, optimizer = by_name(groups), build_optimizer(groups, value)
    for name, group in told.items():
        own = name.startswith("shadow.")
        assert group["part"] == ("shadow" if own else "student")
        assert group["scale"] == (10.0 if own else 1.0)
        assert group["weight_decay"] in ((0.2, 0.0) if own else (0.05, 0.0))
    set_rates(optimizer.param_groups, groups, 0.003)
    rates = {g["part"]: made["lr"] for g, made in zip(groups, optimizer.param_groups, strict=True)}
    assert rates == pytest.approx({"shadow": 0.03, "student": 0.003})
    assert [g["weight_decay"] for g in groups] == [g["weight_decay"] for g in optimizer.param_groups]


def test_a_part_that_does_not_exist_is_named_with_those_that_do() -> None:
    module = distiller()
    with pytest.raises(RecipeError, match=r"optimizer\.parts\.shadw: .*no part 'shadw'.*shadow"):
        parameter_groups(module, module.parts(), SGD(parts={"shadw": Part(lr=2.0)}))


def test_a_parameter_of_two_parts_is_stepped_once() -> None:
    class Shares(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(2, 2)
            self.two = nn.Sequential(self.one, nn.Linear(2, 2))

    module = Shares()
    groups = parameter_groups(module, dict(module.named_children()), SGD())
    names = [name for group in groups for name in group["names"]]
    assert sorted(names) == ["one.bias", "one.weight", "two.1.bias", "two.1.weight"]
    build_optimizer(groups, SGD())


def test_an_unknown_optimizer_is_told_with_its_neighbours() -> None:
    module = distiller()
    groups = parameter_groups(module, module.parts(), Timm("lamp"))
    with pytest.raises(RecipeError, match=r"optimizer 'lamp': .*lamb"):
        build_optimizer(groups, Timm("lamp"))
    with pytest.raises(RecipeError, match="optimizer 'lamb'"):
        build_optimizer(groups, Timm("lamb", args={"no_such_argument": 1}))


@pytest.fixture(scope="module")
def session() -> Session:
    return connect()


def wrapped(session: Session, value: Any, seed: int) -> tuple[Wrapped, Any]:
    module, context = built(Shake(), "cnn", seed)
    groups = parameter_groups(module, module.parts(), value)
    made = wrap(session, module, groups, partial(build_optimizer, value=value))
    set_rates(made.param_groups, groups, value.lr)
    return made, context


def step(made: Wrapped, context: Any, number: int) -> float:
    batch = drawn_batch(number)
    losses = made.accumulate(batch, taught(Shake(), context, batch), 1.0, last=True)
    made.update(None)
    return float(total(losses).detach())


@every_optimizer
def test_its_state_goes_through_files_by_name_and_the_next_steps_are_the_same(
    session: Session, value: Any, tmp_path: Path
) -> None:
    whole, context = wrapped(session, value, 0)
    for number in range(3):
        step(whole, context, number)
    tensors, numbers = whole.optimizer_state()
    assert all(label.partition("/")[2] in dict(whole.module.named_parameters()) for label in tensors)
    write_tensors(tmp_path / "state.safetensors", tensors)
    again, there = wrapped(session, value, 5)
    again.module.load_state_dict(whole.module.state_dict())
    again.load_optimizer_state(load_file(tmp_path / "state.safetensors"), json.loads(json.dumps(numbers)))
    for number in range(3, 6):
        assert step(again, there, number) == step(whole, context, number)
    for (name, mine), theirs in zip(again.module.named_parameters(), whole.module.parameters(), strict=True):
        assert torch.equal(mine, theirs), name
