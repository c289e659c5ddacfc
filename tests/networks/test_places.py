"""What is read at a place is what the whole network computes there, and nothing behind it is run."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from kdscale.errors import NetworkError
from kdscale.networks import Network
from kdscale.networks.places import parameters_upto, read_upto, shapes_at
from tests.networks.making import build, images, tiny_deit

NAMES = ("resnet20", "wrn_16_1", "vgg8", "okd_vgg16", "MobileNetV2", "ShuffleV2", "okd_densenet40_12", "resnet18", "deit")


def network_of(name: str, trained: bool = True) -> Network:
    network = tiny_deit() if name == "deit" else build(name, trained=trained)
    return network.eval()


def pictures(name: str) -> torch.Tensor:
    return images(2, 28 if name == "deit" else 32)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_blocks_read_in_one_walk_are_those_read_one_by_one(name: str) -> None:
    network, x = network_of(name), pictures(name)
    blocks = [block for group in network.cuts for block in group]
    outputs = read_upto(network, x, blocks, logits=True)
    assert torch.equal(outputs.logits, network(x).logits)  # type: ignore[arg-type]
    for block in (blocks[0], blocks[len(blocks) // 2], blocks[-1]):
        assert torch.equal(outputs.taps[block], network.run(x, upto=block))
        assert shapes_at(network, [block])[block] == outputs.taps[block].shape[1:]
    assert set(outputs.taps) == set(blocks)


@torch.no_grad()
def test_taps_are_places_too() -> None:
    network, x = network_of("resnet20"), images()
    whole = network(x, network.tap_names()).taps
    places = ("stage2", "stem", "stage1.pre", "layer1.0")
    outputs = read_upto(network, x, places)
    assert set(outputs.taps) == set(places)
    assert all(torch.equal(outputs.taps[tap], whole[tap]) for tap in places[:3])
    assert outputs.logits is None


def test_nothing_runs_behind_the_last_place() -> None:
    network = build("resnet20").train()
    read_upto(network, images(), ["layer2.0"])
    counted = {name for name, b in network.named_buffers() if name.endswith("num_batches_tracked") and b.item()}
    assert {name.split(".")[1] for name in counted} == {"bn1", "layer1", "layer2"}
    assert not any("layer2.1" in name for name in counted)


@torch.no_grad()
def test_a_frozen_network_says_float32_in_spans_too() -> None:
    frozen = build("resnet20", trained=False, precision="bf16")
    assert read_upto(frozen, images(), ["layer1.0", "layer1.1"]).taps["layer1.1"].dtype == torch.float32


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_but_the_classifiers_belongs_to_one_span(name: str) -> None:
    network = network_of(name)
    ends = [group[-1] for group in network.cuts]
    reached = [parameters_upto(network, end) for end in ends]
    assert all(earlier < later for earlier, later in pairwise(reached))
    heads = {id(p) for head in network.heads.values() for p in head.parameters()}
    assert reached[-1] == {n for n, p in network.named_parameters() if id(p) not in heads}


def test_they_are_those_that_a_gradient_reaches() -> None:
    network = build("okd_densenet40_12")
    end = network.cuts[1][2]
    read_upto(network, images(), [end]).taps[end].sum().backward()  # type: ignore[no-untyped-call]
    assert parameters_upto(network, end) == {n for n, p in network.named_parameters() if p.grad is not None}


def test_asking_changes_nothing() -> None:
    network = build("wrn_16_1").train()
    before = {n: b.clone() for n, b in network.named_buffers()}
    parameters_upto(network, "block2.layer.0")
    assert all(module.training for module in network.modules())
    assert all(torch.equal(b, before[n]) for n, b in network.named_buffers())


@pytest.mark.parametrize("place", ["layer9.0", "stage4", "stage", "pooled"])
def test_no_such_place(place: str) -> None:
    with pytest.raises(NetworkError, match=f"no place '{place}'.*layer1.0"):
        read_upto(build("resnet20"), images(), [place])


def test_a_map_that_the_next_stage_computes() -> None:
    with pytest.raises(NetworkError, match=r"'wrn_16_1' knows its 'stage1.pre' only when it runs on"):
        shapes_at(build("wrn_16_1"), ["stage1.pre"])
