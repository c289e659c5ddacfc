"""Contrastive representation distillation: an embedding tells its own sample from many others in a memory of the other network.

Tian, Krishnan, Isola, "Contrastive Representation Distillation", ICLR 2020, in the noise-contrastive form of their program.
The memory is never differentiated. Everything is float32 (float64 in tests) even under autocast: a score is an exponential of
up to 1/tau, and a noise term is about 1e-4 of the 1 that it is added to.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .precision import wide

EPSILON = 1e-7
WHOLE = 130_000
"""Rows of a memory up to which it is cheaper to compare with all of it and to pick, than to gather the rows first."""
PIECE = 1 << 24
"""Numbers that are gathered from a larger memory at a time."""


def embedding(features: Tensor) -> Tensor:
    """Rows [B,D] of length 1; a row of zeros stays one."""
    return F.normalize(wide(features), dim=1)


def contrast_scores(queries: Tensor, memory: Tensor, contrast: Tensor, tau: float) -> Tensor:
    """exp(memory[contrast] . query / tau), [B,K+1]. ``queries`` [B,D], ``memory`` [n,D], ``contrast`` [B,K+1] int64 row numbers.

    No [B,K,D] tensor is made, in the backward pass neither.
    """
    with torch.autocast(queries.device.type, enabled=False):
        if len(memory) <= WHOLE:
            near = (queries @ memory.T).gather(1, contrast)
        else:
            near = _Gathered.apply(queries, memory, contrast)  # type: ignore[no-untyped-call]
        return (near / tau).exp()


def contrast_loss(scores: Tensor, normaliser: Tensor, samples: int) -> Tensor:
    """Noise-contrastive loss a row: column 0 of ``scores`` [B,K+1] is the positive. Returns [B].

    With P = scores / ``normaliser`` (a 0-dim constant) and c = K / ``samples``:
    -log(P_0 / (P_0 + c)) - sum_k log(c / (P_k + c)), in a form that keeps the digits of P_k / c.
    """
    noise = (scores.shape[1] - 1) / samples
    shares = scores / normaliser
    positive = torch.log1p((noise + EPSILON) / shares[:, 0])
    return positive + torch.log1p((shares[:, 1:] + EPSILON) / noise).sum(1)


@torch.no_grad()
def remembered(memory: Tensor, index: Tensor, embeddings: Tensor, momentum: float, valid: Tensor | None = None) -> Tensor:
    """What the rows ``index`` [B] of ``memory`` [n,D] become: unit(momentum row + (1 - momentum) embedding), [B,D].

    A sample that occurs several times takes its last ``valid`` [B] occurrence, and each of them is given that result: writing
    ``memory[index] = remembered(...)`` then has one outcome, whatever the order of the writes.
    """
    old = memory[index]
    new = embedding(momentum * old + (1 - momentum) * embeddings)
    number = torch.arange(len(index), device=index.device)
    if valid is not None:
        number = torch.where(valid, number, -1)
    last = number.new_full((len(memory),), -1).scatter_reduce(0, index, number, "amax")[index]
    return torch.where((last >= 0)[:, None], new[last], old)


class _Gathered(torch.autograd.Function):
    """memory[contrast] . query, [B,K+1], a piece of columns at a time; the rows are gathered again for the gradient."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, memory: Tensor, contrast: Tensor) -> Tensor:
        ctx.save_for_backward(memory, contrast)
        pieces = [torch.bmm(memory[rows], queries[:, :, None])[:, :, 0] for rows in _pieces(contrast, memory)]
        return torch.cat(pieces, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        memory, contrast = ctx.saved_tensors
        (gradient,) = gradients
        pieces = _pieces(contrast, memory)
        shares = torch.split(gradient, [rows.shape[1] for rows in pieces], 1)
        parts = [torch.bmm(share[:, None], memory[rows])[:, 0] for share, rows in zip(shares, pieces, strict=True)]
        return torch.stack(parts).sum(0), None, None


def _pieces(contrast: Tensor, memory: Tensor) -> tuple[Tensor, ...]:
    return torch.split(contrast, max(1, PIECE // (len(contrast) * memory.shape[1])), 1)
