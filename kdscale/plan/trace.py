"""What a step does, operation by operation: arithmetic, bytes read and written, launches, and memory that is alive.

It watches below autograd, so what it sees is what the device gets. Works on imagined and on real tensors.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .arithmetic import backward_flops, forward_flops, kind_of_work, name_of

NOT_A_LAUNCH = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "lift_fresh", "detach")


class Trace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """``totals``: (who, what) -> number; what: 'convolution', 'matmul' (FLOPs, forward and backward), 'bytes', 'launches'.

    ``live``: bytes that stand now and did not before the trace began; ``peak``: the most of them.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        """``known``: what stands already, whose bytes are counted elsewhere."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.totals: Counter[tuple[str, str]] = Counter()
        self.live = self.peak = 0
        self._who, self._backward = "", False
        self._alive: dict[int, Any] = {}
        self._known = [t.untyped_storage() for t in known]  # held, so that no other takes their places
        self._alive |= {storage._cdata: None for storage in self._known}

    @contextmanager
    def of(self, who: str, backward: bool = False) -> Iterator[None]:
        """Books what happens meanwhile under ``who``. In a backward pass arithmetic is not counted: the forward told of it."""
        self._who, self._backward = who, backward
        with self:
            yield

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        settings = kwargs or {}
        result = func(*args, **settings)
        if func.namespace == "prim":  # a question to the tensor, such as its device
            return result
        given = [t for t in tree_leaves((args, settings)) if isinstance(t, Tensor)]
        made = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        name = name_of(func)
        if not self._backward:
            flops = forward_flops(func, args, settings, result)
            if flops:
                kind = kind_of_work(name)
                self.totals[self._who, kind] += int(flops + backward_flops(name, flops, args))
        if name not in NOT_A_LAUNCH and not _is_view(func, given, made):
            self.totals[self._who, "launches"] += 1
            self.totals[self._who, "bytes"] += sum(map(_bytes, (*given, *made)))
        for tensor in made:
            self._own(tensor)
        return result

    def _own(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        place, size = storage._cdata, storage.nbytes()
        if place not in self._alive:
            self._alive[place] = weakref.ref(storage, lambda _: self._gone(place, size))
            self.live += size
            self.peak = max(self.peak, self.live)

    def _gone(self, place: int, size: int) -> None:
        del self._alive[place]
        self.live -= size


def _is_view(func: Any, given: list[Tensor], made: list[Tensor]) -> bool:
    """Whether nothing is written: results that lie in what was given, by an operation that changes none of it."""
    if func._schema.is_mutable:
        return False
    places = {t.untyped_storage()._cdata for t in given}
    return bool(made) and all(t.untyped_storage()._cdata in places for t in made)


def _bytes(tensor: Tensor) -> int:
    """An expanded tensor is read once."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
