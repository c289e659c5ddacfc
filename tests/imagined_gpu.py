"""A GPU that is imagined: tensors that have a device, a shape and a type, and no numbers.

What would read a number from the device fails, and so does what brings together tensors of the device and of the host: the
two mistakes that show on a GPU alone. There is no backward pass: torch's engine asks for the real device.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from kdscale.types import Batch

DEVICE = torch.device("cuda", 0)
T = TypeVar("T", Tensor, nn.Parameter)


class ImaginedGpu:
    """Copies to the device, each tensor once, so that what is shared there stays shared."""

    def __init__(self) -> None:
        self.mode = FakeTensorMode(allow_non_fake_inputs=False)
        self._copies: dict[int, Tensor] = {}
        self._copied: list[Tensor] = []  # held, so that no other takes their places

    @contextmanager
    def working(self) -> Iterator[None]:
        with self.mode:
            yield

    def tensor(self, tensor: T) -> T:
        if id(tensor) not in self._copies:
            imagined = self.mode.from_tensor(tensor.detach())
            with self.mode:
                imagined = imagined.to(DEVICE)
            if isinstance(tensor, nn.Parameter):
                imagined = nn.Parameter(imagined, tensor.requires_grad)
            self._copies[id(tensor)] = imagined
            self._copied.append(tensor)
        return self._copies[id(tensor)]  # type: ignore[return-value]

    def take(self, modules: Iterable[nn.Module]) -> None:
        """Moves whole modules, in place."""
        for module in (child for whole in modules for child in whole.modules()):
            for held in (module._parameters, module._buffers):
                for name, tensor in held.items():
                    if tensor is not None:
                        held[name] = self.tensor(tensor)

    def batch(self, batch: Batch) -> Batch:
        tensors = {f.name: value for f in fields(batch) if isinstance(value := getattr(batch, f.name), Tensor)}
        return replace(batch, **{name: self.tensor(value) for name, value in tensors.items()})
