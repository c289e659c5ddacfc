"""Blocks in K runs: the tables of the paper's pairs, the merging, and what cannot be cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdscale.errors import NetworkError
from kdscale.networks.partition import STEM, Groups, halved, merged, natural_groups, partition, parts_of
from tests.networks.making import build, tiny_deit

TABLE = {
    "resnet20": ("9", "6,3", "3,3,3", "2,1,3,3", "2,1,2,1,3", "2,1,2,1,2,1", "1,1,1,2,1,2,1", "1,1,1,1,1,1,2,1"),
    "resnet56": ("27", "18,9", "9,9,9", "5,4,9,9", "5,4,5,4,9", "5,4,5,4,5,4", "3,2,4,5,4,5,4", "3,2,4,3,2,4,5,4"),
    "ResNet18": ("8", "4,4", "4,2,2", "2,2,2,2", "1,1,2,2,2", "1,1,1,1,2,2", "1,1,1,1,1,1,2", "1,1,1,1,1,1,1,1"),
    "resnet34": ("16", "7,9", "7,6,3", "3,4,6,3", "2,1,4,6,3", "2,1,2,2,6,3", "2,1,2,2,3,3,3", "2,1,2,2,3,3,2,1"),
}
"""Blocks of each stage for 1 to 8 stages."""
NATURAL = {
    "resnet8x4": [1, 1, 1],
    "wrn_16_2": [2, 2, 2],
    "vgg8": [1, 1, 1, 2],
    "vgg13": [1, 1, 1, 2],
    "okd_vgg16": [1, 1, 1, 1],
    "MobileNetV2": [3, 3, 7, 4],
    "ShuffleV1": [4, 8, 4],
    "ShuffleV2": [4, 8, 4],
    "cifar_densenet121": [6, 12, 24, 16],
    "resnet18": [2, 2, 2, 2],
    "vit_tiny_patch16_224": [3, 3, 3, 3],
}


def sizes(groups: Groups) -> list[int]:
    return [len(group) for group in groups]


def letters(*counts: int) -> Groups:
    """Groups of so many blocks, each block with a name of its own."""
    return tuple(tuple(f"{group}.{block}" for block in range(count)) for group, count in enumerate(counts))


@pytest.mark.parametrize("name", TABLE)
def test_the_papers_pairs(name: str) -> None:
    network = build(name)
    for count, row in enumerate(TABLE[name], 1):
        parts = parts_of(network, count)
        assert ",".join(map(str, sizes(parts))) == row
        assert sum(parts, ()) == sum(network.cuts, ()), "blocks are lost or out of order"


@pytest.mark.parametrize("name", NATURAL)
def test_natural_groups(name: str) -> None:
    assert sizes(natural_groups(build(name))) == NATURAL[name]


def test_the_first_convolutions_of_the_benchmarks_vgg_are_a_group() -> None:
    assert natural_groups(build("vgg8")) == ((STEM,), ("block1",), ("block2",), ("block3", "block4"))


def test_equal_runs_of_a_vision_transformer() -> None:
    assert sizes(parts_of(tiny_deit(), 2)) == [2, 2]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(1, 15))
def test_a_partition_loses_nothing(counts: list[int], count: int) -> None:
    groups = letters(*counts)
    try:
        parts = partition(groups, count)
    except ValueError:
        assert count > len(groups)
        return
    assert len(parts) == count
    assert all(parts)
    assert sum(parts, ()) == sum(groups, ())


@given(st.integers(1, 9), st.integers(1, 9))
def test_merging_is_even_and_the_earlier_take_more(total: int, count: int) -> None:
    if count > total:
        return
    merging = [len(part) for part in merged(letters(*[1] * total), count)]
    assert sum(merging) == total
    assert merging == sorted(merging, reverse=True)
    assert merging[0] - merging[-1] <= 1


@given(st.integers(2, 30))
def test_the_first_half_is_the_larger(count: int) -> None:
    (group,) = letters(count)
    first, second = halved(group)
    assert first + second == group
    assert len(first) - len(second) in (0, 1)


def test_a_pair_of_unlike_networks_has_the_groups_of_the_one_with_fewer() -> None:
    dense = build("cifar_densenet121")
    assert sizes(parts_of(dense, 3, groups=3)) == [18, 24, 16]
    assert sizes(parts_of(dense, 4, groups=3)) == [9, 9, 24, 16]
    assert sizes(parts_of(build("resnet20"), 4, groups=3)) == [2, 1, 3, 3]


def test_the_stem_as_a_stage() -> None:
    resnet, vgg = build("resnet20"), build("vgg8")
    assert sizes(parts_of(resnet, 4, stem=True)) == [1, 3, 3, 3]
    assert parts_of(resnet, 4, stem=True)[0] == (STEM,)
    assert parts_of(resnet, 1, stem=True) == ((STEM,),)
    assert parts_of(vgg, 4, stem=True) == natural_groups(vgg)


@pytest.mark.parametrize(
    ("name", "count", "said"),
    [
        ("resnet8", 4, r"network 'resnet8' cannot be cut into 4 stages: a group of one block \(layer1.0\) cannot be halved"),
        ("vgg8", 5, r"a group of one block \(stem\)"),
        ("resnet20", 10, "3 groups of blocks make at most 9; take stages=9"),
    ],
)
def test_too_many_stages(name: str, count: int, said: str) -> None:
    with pytest.raises(NetworkError, match=said):
        parts_of(build(name), count)


def test_a_family_without_blocks() -> None:
    with pytest.raises(NetworkError, match="cannot be run in spans of blocks"):
        natural_groups(build("mobilenetv2_050"))
