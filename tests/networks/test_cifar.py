"""The CIFAR networks against fingerprints that public implementations gave under one rule for weights and images."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdscale.errors import NetworkError
from kdscale.networks import cifar
from kdscale.networks.sources import find_source
from kdscale.recipe import Model
from tests.networks.making import build, images
from tests.shared import shared

PRIME = 65521
GOLDEN = ("resnet8", "resnet14", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "resnet8x2", "resnet8x4",
          "resnet32x4", "ResNet18", "ResNet34", "ResNet50", "wrn_16_1", "wrn_16_2", "wrn_40_1", "wrn_40_2", "vgg8", "vgg11",
          "vgg13", "vgg16", "vgg19", "MobileNetV2", "ShuffleV1", "ShuffleV2", "okd_resnet110", "okd_wrn20_8", "okd_vgg16",
          "okd_densenet40_12", "cifar_densenet121")  # fmt: skip
SLOW = {"resnet32x4", "wrn_40_2", "resnet110", "resnet44", "resnet56", "ResNet34", "ResNet50", "vgg13", "vgg16", "vgg19",
        "okd_vgg16", "cifar_densenet121"}  # fmt: skip
NETWORKS = [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in GOLDEN]
FAN_OUT = ("resnet20", "wrn_16_2", "cnn6", "okd_resnet110", "vgg8", "MobileNetV2", "okd_vgg16")


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
    return networks[name.removeprefix("cifar_")]  # type: ignore[no-any-return]


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


def test_every_name_has_its_numbers() -> None:
    assert set(GOLDEN) == set(cifar.NAMES) - {"cnn6", "okd_resnet32"}


def test_okds_resnet32_is_resnet32() -> None:
    torch.manual_seed(0)
    ours = cifar.build("resnet32", 10).state_dict()
    torch.manual_seed(0)
    theirs = cifar.build("okd_resnet32", 10).state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def convolutions(name: str) -> Iterator[nn.Conv2d]:
    """Those of a fresh network that have weights enough for a variance."""
    torch.manual_seed(0)
    yield from (m for m in cifar.build(name, 10).modules() if isinstance(m, nn.Conv2d) and m.weight.numel() > 2000)


@pytest.mark.parametrize("name", FAN_OUT)
def test_initial_weights_are_kaiming_fan_out(name: str) -> None:
    for module in convolutions(name):
        k = module.kernel_size[0]
        assert float(module.weight.detach().std()) == pytest.approx(math.sqrt(2 / (k * k * module.out_channels)), rel=0.1)


@pytest.mark.parametrize(("name", "gain"), [("okd_densenet40_12", 2), ("ShuffleV1", 1 / 3), ("ShuffleV2", 1 / 3)])
def test_initial_weights_of_the_other_families(name: str, gain: float) -> None:
    for module in convolutions(name):
        fan_in = module.weight[0].numel()
        assert float(module.weight.detach().std()) == pytest.approx(math.sqrt(gain / fan_in), rel=0.1)


@pytest.mark.parametrize(
    ("name", "weights", "biases"),
    [(n, "default", False) for n in ("wrn_16_2", "okd_densenet40_12")]
    + [(n, "default", True) for n in ("resnet20", "okd_wrn20_8", "ShuffleV1", "ShuffleV2")]
    + [(n, "narrow", False) for n in ("vgg8", "okd_vgg16", "MobileNetV2")],
)
def test_initial_classifiers_and_norms(name: str, weights: str, biases: bool) -> None:
    torch.manual_seed(0)
    network = cifar.build(name, 100)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert bool((module.weight == 1).all())
            assert bool((module.bias == 0).all())
        if isinstance(module, nn.Linear):
            expected = 0.01 if weights == "narrow" else math.sqrt(1 / (3 * module.in_features))
            assert float(module.weight.detach().std()) == pytest.approx(expected, rel=0.05)
        if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
            assert bool(module.bias.any()) == biases


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("resnet20", ("conv1", "layer2.0.downsample.0", "layer3.2.bn2", "fc")),
        ("ResNet50", ("conv1", "layer1.0.shortcut.1", "layer4.2.conv3", "linear")),
        ("wrn_16_2", ("block2.layer.0.convShortcut", "bn1", "fc")),
        ("vgg13", ("block0.0", "block0.3", "block4.4", "classifier")),
        ("MobileNetV2", ("conv1.1", "blocks.6.0.conv.7", "conv2.0", "classifier.0")),
        ("ShuffleV1", ("conv1", "layer2.7.conv3", "linear")),
        ("ShuffleV2", ("layer3.0.bn5", "layer3.3.bn3", "conv2", "linear")),
        ("okd_resnet110", ("layer3.11.conv3", "layer1.0.downsample.0", "fc")),
    ],
)
def test_modules_have_the_benchmarks_names(name: str, keys: tuple[str, ...]) -> None:
    held = cifar.build(name, 10).state_dict()
    assert [key for key in keys if f"{key}.weight" not in held] == []


def test_the_dense_network_has_the_names_of_the_usual_one() -> None:
    import timm

    usual = {key for key in timm.create_model("densenet121").state_dict() if ".norm0." not in key}
    assert set(cifar.build("cifar_densenet121", 10).state_dict()) == usual


@pytest.mark.parametrize(
    ("name", "known"),
    [("wrn_28_10", True), ("wrn_15_1", False), ("wrn_4_1", False), ("wrn_16_0", False), ("cnn6", True), ("ResNet18", True),
     ("resnet18", False), ("densenet121", False), ("cifar_densenet121", True)],
)  # fmt: skip
def test_names(name: str, known: bool) -> None:
    assert cifar.known(name) == known
    if not known:
        with pytest.raises(ValueError, match=name):
            cifar.build(name, 10)


def test_a_name_that_is_also_timms(tmp_path: Path) -> None:
    assert find_source(Model("vgg16")).kind == "cifar"
    assert find_source(Model("timm/vgg16.tv_in1k", weights="random")).kind == "timm"
    assert find_source(Model("densenet121")).kind == "timm"
    for family, kind in (({}, "timm"), ({"family": "cifar"}, "cifar")):
        (tmp_path / "config.json").write_text(json.dumps({"architecture": "vgg16"} | family))
        assert find_source(Model(str(tmp_path), weights="random")).kind == kind


@pytest.mark.parametrize(("name", "near"), [("ShuffleV3", "ShuffleV2"), ("okd_resnet100", "okd_resnet110"), ("vgg9", "vgg")])
def test_a_misspelt_name(name: str, near: str) -> None:
    with pytest.raises(NetworkError, match=f"no network '{name}': did you mean .*{near}"):
        find_source(Model(name))


@pytest.mark.parametrize(("size", "last"), [(32, 4), (64, 4), (40, 5)])
def test_vgg_pools_once_more_where_images_are_large(size: int, last: int) -> None:
    network = build("vgg8", size=size)
    assert network.shape("stage3")[-1] == size // 8
    assert network.shape("stage4")[-1] == last


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2", "okd_densenet40_12", "okd_wrn20_8", "ResNet18"]
)
def test_compiled_without_a_break(name: str) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    plain, compiled = build(name).eval(), build(name).eval()
    compiled.compile(backend="aot_eager")
    taps = plain.tap_names()
    for mine, theirs in zip(plain(images(), taps).taps.values(), compiled(images(), taps).taps.values(), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-4, atol=1e-5)
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.parametrize("size", [16, 28, 33])
def test_cnn6_takes_any_small_image(size: int) -> None:
    network = build("cnn6", size=size)
    said = network(torch.randn(2, 3, size, size), network.tap_names())
    assert said.logits.shape == (2, 10)
    assert [said.taps[f"stage{i}"].shape[1] for i in (1, 2, 3)] == [32, 64, 128]
    assert said.taps["stage3"].shape[-1] == -(-size // 8)
