"""Shards on disk -> batches on the device: packing, indexing, the order, the stream and exact evaluation.

Names are loaded when first used, so that packing and indexing start without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .evaluate import checksum, evaluation_batches, expected_checksum
    from .indexing import IndexReport, index
    from .order import Sequence, sequence
    from .packing import PackReport, pack, pack_all, pack_arrays
    from .plans import Plan, check_batch, plan
    from .resident import ResidentStream, check_reading, open_stream
    from .split import Split, open_split
    from .stream import TrainStream

_HOMES = {
    "evaluate": ("checksum", "evaluation_batches", "expected_checksum"),
    "indexing": ("IndexReport", "index"),
    "order": ("Sequence", "sequence"),
    "packing": ("PackReport", "pack", "pack_all", "pack_arrays"),
    "plans": ("Plan", "check_batch", "plan"),
    "resident": ("ResidentStream", "check_reading", "open_stream"),
    "split": ("Split", "open_split"),
    "stream": ("TrainStream",),
}

__all__ = [
    "IndexReport",
    "PackReport",
    "Plan",
    "ResidentStream",
    "Sequence",
    "Split",
    "TrainStream",
    "check_batch",
    "check_reading",
    "checksum",
    "evaluation_batches",
    "expected_checksum",
    "index",
    "open_split",
    "open_stream",
    "pack",
    "pack_all",
    "pack_arrays",
    "plan",
    "sequence",
]


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            value = getattr(importlib.import_module(f"{__name__}.{module}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
