"""Networks that have already answered, for stored cases: a method's own distiller reads them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdscale.methods import Distiller, Method
from kdscale.networks import Network
from kdscale.recipe import Phase
from kdscale.tasks import Classification
from kdscale.types import Batch, Context, DatasetInfo, Outputs

from .small import ALONE, NORMALISATION, SIZE

CLASSES = 2


class Said(nn.Module):
    """A network of which the taps are known, and whose logits do not matter."""

    name = "said"
    expanded = Network.expanded

    def __init__(self, taps: dict[str, Tensor]) -> None:
        super().__init__()
        self.rows = len(next(iter(taps.values())))
        self.outputs = Outputs(torch.zeros(self.rows, CLASSES), taps)

    def forward(self, images: Tensor, taps: tuple[str, ...] = ()) -> Outputs:
        return self.outputs

    def tap_names(self) -> tuple[str, ...]:
        return tuple(self.outputs.taps)

    def shape(self, tap: str) -> tuple[int, ...]:
        return tuple(self.outputs.taps[tap].shape[1:])


def context_of(method: Method, student: Said, teacher: Said, info: DatasetInfo) -> Context:
    networks = {"student": student, "teacher": teacher}
    return Context(networks, None, info, ALONE, Classification(), Phase(method, steps=6), 0)  # type: ignore[arg-type]


def batch_of(index: Tensor) -> Batch:
    """A batch of the samples ``index`` [B], in this order."""
    zeros = torch.zeros_like(index)
    images = torch.zeros(len(index), 3, SIZE, SIZE)
    return Batch(images, NORMALISATION, zeros, None, index, torch.arange(len(index)), zeros, zeros == 0)


def built(method: Method, student: Said, teacher: Said, samples: int | None = None) -> Any:
    """The method's distiller, in train mode, on a set of ``samples`` (the batch's alone) with two classes."""
    samples = samples or student.rows
    info = DatasetInfo("said", samples, CLASSES, np.arange(samples, dtype=np.int32) % CLASSES, *NORMALISATION, SIZE)
    return method.build(context_of(method, student, teacher, info)).train()


def losses_of(distiller: Distiller, teacher: Said, index: Tensor | None = None) -> dict[str, Tensor]:
    """Of a batch of the samples ``index``; the teacher's answers are without graph."""
    answer = Outputs(teacher.outputs.logits, {name: tap.detach() for name, tap in teacher.outputs.taps.items()})
    losses: dict[str, Tensor] = distiller(batch_of(torch.arange(teacher.rows) if index is None else index), {"teacher": answer})
    return losses
