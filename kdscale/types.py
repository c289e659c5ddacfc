"""What the floors hand one another. Shapes: B batch, C classes, D width, V views, N rows (N = B in classification)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    Labels = np.ndarray[Any, np.dtype[np.int32]]

Normalisation = tuple[tuple[float, float, float], tuple[float, float, float]]
"""(mean, std) of pixels scaled to [0, 1], a number a channel."""

Losses = dict[str, "Tensor"]
"""Named, already weighted scalars: their sum is minimised and their names are what the log shows."""


@dataclass(slots=True)
class Batch:
    """One micro-batch of one rank, on the device."""

    images: Tensor  # [B,3,H,W] float, normalised ([B,V,3,H,W] when a method asks for views)
    normalisation: Normalisation  # of these images
    labels: Tensor  # [B] int64, hard, before mixing; -100 where not valid
    targets: Tensor | None  # [B,C] float: soft, after mixup, cutmix, smoothing; None: the labels alone
    index: Tensor  # [B] int64: the sample's number in its split
    position: Tensor  # [B] int64: its place in the phase's order
    repeat: Tensor  # [B] int64: which repeat of a repeated augmentation
    valid: Tensor  # [B] bool: False for padding in evaluation and for a bad sample that a budget let pass
    extra: dict[str, Any] = field(default_factory=dict)  # a task's own tree of tensors


@dataclass  # without slots: ZeRO-3's hooks look into what modules return through __dict__
class Outputs:
    """What a network says. ``taps``: 'stem', 'stage1' .. 'stageK', 'stage2.pre', 'pooled', 'tokens'."""

    logits: Tensor | None  # [N,C]: the network's own answer (a distilled DeiT's is the mean of its two heads)
    taps: dict[str, Tensor] = field(default_factory=dict)
    heads: dict[str, Tensor] = field(default_factory=dict)  # 'class', 'distillation' of a token model, [N,C] each


Taught = Mapping[str, Outputs]
"""What the frozen networks said of a batch, by role."""


@dataclass(frozen=True, slots=True)
class Progress:
    """The one clock, within the phase: order, seeds, ramps and rates read it."""

    phase: int
    step: int  # optimizer steps done
    position: int  # samples consumed
    epoch: float  # position / samples in the split
    epochs: float  # length of the phase


@dataclass(frozen=True, slots=True)
class DatasetInfo:
    identity: str
    samples: int
    classes: int
    labels: Labels | None  # [samples] int32, a memmap; None where nothing needs it
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    size: int  # pixels of a training image's side
    names: tuple[str, ...] = ()  # of the classes, where the data say them


@dataclass(frozen=True, slots=True)
class World:
    """The ranks, as far as a method may know them."""

    rank: int
    size: int
    gather: Callable[[Tensor], Tensor]  # differentiable; rows in order of position; identity on one process
    total: Callable[[Tensor], Tensor]  # sum over ranks, no gradient


@dataclass(frozen=True, slots=True)
class Context:
    """All that a method may know when it builds its distiller."""

    networks: Mapping[str, Any]  # role -> Network (trained) or FrozenNetwork
    fresh: Callable[[str, int], Any]  # (role, number) -> a trained Network of the role's architecture, newly drawn
    data: DatasetInfo
    world: World
    task: Any  # kdscale.tasks.Task
    phase: Any  # kdscale.recipe.Phase
    seed: int
    precision: str = "fp32"  # 'fp32' | 'bf16': autocast that the distiller opens
    device: torch.device | None = None
