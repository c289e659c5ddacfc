"""A network's blocks in K runs, for methods that train or compare it part by part.

"An Embarrassingly Simple Approach for Knowledge Distillation" (Gao et al. 2018, arXiv:1812.01819) cuts where the resolution
falls and, for more parts than that gives, halves what it has from the shallow end. Everything here is a function of names.
"""

from __future__ import annotations

from ..errors import NetworkError
from .network import Network
from .reading import Taps, no_spans

Groups = tuple[Taps, ...]
"""Names of blocks in order, a tuple a group."""

STEM = "stem"
"""Stands for a network's stem where that is a part of its own; it is the name of its tap too."""


def natural_groups(network: Network) -> Groups:
    """The blocks between two falls of the resolution; the stem goes with the first. Raises NetworkError where there are no blocks.

    The benchmark's VGG keeps the resolution from its fourth group to its fifth, so these two are one, and its first group of
    convolutions, which elsewhere is the stem, is one alone.
    """
    from .cifar.vgg import VGG

    groups = network.cuts
    if not groups:
        raise no_spans(type(network.body).__name__)
    if type(network.body) is VGG:
        *others, fourth, fifth = groups
        return ((STEM,), *others, (*fourth, *fifth))
    return groups


def parts_of(network: Network, count: int, groups: int | None = None, stem: bool = False) -> Groups:
    """The blocks of ``network`` in ``count`` runs. ``stem``: the first of them is the stem alone.

    ``groups``: a network of more groups is merged to so many before it is cut, so that it fits one that has fewer.
    """
    found = natural_groups(network)
    own = found if groups is None else merged(found, min(groups, len(found)))
    try:
        if not stem:
            return partition(own, count)
        rest = own[1:] if own[0] == (STEM,) else own
        return ((STEM,), *(partition(rest, count - 1) if count > 1 else ()))
    except ValueError as error:
        raise NetworkError(f"network {network.name!r} cannot be cut into {count} stages: {error}") from None


def partition(groups: Groups, count: int) -> Groups:
    """``groups`` in ``count`` runs: merged where there are more groups, else halved from the first on.

    Once every group is in two, the first halves are halved in their turn. Raises ValueError for a group too short for that.
    """
    if count <= len(groups):
        return merged(groups, count)
    if count > 3 * len(groups):
        raise ValueError(f"{len(groups)} groups of blocks make at most {3 * len(groups)}; take stages={3 * len(groups)}")
    runs = [[group] for group in groups]
    for number in range(count - len(groups)):
        pieces = runs[number % len(groups)]
        pieces[:1] = halved(pieces[0])
    return tuple(piece for pieces in runs for piece in pieces)


def merged(groups: Groups, count: int) -> Groups:
    """Neighbours joined until ``count`` are left, as evenly as can be; the earlier ones take more."""
    size, larger = divmod(len(groups), count)
    sizes = [size + (number < larger) for number in range(count)]
    ends = [sum(sizes[: number + 1]) for number in range(count)]
    return tuple(sum(groups[end - size : end], ()) for size, end in zip(sizes, ends, strict=True))


def halved(group: Taps) -> tuple[Taps, Taps]:
    """The larger half first. Raises ValueError for a group of one block."""
    if len(group) < 2:
        raise ValueError(f"a group of one block ({group[0]}) cannot be halved; take fewer stages")
    middle = (len(group) + 1) // 2
    return group[:middle], group[middle:]
