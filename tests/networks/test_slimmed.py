"""A second path through a network's convolutions: what it shares, what is its own, and which part of the channels it reads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdscale.errors import NetworkError
from kdscale.networks import Network
from kdscale.networks.cifar.resnet import Form, ResNet
from kdscale.networks.slimmed import kept, slimmed
from tests.networks.making import build, images, key, tiny_deit

WHOLE = [
    "resnet8",
    "wrn_16_1",
    "vgg8",
    "okd_vgg16",
    "MobileNetV2",
    "ShuffleV1",
    "ShuffleV2",
    "cnn6",
    "okd_densenet40_12",
    "resnet18",
]
PART = [name for name in WHOLE if "Shuffle" not in name and "dense" not in name]


def made(name: str) -> Network:
    return build(name, weights="random")


def norms(network: Network) -> int:
    return sum(p.numel() for m in network.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters())


@pytest.mark.parametrize(("width", "own", "features"), [(1.0, 1568, 64), (0.75, 1176, 48), (0.5, 784, 32)])
def test_what_a_path_through_resnet20_costs(width: float, own: int, features: int) -> None:
    path = slimmed(build("resnet20", classes=100), width)
    assert norms(path) == own
    assert sum(p.numel() for p in path.parameters()) == own + features * 100 + 100


@pytest.mark.parametrize("name", WHOLE)
def test_the_whole_width_is_the_network_itself(name: str) -> None:
    network = made(name).eval()
    path = slimmed(network).eval()
    x = images()
    torch.testing.assert_close(path(x, ("pooled",)).taps["pooled"], network(x, ("pooled",)).taps["pooled"])
    assert path(x).logits.shape == (2, 10)  # type: ignore[union-attr]
    shared = {id(p) for p in network.parameters()}
    assert not any(id(p) in shared for p in path.parameters())


@pytest.mark.parametrize("name", PART)
def test_half_the_width_runs_and_trains_the_leading_channels(name: str) -> None:
    network = made(name).train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)  # timm's residual branches begin at 0
    path = slimmed(network, 0.5)
    said = path(images(4), ("pooled",))
    assert said.taps["pooled"].shape == (4, kept(network.width, 0.5))
    assert path.shape("pooled") == said.taps["pooled"].shape[1:]
    said.logits.square().sum().backward()  # type: ignore[union-attr]
    assert all(p.grad is not None for p in path.parameters())
    for module in network.body.modules():
        if isinstance(module, nn.Conv2d):
            out = kept(module.out_channels, 0.5)
            assert module.weight.grad is not None
            assert module.weight.grad[:out].abs().sum() > 0
            assert not module.weight.grad[out:].any()


def test_a_path_is_the_small_network_of_the_leading_weights() -> None:
    network = build("resnet14").train()
    path = slimmed(network, 0.5)
    small = ResNet(Form(8, (8, 16, 32), (8, 16, 32), (2, 2, 2)), 10)
    given = network.body.state_dict() | path.body.state_dict()
    small.load_state_dict({n: leading(given[n], t) for n, t in small.state_dict().items()})
    x = images(4)
    torch.testing.assert_close(path(x).logits, small.train()(x))
    for name, tensor in small.state_dict().items():
        if "running" in name:
            torch.testing.assert_close(path.body.state_dict()[name], tensor)


def leading(given: Tensor, like: Tensor) -> Tensor:
    return given[tuple(slice(0, size) for size in like.shape)]


def test_both_paths_add_up_in_the_weights_and_keep_their_own_statistics() -> None:
    network = build("resnet8").train()
    path = slimmed(network)
    weight = network.body.conv1.weight
    before = network.body.bn1.running_mean.clone()
    path(images(4)).logits.sum().backward()  # type: ignore[union-attr]
    alone = weight.grad.clone()  # type: ignore[union-attr]
    assert torch.equal(network.body.bn1.running_mean, before)
    assert not torch.equal(path.body.bn1.running_mean, before)
    weight.grad = None
    network(images(4)).logits.sum().backward()  # type: ignore[union-attr]
    second = weight.grad.clone()  # type: ignore[union-attr]
    weight.grad = None
    (path(images(4)).logits.sum() + network(images(4)).logits.sum()).backward()  # type: ignore[union-attr]
    torch.testing.assert_close(weight.grad, alone + second)


def test_a_step_of_the_network_is_a_step_of_the_path() -> None:
    network = build("resnet8").eval()
    path = slimmed(network).eval()
    with torch.no_grad():
        network.body.layer2[0].conv1.weight.mul_(2.0)
    x = images()
    torch.testing.assert_close(path(x, ("stage3",)).taps["stage3"], network(x, ("stage3",)).taps["stage3"])
    assert not [name for name in path.state_dict() if "conv" in name]


def test_drop_block_stays_the_networks_own() -> None:
    network = build("resnet8", args={"drop_block": 0.3}).train()
    path = slimmed(network)
    network.set_noise(key(), torch.arange(2))
    network.set_clock(torch.ones(()))
    x = images()
    first = path(x).logits
    assert torch.equal(path(x).logits, first)  # type: ignore[arg-type]
    assert any(type(m).__name__ == "DropBlock" for m in network.modules())


@pytest.mark.slow
def test_it_compiles() -> None:
    torch._dynamo.reset()
    network = build("resnet8").eval()
    path = slimmed(network, 0.5).eval()
    x = images()
    expected = path(x).logits
    path.compile(backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(path(x).logits, expected)


@pytest.mark.parametrize(
    ("network", "width", "said"),
    [
        (tiny_deit, 1.0, "no second path"),
        (lambda: build("mobilenetv3_small_050", weights="random"), 1.0, "no second path"),
        (lambda: build("ShuffleV1"), 0.5, "take width=1"),
        (lambda: build("okd_densenet40_12"), 0.5, "take width=1"),
        (lambda: build("resnext50_32x4d", weights="random"), 0.5, "take width=1"),
    ],
)
def test_families_without_such_a_path_are_one_line(network: Any, width: float, said: str) -> None:
    with pytest.raises(NetworkError, match=said) as error:
        slimmed(network(), width)
    assert "\n" not in str(error.value)
