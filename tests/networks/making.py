"""Networks for tests, with little said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from kdscale.networks import Network, build_network
from kdscale.recipe import Model
from kdscale.types import DatasetInfo, Normalisation

PLAIN: Normalisation = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
TINY_DEIT = {"patch_size": 7, "img_size": 28, "embed_dim": 48, "depth": 4, "num_heads": 3}


def info(classes: int = 10, size: int = 32, names: tuple[str, ...] = ()) -> DatasetInfo:
    return DatasetInfo("a data set", 1000, classes, None, *PLAIN, size, names)


def build(name: str | Path, classes: int = 10, size: int = 32, **options: Any) -> Network:
    """``options``: of :func:`build_network`, the rest of the model."""
    given = {key: options.pop(key) for key in ("trained", "seed", "normalisation", "precision", "load") if key in options}
    names = options.pop("names", ())
    given = {"trained": True, "seed": 1, "normalisation": PLAIN} | given
    return build_network(Model(str(name), **options), info(classes, size, names), **given)


def tiny_deit(**options: Any) -> Network:
    return build("deit_tiny_distilled_patch16_224", size=28, args=TINY_DEIT, **options)


def images(count: int = 2, size: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def key(number: int = 7) -> torch.Tensor:
    return torch.tensor(number, dtype=torch.int64)
