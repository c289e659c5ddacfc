"""Which back-end a phase's module is wrapped in, and what each of them cannot take."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from ...errors import RunError
from .replicated import Replicated
from .session import Session
from .wrapped import Build, Groups, Wrapped

if TYPE_CHECKING:
    from ...recipe import Needs, Phase

ELEMENTWISE = ("sgd", "adamw")  # an optimizer that looks at a whole tensor would see a shard of it
SHARDING = ("zero3", "fsdp2")


def refuse_unfit(parallel: str, phase: Phase, needs: Needs) -> None:
    """Raises RunError, one sentence, for a phase that the back-end would compute wrongly."""
    kind = phase.optimizer.kind
    if parallel != "ddp" and kind not in ELEMENTWISE:
        raise RunError(
            f"machine.parallel={parallel} cuts tensors into flat pieces, and phase {phase.name!r} has optimizer {kind!r},"
            f" which may read whole ones: take {' or '.join(ELEMENTWISE)}, or machine.parallel=ddp"
        )
    if parallel in SHARDING and needs.whole_weights:
        raise RunError(
            f"machine.parallel={parallel} cannot shard two networks that share weights, as method {phase.method.kind!r} of phase"  # type: ignore[attr-defined]
            f" {phase.name!r} has them: take ddp, zero1 or zero2"
        )


def wrap(
    session: Session, module: nn.Module, groups: Groups, build: Build, *, clip: float | None = None, batch: int = 1
) -> Wrapped:
    """``module`` in the back-end of the session. ``build`` makes the optimizer over ``groups`` (their parameters may be
    replaced first). ``clip``: the norm of every update; ``batch``: of a rank and a micro-batch."""
    if session.parallel == "fsdp2":
        from .sharded import Sharded

        return Sharded(session, module, groups, build)
    if session.parallel.startswith("zero"):
        from .zero import Zero

        return Zero(session, module, groups, build, stage=int(session.parallel[-1]), clip=clip, batch=batch)
    return Replicated(session, module, groups, build)
