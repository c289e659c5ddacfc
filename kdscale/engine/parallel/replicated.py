"""One process, or DDP through Accelerate: every rank holds everything and gradients are averaged in buckets."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ...errors import RunError
from .session import Session
from .wrapped import Build, Groups, Wrapped


class Replicated(Wrapped):
    def __init__(self, session: Session, module: nn.Module, groups: Groups, build: Build) -> None:
        super().__init__(session, module, groups)
        self.optimizer = build(groups)
        self.model, _ = session.accelerator.prepare(module, self.optimizer)
        if session.size > 1 and not isinstance(getattr(self.model, "_orig_mod", self.model), DistributedDataParallel):
            raise RunError(
                f"Accelerate made {type(self.model).__name__} of the network on {session.size} ranks, which would learn nothing from one"
                " another: unset its ACCELERATE_ variables, or use another version of it"
            )

    def alone(self, last: bool) -> Any:
        return nullcontext() if last or self.model is self.module else self.model.no_sync()
