"""What a network is, apart from its weights: all that is needed to build it again elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["timm", "transformers", "cifar"]
Triple = tuple[float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkArchitecture:
    """``mean`` and ``std`` are what the network itself expects of its images, whatever the data are normalised by."""

    kind: Kind
    name: str  # timm's, the CIFAR family's, or a transformers model type
    classes: int
    input_size: tuple[int, int, int]  # channels, height, width
    mean: Triple
    std: Triple
    tag: str = ""  # of its pretrained weights; '' for fresh ones
    args: Mapping[str, Any] = field(default_factory=dict)  # of the constructor, beside the number of classes
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    labels: tuple[str, ...] = ()  # names of its classes, where its weights say them
