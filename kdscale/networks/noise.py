"""Drop-path and dropout whose masks are drawn from keys, not from a generator.

A sample's mask is a function of (seed, phase, step, its position, the layer), so it is the same on whichever rank the
sample falls, and a run that is resumed needs no generator's state. Stochastic depth: Huang et al. 2016 (arXiv:1603.09382);
dropout: Srivastava et al. 2014. A mask is found again by reading the key again, so a second forward of one step repeats it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .. import keys
from ..errors import NetworkError

if TYPE_CHECKING:
    from collections.abc import Iterator


class Noise:
    """What the layers of one network share: a word for each layer and sample of the step.

    It is no module and its tensors are no buffers: a save has no use for them, and DDP would send them from rank to rank.
    """

    def __init__(self) -> None:
        self.layers = 0
        self.words: Tensor | None = None  # [L,B] int64
        self.draws: Tensor | None = None  # [L,B] float64 in [0, 1)
        self.share: Tensor | None = None  # []: of the phase that is done

    def new_layer(self) -> int:
        self.layers += 1
        return self.layers - 1

    def set(self, key: Tensor, position: Tensor) -> None:
        """``key`` [] int64 of (seed, phase, step); ``position`` [B] int64 of the samples in the phase's order."""
        if self.layers:
            layers = torch.arange(self.layers, device=position.device)
            self.words = keys.torch_fold(keys.torch_fold(key, position), layers[:, None])
            self.draws = keys.torch_uniform(self.words)

    def per_row(self, layer: int, rows: int) -> Tensor:
        """[rows] uniform draws. Rows may be a multiple of the samples: then a sample's rows lie side by side."""
        words = self._words(layer)
        if self.draws is not None and rows == len(words):
            return self.draws[layer]
        return self.per_element(layer, rows).flatten()

    def per_element(self, layer: int, elements: int) -> Tensor:
        """[B, elements / B] uniform draws."""
        words = self._words(layer)
        if elements % len(words):
            raise NetworkError(
                f"{elements} rows are no multiple of the {len(words)} samples whose positions set_noise was given"
            )
        numbers = torch.arange(elements // len(words), device=words.device)
        return keys.torch_uniform(words[:, None] + numbers * keys.signed(keys.GOLDEN))

    def share_done(self) -> Tensor:
        """[] in [0, 1]."""
        if self.share is None:
            raise NetworkError(
                "a network with DropBlock is in train mode and was told no time: call set_clock(share of the phase done) first"
            )
        return self.share

    def _words(self, layer: int) -> Tensor:
        if self.words is None:
            raise NetworkError(
                "a network with drop-path or dropout is in train mode and was given no positions: call set_noise(key, position) first"
            )
        return self.words[layer]


class DropPath(nn.Module):
    """Drops a residual branch of whole samples. In the place of timm's module of that name."""

    def __init__(self, drop_prob: float, scale_by_keep: bool, noise: Noise) -> None:
        super().__init__()
        self.drop_prob, self.scale_by_keep = drop_prob, scale_by_keep
        self.noise, self.layer = noise, noise.new_layer()

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        mask = (self.noise.per_row(self.layer, x.shape[0]) >= self.drop_prob).to(x.dtype)
        if self.scale_by_keep:
            mask = mask / (1 - self.drop_prob)
        return x * mask.view(-1, *[1] * (x.ndim - 1))

    def extra_repr(self) -> str:
        return f"drop_prob={self.drop_prob:g}"


class Dropout(nn.Module):
    """Clears single elements. In the place of ``nn.Dropout``; ``p`` is read by attention layers that fuse their dropout."""

    def __init__(self, p: float, noise: Noise) -> None:
        super().__init__()
        self.p, self.noise, self.layer = p, noise, noise.new_layer()

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(x) if self.training else x

    def drop(self, x: Tensor) -> Tensor:
        kept = (self.noise.per_element(self.layer, x.numel()) >= self.p).view(x.shape)
        return x * kept.to(x.dtype) / (1 - self.p)

    def extra_repr(self) -> str:
        return f"p={self.p:g}"


def draw_from_keys(body: nn.Module, noise: Noise) -> None:
    """Exchanges every layer of ``body`` that drops something, in the order of the modules' names; no state-dict key changes."""
    from timm.layers import DropPath as TimmDropPath

    for parent, name, child in list(_children(body)):
        if isinstance(child, TimmDropPath) and child.drop_prob:
            setattr(parent, name, DropPath(child.drop_prob, child.scale_by_keep, noise))
        elif type(child) is nn.Dropout and child.p:
            setattr(parent, name, Dropout(child.p, noise))
            if name == "attn_drop" and getattr(parent, "fused_attn", False):
                setattr(parent, "fused_attn", False)  # noqa: B010  # the fused kernel draws from the generator


def _children(module: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    for parent in module.modules():
        for name, child in parent.named_children():
            yield parent, name, child
