"""A network in spans of blocks is the network."""

from __future__ import annotations

import pytest
import torch

from kdscale.errors import NetworkError
from kdscale.networks import Network
from tests.networks.making import build, images, tiny_deit


def network_of(name: str) -> Network:
    return (tiny_deit() if name == "deit" else build(name)).eval()


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "cnn6", "resnet18", "resnet26d", "deit"])
@torch.no_grad()
def test_every_cut_in_two_gives_the_same_logits(name: str) -> None:
    network = network_of(name)
    x = images(1, 28 if name == "deit" else 32)
    whole = network(x).logits
    for block in [block for group in network.cuts for block in group]:
        assert torch.equal(network.run(network.run(x, upto=block), after=block).logits, whole), block


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "resnet18", "deit"])
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


def test_numbers_of_blocks() -> None:
    assert [len(group) for group in build("resnet56").cuts] == [9, 9, 9]
    assert [len(group) for group in build("resnet34").cuts] == [3, 4, 6, 3]
    assert [len(group) for group in build("vit_tiny_patch16_224").cuts] == [3, 3, 3, 3]


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
