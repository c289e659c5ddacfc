"""The CIFAR networks against fingerprints that public implementations gave under one rule for weights and images."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdscale.networks import cifar
from tests.networks.making import build
from tests.shared import shared

PRIME = 65521
GOLDEN = ("resnet8", "resnet14", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "resnet8x2", "resnet8x4",
          "resnet32x4", "wrn_16_1", "wrn_16_2", "wrn_40_1", "wrn_40_2")  # fmt: skip
SLOW = {"resnet32x4", "wrn_40_2", "resnet110", "resnet44", "resnet56"}
NETWORKS = [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in GOLDEN]


def sequence(count: int) -> Tensor:
    """u(i) in [-1/2, 1/2), the same on every machine."""
    i = torch.arange(count, dtype=torch.int64)
    return (((i * (i + 1) // 2) % PRIME * 7919 + i % PRIME * 104729) % PRIME).double() / PRIME - 0.5


@torch.no_grad()
def prescribe(network: nn.Module) -> nn.Module:
    for module in network.double().modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            fan_in = module.weight[0].numel()
            module.weight.copy_(math.sqrt(24 / fan_in) * sequence(module.weight.numel()).view_as(module.weight))
            if module.bias is not None:
                module.bias.copy_(0.2 * sequence(module.bias.numel()))
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.weight.copy_(0.5 + 0.5 * sequence(module.num_features))
            module.bias.copy_(0.2 * sequence(module.num_features))
    return network


def prescribed_images() -> Tensor:
    return (math.sqrt(12) * sequence(2 * 3 * 32 * 32)).view(2, 3, 32, 32)


def golden(name: str) -> dict[str, Any]:
    networks: dict[str, Any] = json.loads(shared("golden", "baselines", "networks.json").read_text())["networks"]
    return networks[name]  # type: ignore[no-any-return]


def test_the_sequence_is_the_prescribed_one() -> None:
    u = sequence(65521)
    assert u[0] == -0.5
    assert [float(u[i]) for i in (1, 2, 65520)] == pytest.approx(
        [0.2192655789746799, 0.05939317165488922, -0.09840356526915034]
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_counts(name: str) -> None:
    body, expected = cifar.build(name, 100), golden(name)
    assert sum(p.numel() for p in body.parameters()) == expected["parameters"]
    assert len(list(body.parameters())) == expected["parameter_tensors"]
    assert len(list(body.buffers())) == expected["buffer_tensors"]


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_fingerprint(name: str) -> None:
    expected, network = golden(name), build(name, classes=100, trained=True)
    prescribe(network)
    said = network.eval()(prescribed_images(), network.tap_names())
    assert float(said.logits.sum()) == pytest.approx(expected["logits_sum"], rel=1e-8)
    assert float(said.logits.norm()) == pytest.approx(expected["logits_l2"], rel=1e-8)
    for tap, numbers in expected["taps"].items():
        assert list(said.taps[tap].shape[1:]) == numbers["shape"] == list(network.shape(tap))
        assert float(said.taps[tap].norm()) == pytest.approx(numbers["l2"], rel=1e-8)
        if numbers["l2_pre"] is not None:
            assert float(said.taps[f"{tap}.pre"].norm()) == pytest.approx(numbers["l2_pre"], rel=1e-8)
    in_train_mode = network.train()(prescribed_images()).logits
    assert float(in_train_mode.norm()) == pytest.approx(expected["logits_l2_train"], rel=1e-8)


@torch.no_grad()
def test_taps_do_not_touch_running_statistics_twice() -> None:
    plain, tapped = build("wrn_16_1"), build("wrn_16_1")
    x = torch.randn(4, 3, 32, 32)
    plain(x)
    tapped(x, tapped.tap_names())
    for (name, mine), (_, theirs) in zip(plain.state_dict().items(), tapped.state_dict().items(), strict=True):
        assert torch.equal(mine, theirs), name


@pytest.mark.parametrize("name", ["resnet20", "wrn_16_2", "cnn6"])
def test_initial_weights_are_kaiming_fan_out(name: str) -> None:
    torch.manual_seed(0)
    for module in cifar.build(name, 10).modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 2000:
            k = module.kernel_size[0]
            assert float(module.weight.detach().std()) == pytest.approx(math.sqrt(2 / (k * k * module.out_channels)), rel=0.1)
        if isinstance(module, nn.BatchNorm2d):
            assert bool((module.weight == 1).all())
            assert bool((module.bias == 0).all())


@pytest.mark.parametrize(
    ("name", "known"), [("wrn_28_10", True), ("wrn_15_1", False), ("wrn_4_1", False), ("resnet18", False), ("cnn6", True)]
)
def test_names(name: str, known: bool) -> None:
    assert cifar.known(name) == known
    if not known:
        with pytest.raises(ValueError, match=name):
            cifar.build(name, 10)


@pytest.mark.parametrize("size", [16, 28, 33])
def test_cnn6_takes_any_small_image(size: int) -> None:
    network = build("cnn6", size=size)
    said = network(torch.randn(2, 3, size, size), network.tap_names())
    assert said.logits.shape == (2, 10)
    assert [said.taps[f"stage{i}"].shape[1] for i in (1, 2, 3)] == [32, 64, 128]
    assert said.taps["stage3"].shape[-1] == -(-size // 8)
