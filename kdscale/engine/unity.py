"""That all ranks still hold the same network: a rank that drifts says nothing, trains on, and spoils what is saved.

Looked at after the first step of a phase (a parameter without its reducer's hook shows there) and before every save.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from .faults.ends import Drifted
from .keeper import statistic_names
from .stage import Stage

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of an element


@torch.no_grad()
def require_unity(stage: Stage, step: int) -> None:
    """Raises Drifted on every rank, naming what differs. Shards, and BatchNorm's statistics of each rank, are rightly its own."""
    if stage.session.size == 1:
        return
    held = _alike(stage)
    sums = torch.stack([_bits(t) for t in held.values()])
    least, most = -stage.session.most(-sums), stage.session.most(sums)
    if torch.equal(least, most):
        return
    name = next(name for name, same in zip(held, (least == most).tolist(), strict=True) if not same)
    raise Drifted(
        f"the ranks hold different {name!r} after step {step} of phase {stage.phase.name!r}: the last save is kept; run"
        " `kdscale parity` on this recipe, and tell us what method and network it has"
    )


@torch.no_grad()
def bits_of(module: nn.Module) -> str:
    """A digest of a module's state, by name, shape and the sum of each tensor's bits."""
    state = {name: t.detach() for name, t in module.state_dict().items() if t.numel()}
    sums = torch.stack([_bits(t) for t in state.values()]).tolist() if state else []
    words = [(name, tuple(t.shape), total) for (name, t), total in zip(state.items(), sums, strict=True)]
    return hashlib.sha256(repr(words).encode()).hexdigest()


def _alike(stage: Stage) -> dict[str, Tensor]:
    """What must be equal on every rank, by name."""
    names = {id(p): name for name, p in stage.distiller.named_parameters()}
    weights = {names[id(p)]: p.detach() for p in stage.wrapped.replicated()}
    own = set(statistic_names(stage.distiller))
    return weights | {name: b for name, b in stage.distiller.named_buffers() if name not in own and b.numel()}


def _bits(t: Tensor) -> Tensor:
    """[] int64: the sum of a tensor's bits, read as integers; it wraps around alike everywhere."""
    return t.contiguous().view(INTEGERS[t.element_size()]).sum(dtype=torch.int64)
