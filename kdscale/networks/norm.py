"""Batch normalisation over the batches of all ranks, on the CPU as on CUDA (torch's own refuses the CPU).

Ioffe and Szegedy 2015 (arXiv:1502.03167). Each rank's mean and variance are gathered and joined by the law of total variance,
one collective a layer forward and one backward; sums of squares would lose float32's digits. State-dict keys are torch's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import NetworkError

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..types import World


class SynchronisedBatchNorm(_BatchNorm):
    """In the place of a ``BatchNorm1d`` or ``2d``. In train mode x [B,C,...] of the same shape on every rank."""

    def __init__(self, norm: _BatchNorm, world: World) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, affine=False, track_running_stats=False)
        self.affine, self.track_running_stats, self.training = norm.affine, norm.track_running_stats, norm.training
        self.weight, self.bias = norm.weight, norm.bias
        for name, buffer in norm.named_buffers(recurse=False):
            self.register_buffer(name, buffer)
        for name, child in norm.named_children():  # timm's norms carry their activation
            self.add_module(name, child)
        self.ranks = world.size
        self.gather = _plain(world)  # a plain function is shared by copies; a bound method would copy the world

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            x = functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        else:
            x = self._normalised(x)
        for child in self.children():
            x = child(x)
        return x

    def _normalised(self, x: Tensor) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        dims = [0, *range(2, x.ndim)]
        variance, mean = torch.var_mean(wide, dims, correction=0)
        means, variances = self.gather(torch.cat([mean, variance])[None]).view(self.ranks, 2, -1).unbind(1)  # [R,C] each
        mean = means.mean(0)
        variance = variances.mean(0) + (means - mean).square().mean(0)
        self._track(mean.detach(), variance.detach(), self.ranks * x.numel() // x.shape[1])
        shape = (1, -1, *[1] * (x.ndim - 2))
        out = (wide - mean.view(shape)) * (variance + self.eps).rsqrt().view(shape)
        if self.weight is not None:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        return out.to(x.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Running statistics, the variance unbiased, as torch keeps them."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        rate: Tensor | float = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
        self.running_mean.mul_(1 - rate).add_(mean * rate)
        self.running_var.mul_(1 - rate).add_(variance * (count / max(count - 1, 1)) * rate)


def _plain(world: World) -> Callable[[Tensor], Tensor]:
    def gather(t: Tensor) -> Tensor:
        return world.gather(t)

    return gather


def synchronise(module: nn.Module, world: World) -> nn.Module:
    """Exchanges every batch norm inside ``module`` in place, keeping parameters and buffers; as it is on one process.

    Raises NetworkError for a batch norm of a kind that would not mean the same afterwards.
    """
    if world.size == 1:
        return module
    if isinstance(module, _BatchNorm):
        return _synchronised(module, world)
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _BatchNorm):
                setattr(parent, name, _synchronised(child, world))
    return module


def _synchronised(norm: _BatchNorm, world: World) -> nn.Module:
    children = [name for name, _ in norm.named_children()]
    if children not in ([], ["drop", "act"]):
        raise NetworkError(f"{type(norm).__name__} cannot be synchronised over ranks: set batch_norm='local'")
    return norm if isinstance(norm, SynchronisedBatchNorm) else SynchronisedBatchNorm(norm, world)
