"""What is wrong with a network before it is used, and who draws random numbers for himself."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdscale.networks import default_floor, foreign_noise, freeze, preflight, thaw
from tests.networks.making import build, info


@pytest.mark.parametrize(("classes", "floor"), [(10, 0.28), (100, 0.208), (1000, 0.2008), (2, 0.6)])
def test_floor(classes: int, floor: float) -> None:
    assert default_floor(classes) == pytest.approx(floor)


def test_a_sound_network_has_no_problem() -> None:
    assert preflight(build("resnet8"), info(10)) == []


def test_problems_are_named() -> None:
    network = build("resnet8")
    with torch.no_grad():
        network.body.fc.bias[3] = float("inf")
    problems = preflight(network, info(100))
    assert len(problems) == 2
    assert "10 classes and the data have 100" in problems[0]
    assert "not finite (fc.bias" in problems[1]


def test_noise_from_keys_is_not_foreign() -> None:
    network = build("resnet18", drop_path=0.2, drop=0.2)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert foreign_noise(network) == []
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_noise_from_a_generator_is_told() -> None:
    assert foreign_noise(build("resnet18", args={"drop_block_rate": 0.2})) != []
    assert foreign_noise(build("resnet18", trained=False)) == []


def test_freezing_and_thawing() -> None:
    part = freeze(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    assert not any(p.requires_grad for p in part.parameters())
    assert not part[1].training
    assert all(p.requires_grad for p in thaw(part).parameters())
    assert part[1].training
