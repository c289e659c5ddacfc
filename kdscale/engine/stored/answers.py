"""An answer of a frozen network as a row of fixed size: any row is found by arithmetic, read alone, and proved by its checksum.

    all     every logit
    N       the N largest logits and one more number: what each other class gets, so that together they weigh (at temperature 1)
            what they weighed; their own differences are lost
    label   the class alone, which then has the whole weight: logit 0, and CERTAIN for the others

A shard is a plain ``.npy`` of such rows. They are read by position in the file and never mapped: a mapped file that is cut
short meanwhile ends the process without a word.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...data.order import Integers
from ...errors import DataError, RecipeError

CERTAIN = -1e4  # exp of it is 0 in float32 at any temperature below 90, and it is still a number in float16
Rows = NDArray[Any]  # structured, of Form.dtype
Keep = int | Literal["all", "label"]


@dataclass(frozen=True, slots=True)
class Form:
    """What is kept of each answer. ``type``: of the numbers."""

    keep: Keep
    type: Literal["fp16", "fp32"]
    classes: int

    def __post_init__(self) -> None:
        if isinstance(self.keep, int) and not 0 < self.keep < self.classes:
            raise RecipeError(f"{self.keep} of {self.classes} classes cannot be kept: give 1 to {self.classes - 1}, or 'all'")

    @property
    def dtype(self) -> np.dtype[Any]:
        number, label = {"fp16": "<f2", "fp32": "<f4"}[self.type], "<u2" if self.classes <= 1 << 16 else "<u4"
        fields: list[tuple[Any, ...]] = [("crc", "<u4"), ("sample", "<u4"), ("witness", "<f4")]
        if self.keep == "all":
            return np.dtype([*fields, ("value", number, (self.classes,))])
        if self.keep == "label":
            return np.dtype([*fields, ("label", label, (1,))])
        return np.dtype([*fields, ("value", number, (self.keep,)), ("rest", number), ("label", label, (self.keep,))])

    @property
    def words(self) -> str:
        """For a line of the log."""
        if self.keep == "label":
            return "labels alone"
        return (
            f"all logits, {self.type}" if self.keep == "all" else f"{self.keep} largest of {self.classes} logits, {self.type}"
        )

    def packed(self, logits: Tensor) -> dict[str, NDArray[Any]]:
        """``logits`` [B,C] as the columns of rows. What is left out is left out on the device."""
        if self.keep == "all":
            return {"value": _host(logits)}
        if self.keep == "label":
            return {"label": _host(logits.argmax(1, keepdim=True))}
        value, label = logits.topk(self.keep, dim=1)
        others = logits.scatter(1, label, -torch.inf).logsumexp(1) - float(np.log(self.classes - self.keep))
        return {"value": _host(value), "rest": _host(others), "label": _host(label)}

    def logits(self, rows: Rows, device: torch.device) -> Tensor:
        """[B,C] float32 of ``rows``; what crosses to the device is what was kept."""
        if self.keep == "all":
            return _onto(rows["value"], device).float()
        label = _onto(rows["label"].astype(np.int32), device).long()
        if self.keep == "label":
            return torch.full((len(rows), self.classes), CERTAIN, device=device).scatter_(1, label, 0.0)
        rest, value = (_onto(rows[name], device).float() for name in ("rest", "value"))
        return rest[:, None].repeat(1, self.classes).scatter_(1, label, value)


def _host(t: Tensor) -> NDArray[Any]:
    found: NDArray[Any] = t.cpu().numpy()
    return found


def _onto(array: NDArray[Any], device: torch.device) -> Tensor:
    t = torch.from_numpy(np.ascontiguousarray(array))
    return t.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else t.to(device)


def witness(images: Tensor) -> Tensor:
    """[B] of images [B,3,H,W]: about the same on every device, and another for any other crop, flip, erasing or mix."""
    down, right = (torch.linspace(-1, 1, side, device=images.device) for side in images.shape[2:])
    return (images.mean(1) * (1 + 2 * down[:, None] + right)).mean((1, 2))


def checksums(rows: Rows, numbers: Integers) -> NDArray[np.uint32]:
    """CRC of each row; it begins with the row's number in the store, so that a row in another one's place is found too."""
    body = rows.view(np.uint8).reshape(len(rows), -1)[:, 4:]
    return np.array([zlib.crc32(row, number & 0xFFFFFFFF) for row, number in zip(body, numbers.tolist())], np.uint32)


def header(path: Path, dtype: np.dtype[Any]) -> tuple[int, int]:
    """(bytes before the first row, rows) of a shard. DataError for one that is cut short, or is none of these rows."""
    try:
        with path.open("rb") as file:
            np.lib.format.read_magic(file)  # type: ignore[no-untyped-call]
            shape, _, found = np.lib.format.read_array_header_1_0(file)  # type: ignore[no-untyped-call]
            start = file.tell()
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is no shard of answers ({' '.join(str(error).split())})") from None
    if found != dtype or len(shape) != 1:
        raise DataError(f"{path} holds rows of another form than its store says")
    size, wanted = path.stat().st_size, start + shape[0] * dtype.itemsize
    if size != wanted:
        raise DataError(f"{path} is {size} bytes and was written with {wanted}: it is truncated or was replaced")
    return start, int(shape[0])
