"""A network in spans of blocks is the network."""

from __future__ import annotations

import pytest
import torch

from kdscale.errors import NetworkError
from kdscale.networks import Network
from tests.networks.making import build, images, tiny_deit

CIFAR = ("resnet8", "ResNet18", "okd_wrn20_8", "wrn_16_1", "cnn6", "vgg8", "okd_vgg16", "MobileNetV2", "ShuffleV1", "ShuffleV2",
         "okd_densenet40_12")  # fmt: skip


def network_of(name: str) -> Network:
    return (tiny_deit() if name == "deit" else build(name)).eval()


@pytest.mark.parametrize("name", [*CIFAR, "resnet18", "resnet26d", "deit"])
@torch.no_grad()
def test_every_cut_in_two_gives_the_same_logits(name: str) -> None:
    network = network_of(name)
    x = images(1, 28 if name == "deit" else 32)
    whole = network(x).logits
    for block in [block for group in network.cuts for block in group]:
        assert torch.equal(network.run(network.run(x, upto=block), after=block).logits, whole), block


@pytest.mark.parametrize("name", [*CIFAR, "resnet18", "deit"])
@torch.no_grad()
def test_a_group_ends_in_its_stage(name: str) -> None:
    network = network_of(name)
    x = images(1, 28 if name == "deit" else 32)
    taps = tuple(f"stage{i}" for i in range(1, 1 + len(network.cuts)))
    whole = network(x, taps).taps
    for tap, group in zip(taps, network.cuts, strict=True):
        cut = network.run(x, upto=group[-1], taps=(tap, "pooled"))
        assert cut.logits is None
        assert "pooled" not in cut.taps
        assert torch.equal(cut.taps[tap], whole[tap])
        if name == "deit":
            assert cut.taps["cut"].shape == (1, 18, 48)  # two prefix tokens, sixteen patches


@torch.no_grad()
def test_the_tail_of_a_wrn_goes_with_its_last_block() -> None:
    network = network_of("wrn_16_1")
    x = images()
    last = network.cuts[-1][-1]
    cut = network.run(x, upto=last, taps=("stage3", "stage3.pre"))
    assert torch.equal(cut.taps["cut"], cut.taps["stage3.pre"].relu())
    assert torch.equal(network.run(cut.taps["cut"], after=last, taps=("pooled",)).taps["pooled"], cut.taps["cut"].mean((2, 3)))


@torch.no_grad()
def test_taps_of_a_span() -> None:
    network = network_of("resnet18")
    x = images(1, 32)
    whole = network(x, network.tap_names()).taps
    middle = network.run(whole["stage1"], after="layer1.1", upto="layer3.1", taps=("stem", "stage2", "stage2.pre", "stage3"))
    assert set(middle.taps) == {"stage2", "stage2.pre", "stage3", "cut"}
    assert torch.equal(middle.taps["stage2.pre"], whole["stage2.pre"])


@pytest.mark.parametrize(("name", "stage"), [("vgg8", 1), ("okd_vgg16", 3), ("okd_densenet40_12", 2), ("MobileNetV2", 2)])
@torch.no_grad()
def test_a_stage_ends_in_its_tap_and_the_next_begins_with_the_pooling(name: str, stage: int) -> None:
    network = network_of(name)
    x = images(1, 32)
    whole, last = network(x, network.tap_names()), network.cuts[stage - 1][-1]
    assert torch.equal(network.run(x, upto=last), whole.taps[f"stage{stage}"])
    assert torch.equal(network.run(whole.taps[f"stage{stage}"], after=last).logits, whole.logits)


@pytest.mark.parametrize("name", ["okd_vgg16", "MobileNetV2", "ShuffleV2", "okd_densenet40_12"])
@torch.no_grad()
def test_what_follows_the_last_block_goes_with_it(name: str) -> None:
    network = network_of(name)
    whole = network(images(), network.tap_names()).taps
    assert torch.equal(network.run(images(), upto=network.cuts[-1][-1]).mean((2, 3)), whole["pooled"])


@pytest.mark.parametrize(
    ("name", "blocks"),
    [("resnet56", [9, 9, 9]), ("resnet34", [3, 4, 6, 3]), ("vit_tiny_patch16_224", [3, 3, 3, 3]), ("ResNet50", [3, 4, 6, 3]),
     ("okd_resnet110", [12, 12, 12]), ("vgg19", [1, 1, 1, 1]), ("MobileNetV2", [3, 3, 7, 4]), ("ShuffleV1", [4, 8, 4]),
     ("ShuffleV2", [4, 8, 4]), ("cifar_densenet121", [6, 12, 24, 16])],
)  # fmt: skip
def test_numbers_of_blocks(name: str, blocks: list[int]) -> None:
    assert [len(group) for group in build(name).cuts] == blocks


def test_a_family_without_spans() -> None:
    network = build("mobilenetv2_050")
    assert network.cuts == ()
    with pytest.raises(NetworkError, match="cannot be run in spans"):
        network.run(images(), upto="blocks.0")


def test_an_unknown_block() -> None:
    with pytest.raises(NetworkError, match=r"no block 'layer1.7'.*layer1"):
        build("resnet20").run(images(), upto="layer1.7")


@torch.no_grad()
def test_a_frozen_network_runs_in_its_own_precision() -> None:
    network = build("resnet8", trained=False, precision="bf16")
    middle = network.run(images(), upto="layer1.0")
    assert middle.dtype == torch.float32
    assert torch.allclose(network.run(middle, after="layer1.0").logits, network(images()).logits)
