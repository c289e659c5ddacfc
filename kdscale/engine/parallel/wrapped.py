"""One phase's module and optimizer, wrapped for the ranks: forward, backward, clip, step, and their state by plain names.

DDP through Accelerate. Loaders are never given to it (it would deal the samples a second time), nor schedules (it steps them
once a rank). The state leaves and enters as full float32 tensors under the names of the unwrapped module, so a save knows
no back-end.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ...types import Batch, Losses, Taught
from .session import Session

GROUP = "group."  # before the name of what an optimizer keeps of a whole group


class Wrapped:
    def __init__(
        self, session: Session, module: nn.Module, optimizer: torch.optim.Optimizer, groups: list[dict[str, Any]]
    ) -> None:
        """``groups``: as ``engine.optim.parameter_groups`` made them; ``optimizer`` is over them in the same order."""
        self.session = session
        self.module = module
        self.groups = groups
        self.model, self.optimizer = session.accelerator.prepare(module, optimizer)
        self._distributed = self.model is not module
        self._inner: torch.optim.Optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        self._parameters = [p for group in groups for p in group["params"]]

    def __call__(self, batch: Batch, taught: Taught | None = None) -> Any:
        return self.model(batch, taught)

    def accumulate(self, batch: Batch, taught: Taught, share: float, last: bool) -> Losses:
        """Forward and backward of one micro-batch, ``share`` of a step; gradients cross the ranks in the ``last`` alone."""
        with nullcontext() if last or not self._distributed else self.model.no_sync():
            losses: Losses = self.model(batch, taught)
            torch.stack(list(losses.values())).sum().mul(share).backward()  # type: ignore[no-untyped-call]
        return losses

    def clip(self, limit: float | None) -> Tensor:
        """Norm of the whole gradient, before clipping to ``limit`` (None: measured alone). The same on every rank."""
        return torch.nn.utils.clip_grad_norm_(self._parameters, float("inf") if limit is None else limit, foreach=True)

    def step(self) -> None:
        self._inner.step()

    def zero_grad(self) -> None:
        self._inner.zero_grad(set_to_none=True)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self._inner.param_groups

    def optimizer_state(self) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
        """Tensors as ``{'exp_avg/student.body.x': ...}`` on the CPU, and what is no tensor, by parameter.

        Some optimizers keep a group's own clock (timm's LAMB its steps): it stands with the group's first parameter.
        """
        tensors: dict[str, Tensor] = {}
        numbers: dict[str, dict[str, Any]] = {}
        for name, entries in self._entries():
            for entry, kept in entries.items():
                if isinstance(kept, Tensor):
                    tensors[f"{entry}/{name}"] = kept.detach().cpu().contiguous()
                elif kept is not None:
                    numbers.setdefault(name, {})[entry] = kept
        return tensors, numbers

    def _entries(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for group, inner in zip(self.groups, self._inner.param_groups, strict=True):
            clock = {name: kept for name, kept in inner.items() if name != "lr" and isinstance(kept, Tensor | int | float)}
            yield group["names"][0], {GROUP + name: kept for name, kept in clock.items()}
            for name, parameter in zip(group["names"], group["params"], strict=True):
                yield name, self._inner.state.get(parameter, {})

    def load_optimizer_state(self, tensors: dict[str, Tensor], numbers: dict[str, dict[str, Any]]) -> None:
        """Puts back what :meth:`optimizer_state` gave, by name; torch places each entry where its optimizer wants it."""
        by_name: dict[str, dict[str, Any]] = {name: dict(entries) for name, entries in numbers.items()}
        for label, tensor in tensors.items():
            entry, _, name = label.partition("/")
            by_name.setdefault(name, {})[entry] = tensor
        state = self._inner.state_dict()
        for group, inner in zip(self.groups, state["param_groups"], strict=True):
            first = by_name.get(group["names"][0], {})
            inner.update({name.removeprefix(GROUP): first.pop(name) for name in list(first) if name.startswith(GROUP)})
        names = [name for group in self.groups for name in group["names"]]
        state["state"] = {number: by_name[name] for number, name in enumerate(names) if by_name.get(name)}
        self._inner.load_state_dict(state)

    def release(self) -> None:
        """Lets go of everything before the next phase builds afresh."""
        self.session.accelerator.free_memory()
