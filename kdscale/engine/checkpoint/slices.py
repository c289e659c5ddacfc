"""A part of a save that is too large for one file: its tensors in order, cut by rows where one file ends and the next begins."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ...errors import RunError

Rows = tuple[int, int]  # first, end


def cut(tensors: Mapping[str, Tensor], limit: int) -> list[dict[str, Rows]]:
    """What each file is to hold, name -> rows, at most ``limit`` bytes of it; a single row above that has a file to itself."""
    files: list[dict[str, Rows]] = [{}]
    free = limit
    for name, tensor in tensors.items():
        rows, first = length(tensor), 0
        size = tensor.nbytes // rows
        while first < rows:
            count = min(rows - first, free // size if size else rows)
            if count < 1 and files[-1]:
                files.append({})
                free = limit
                continue
            count = max(count, 1)
            files[-1][name] = (first, first + count)
            free -= count * size
            first += count
    return files


def length(tensor: Tensor) -> int:
    """Rows that a tensor can be cut into: a number is one row, and so is a tensor without any."""
    return tensor.shape[0] if tensor.dim() and tensor.shape[0] else 1


def taken(tensor: Tensor, rows: Rows) -> Tensor:
    return tensor if rows == (0, length(tensor)) else tensor[rows[0] : rows[1]]


def places(tensors: Mapping[str, Tensor], files: Mapping[str, Mapping[str, Rows]]) -> dict[str, Any]:
    """name -> its whole shape, and the rows of it that each file holds. ``files``: file -> what :func:`cut` gave it."""
    return {
        name: {"shape": list(tensor.shape), "rows": {file: list(held[name]) for file, held in files.items() if name in held}}
        for name, tensor in tensors.items()
    }


def joined(pieces: Iterable[tuple[str, Mapping[str, Tensor]]], placed: Mapping[str, Any]) -> dict[str, Tensor]:
    """The whole tensors of a part from its files (file, content), taken one after the other; ``placed``: of :func:`places`.

    Raises RunError where the files do not hold every row.
    """
    whole: dict[str, Tensor] = {}
    left = {name: length(torch.empty(place["shape"], device="meta")) for name, place in placed.items()}
    for file, content in pieces:
        for name, piece in content.items():
            if name not in placed or list(piece.shape) == placed[name]["shape"]:
                whole[name] = piece
            else:
                first, end = placed[name]["rows"][file]
                whole.setdefault(name, torch.empty(placed[name]["shape"], dtype=piece.dtype))[first:end] = piece
            if name in left:
                left[name] -= length(piece)
    torn = [name for name, rows in left.items() if rows]
    if torn:
        raise RunError(f"the save does not hold every row of {torn[0]!r}: it is damaged")
    return whole
