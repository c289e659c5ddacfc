"""Networks for small images, a file a family, each of which needs torch and ``walk.py`` alone: an export carries the two.

Modules have the names of the usual CIFAR-100 distillation benchmark where it has the network, so that its weights load.
``vgg11`` to ``vgg19`` are the benchmark's here (for timm's of these names write ``timm/vgg16``); DenseNet-121, whose bare
name is timm's alone, is ``cifar_densenet121``.
"""

from __future__ import annotations

from types import ModuleType

from . import dense, mobile, plain, resnet, shuffle, vgg, wrn
from .walk import CifarNetwork, kaiming_fan_out

FAMILIES = (resnet, wrn, vgg, mobile, shuffle, dense, plain)
NAMES: tuple[str, ...] = tuple(name for family in FAMILIES for name in family.NAMES)

__all__ = ["NAMES", "CifarNetwork", "build", "family_of", "kaiming_fan_out", "known"]


def known(name: str) -> bool:
    """Whether :func:`build` knows ``name``: one of ``NAMES``, or any ``wrn_DEPTH_WIDTH`` of depth 6n + 4."""
    return name in NAMES or wrn.sizes(name) is not None


def family_of(name: str) -> ModuleType:
    """The file that builds ``name``. Raises ValueError for a name that is not known."""
    if not known(name):
        raise ValueError(f"there is no CIFAR network {name!r}")
    return next((family for family in FAMILIES if name in family.NAMES), wrn)


def build(name: str, classes: int) -> CifarNetwork:
    """The network with fresh weights, drawn from torch's generator. Raises ValueError for a name that is not known."""
    network: CifarNetwork = family_of(name).build(name, classes)
    return network
