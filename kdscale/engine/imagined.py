"""Networks that are built and run without memory or arithmetic: tensors are shapes, and a teacher of any size costs seconds.

Some numbers decide what is built (rates of drop-path, widths of stages, sizes of classes) and must be real: small tables that
are made of numbers, and whatever is computed from real tensors alone, have values.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from ..errors import RecipeError
from ..types import DatasetInfo

TORCH = Path(torch.__file__).parent
TABLES = (torch.linspace, torch.arange, torch.tensor)
LARGEST = 4096  # numbers of a table that is real


class _Deciding(TorchFunctionMode):
    """Computes what the shape of a network hangs on, and copies imagined tensors by value."""

    def __init__(self, info: DatasetInfo) -> None:
        super().__init__()
        self.info = info

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.__deepcopy__:
            return self._copied(*args)
        if func is torch.bincount:  # of labels: as many of each class
            return self._equal_shares()
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if func in TABLES or (tensors and not any(isinstance(t, FakeTensor) for t in tensors)):
            with unset_fake_temporarily():
                real = func(*args, **kwargs)
            if func not in TABLES or real.numel() <= LARGEST:
                return real
        return func(*args, **kwargs)

    def _equal_shares(self) -> Tensor:
        with unset_fake_temporarily():
            return torch.full((self.info.classes,), -(-self.info.samples // self.info.classes), dtype=torch.int64)

    @staticmethod
    def _copied(tensor: Tensor, memo: dict[int, Any]) -> Tensor:
        """By value: the generic copy of an imagined buffer writes into memory that is not there."""
        if id(tensor) not in memo:
            memo[id(tensor)] = tensor.detach().clone().requires_grad_(tensor.requires_grad)
        copied: Tensor = memo[id(tensor)]
        return copied


class Unimaginable(RecipeError):
    """A method or network of one's own asks a tensor for its numbers."""


@contextmanager
def imagined(info: DatasetInfo) -> Iterator[None]:
    """While it lasts, tensors are made without values. ``info``: of the data, for what depends on how many there are.

    Raises Unimaginable where what is done hangs on a number that is not there.
    """
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), _Deciding(info):
            yield
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        asking = [f for f in traceback.extract_tb(error.__traceback__) if not _of_the_way(Path(f.filename))][-1]
        raise Unimaginable(
            f"{asking.filename}:{asking.lineno} asks a tensor for its numbers ({asking.line}), which a forecast does not have:"
            " kdscale check runs the recipe's own step instead"
        ) from None


def _of_the_way(file: Path) -> bool:
    return file == Path(__file__) or TORCH in file.parents
