"""One phase's module and optimizer on the ranks: forward, backward, step, and their state by plain names.

What each back-end must answer. Loaders are never given to one (it would deal the samples a second time), nor schedules (it
steps them once a rank). State leaves and enters as full float32 tensors under the names of the unwrapped module, so a save
knows no back-end, and one that was written under ZeRO-3 on eight ranks is read by a single process.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ...types import Batch, Losses, Taught
from .session import Session

GROUP = "group."  # before the name of what an optimizer keeps of a whole group
Groups = list[dict[str, Any]]
Build = Callable[[Groups], torch.optim.Optimizer]


class Wrapped(ABC):
    """``groups``: as ``engine.optim.parameter_groups`` made them; ``build`` makes the optimizer over them, in the same order."""

    model: Any  # what is called: the module, or what a back-end put around it
    optimizer: torch.optim.Optimizer  # torch's own, whatever stands around it

    def __init__(self, session: Session, module: nn.Module, groups: Groups) -> None:
        self.session, self.module, self.groups = session, module, groups

    def __call__(self, batch: Batch, taught: Taught | None = None) -> Any:
        return self.model(batch, taught)

    def accumulate(self, batch: Batch, taught: Taught, share: float, last: bool) -> Losses:
        """Forward and backward of one micro-batch, ``share`` of a step; gradients cross the ranks in the ``last`` alone."""
        with self.alone(last):
            losses: Losses = self.model(batch, taught)
            self.backward(torch.stack(list(losses.values())).sum().mul(share))
        return losses

    @abstractmethod
    def alone(self, last: bool) -> Any:
        """A context in which gradients stay on their rank, unless ``last``."""

    def backward(self, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    def update(self, limit: float | None, careful: bool = False) -> Tensor | None:
        """Clips the whole gradient's norm to ``limit`` (None: not at all), steps, and forgets the gradient.

        The norm before clipping, the same on every rank; None where nothing asked for it. ``careful``: a gradient that is not
        finite moves no weight.
        """
        norm = self.clip(limit) if limit is not None or careful else None
        if not careful or norm is None or bool(norm.isfinite()):
            self.step()
        self.zero_grad()
        return norm

    def step(self) -> None:
        self.optimizer.step()

    def clip(self, limit: float | None) -> Tensor:
        """Norm of the whole gradient, before clipping to ``limit`` (None: measured alone)."""
        parameters = [p for group in self.groups for p in group["params"]]
        return torch.nn.utils.clip_grad_norm_(parameters, float("inf") if limit is None else limit, foreach=True)

    def zero_grad(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def idle(self) -> list[str]:
        """Trained parameters that the last backward gave no gradient."""
        return [n for group in self.groups for n, p in zip(group["names"], group["params"], strict=True) if p.grad is None]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    def part(self, parameter: nn.Parameter) -> Tensor:
        """What lies of a parameter on this rank, live: the whole of it, or a shard."""
        return parameter.detach()

    def written(self) -> None:  # noqa: B027
        """Told after parts were written in place: gathered copies that a back-end keeps are stale."""

    def whole(self, parameter: nn.Parameter, part: Tensor) -> Tensor:
        """The full tensor of which ``part`` lies here: a copy on the CPU of rank 0, which alone writes; nothing on the others.
        Every rank calls it, in one order."""
        return self.out(part.detach())

    def out(self, full: Tensor) -> Tensor:
        return full.to("cpu", copy=True) if self.session.main else full.new_empty(0)

    def cut(self, parameter: nn.Parameter, full: Tensor) -> Tensor:
        """What this rank holds of ``full``, a tensor of the parameter's full shape: :meth:`whole` backwards."""
        return full

    def weights(self) -> dict[str, Tensor]:
        """Every parameter of the module, whole, float32. Every rank calls it."""
        return {name: self.whole(p, self.part(p)) for name, p in self.module.named_parameters()}

    def replicated(self) -> list[nn.Parameter]:
        """The parameters that lie whole on every rank, and must be equal there bit by bit."""
        return list(self.module.parameters())

    def configuration(self) -> dict[str, Any]:
        """What the back-end was told, for the log."""
        return {}

    def optimizer_state(self) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
        """Tensors as ``{'exp_avg/student.body.x': ...}``, whole, and what is no tensor, by parameter. Every rank calls it.

        Some optimizers keep a group's own clock (timm's LAMB its steps): it stands with the group's first parameter.
        """
        tensors: dict[str, Tensor] = {}
        numbers: dict[str, dict[str, Any]] = {}
        for name, entries in self._entries():
            for entry, kept in entries.items():
                if isinstance(kept, Tensor):
                    tensors[f"{entry}/{name}"] = self.out(kept.detach()).contiguous()
                elif kept is not None:
                    numbers.setdefault(name, {})[entry] = kept
        return tensors, numbers

    def _entries(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for group, inner in zip(self.groups, self.optimizer.param_groups, strict=True):
            clock = {name: kept for name, kept in inner.items() if name != "lr" and isinstance(kept, Tensor | int | float)}
            yield group["names"][0], {GROUP + name: kept for name, kept in clock.items()}
            for name, parameter in zip(group["names"], group["params"], strict=True):
                yield name, self.state_of(parameter)

    def state_of(self, parameter: nn.Parameter) -> dict[str, Any]:
        """What the optimizer keeps of a parameter, whole. Every rank calls it."""
        kept: dict[str, Any] = self.optimizer.state.get(parameter, {})
        return kept

    def load_optimizer_state(self, tensors: dict[str, Tensor], numbers: dict[str, dict[str, Any]]) -> None:
        """Puts back what :meth:`optimizer_state` gave, by name."""
        by_name: dict[str, dict[str, Any]] = {name: dict(entries) for name, entries in numbers.items()}
        for label, tensor in tensors.items():
            entry, _, name = label.partition("/")
            by_name.setdefault(name, {})[entry] = tensor
        clocks = []
        for group in self.groups:
            first = by_name.get(group["names"][0], {})
            clocks.append({name.removeprefix(GROUP): first.pop(name) for name in list(first) if name.startswith(GROUP)})
        self.put_state({name: entries for name, entries in by_name.items() if entries}, clocks)

    def put_state(self, by_name: dict[str, dict[str, Any]], clocks: list[dict[str, Any]]) -> None:
        """``by_name``: full tensors and numbers of each parameter; ``clocks``: of each group. torch places each entry where
        its optimizer wants it."""
        state = self.optimizer.state_dict()
        for inner, clock in zip(state["param_groups"], clocks, strict=True):
            inner.update(clock)
        named = [pair for group in self.groups for pair in zip(group["names"], group["params"], strict=True)]
        state["state"] = {
            number: {entry: self.placed(parameter, kept) for entry, kept in by_name[name].items()}
            for number, (name, parameter) in enumerate(named)
            if name in by_name
        }
        self.optimizer.load_state_dict(state)

    def placed(self, parameter: nn.Parameter, kept: Any) -> Any:
        """An entry of a parameter's state as the back-end's optimizer keeps it: in the parameter's own layout of memory, since a
        fused optimizer walks memory and would pair other elements without a word."""
        if not isinstance(kept, Tensor) or kept.shape != parameter.shape:
            return kept
        return torch.empty_like(parameter, dtype=kept.dtype, requires_grad=False).copy_(kept)

    def release(self) -> None:
        """Lets go of everything before the next phase builds afresh."""
        self.session.accelerator.free_memory()
