"""ZeRO's flat buffers, read as the parameters that they are made of.

Stages 1 and 2 lay a group's parameters end to end and give each rank one stretch, so a parameter may lie on two ranks. Stage 3
cuts each parameter into a shard a rank and lays the shards end to end. Either way all ranks' buffers, gathered once, hold
every parameter of the group; nothing is asked of DeepSpeed parameter by parameter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class Flat:
    """``buffer`` [n]: this rank's, which the optimizer steps. ``places``: parameter, offset, length: within all buffers end to
    end, or, by ``rows``, within each rank's."""

    buffer: Tensor
    places: list[tuple[nn.Parameter, int, int]]
    rows: bool

    def whole(self, gathered: Tensor) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Each parameter's full tensor, a view into ``gathered`` [ranks, n]."""
        for parameter, offset, length in self.places:
            if self.rows:
                full = gathered[:, offset : offset + length].reshape(-1)[: parameter.ds_numel]  # type: ignore[attr-defined]
                yield parameter, full.view(parameter.ds_shape)  # type: ignore[attr-defined]
            else:
                yield parameter, gathered.flatten()[offset : offset + length].view(parameter.shape)

    def mine(self, fulls: list[Tensor | None], rank: int, ranks: int) -> Tensor:
        """This rank's buffer of the full tensors of ``places``; padding, and what is ``None``, is zero."""
        table = torch.zeros(ranks, self.buffer.numel(), dtype=self.buffer.dtype)
        for (_, offset, length), full in zip(self.places, fulls, strict=True):
            if full is None:
                continue
            if self.rows:
                padded = torch.zeros(ranks * length, dtype=table.dtype)
                padded[: full.numel()] = full.flatten()
                table[:, offset : offset + length] = padded.view(ranks, length)
            else:
                table.view(-1)[offset : offset + length] = full.flatten()
        return table[rank].to(self.buffer.device).clone()


def partitions_of_weights(optimizer: Any) -> list[Flat]:
    """Of stages 1 and 2: a module's parameters are views into their group's whole buffer."""
    flats = []
    for whole, buffer, members in zip(
        optimizer.bit16_groups_flat, optimizer.single_partition_of_fp32_groups, optimizer.bit16_groups, strict=True
    ):
        places = [(p, (p.data_ptr() - whole.data_ptr()) // whole.element_size(), p.numel()) for p in members]
        flats.append(Flat(buffer, places, rows=False))
    return flats


def partitions_of_parameters(optimizer: Any) -> list[Flat]:
    """Of stage 3: the shards of a group's parameters, in order."""
    flats = []
    for buffer, members in zip(optimizer.fp32_partitioned_groups_flat, optimizer.fp16_groups, strict=True):
        places, offset = [], 0
        for parameter in members:
            length = parameter.ds_tensor.numel()
            places.append((parameter, offset, length))
            offset += length
        flats.append(Flat(buffer, places, rows=True))
    return flats
