"""What a phase's step costs, from the shapes alone: FLOPs, bytes, launches and memory, as straight lines in the images a micro-batch.

Two imagined steps are traced, at one size and at the double of it; all that grows with the batch grows linearly with it, but for
relations of all pairs, whose error at other sizes is theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..engine.imagined import imagined
from ..engine.parallel.sharded import trained_blocks
from ..recipe import Recipe
from ..types import DatasetInfo
from .building import Built, build
from .trace import Trace

TRAINED = "trained"
KINDS = ("convolution", "matmul")


@dataclass(frozen=True, slots=True)
class Line:
    """``fixed`` + ``each`` x images."""

    fixed: float
    each: float

    def at(self, images: float) -> float:
        return self.fixed + self.each * images


@dataclass(frozen=True, slots=True)
class Frozen:
    """``share``: part of the steps in which it is run."""

    name: str
    parameters: int
    bytes: int
    share: float


@dataclass(frozen=True, slots=True)
class Counted:
    """Of one phase. ``parameters``: trained ones; ``averaged``: those that an average is kept of; ``held``: bytes of the
    distiller that no optimizer touches (buffers, banks, parts at rest); ``block``: parameters of the two largest blocks that
    are gathered at once; ``work``: (who, what) -> line, who being a frozen role or 'trained'; ``peak``: bytes of activations
    and what the step needs beside them; ``kept``: bytes that the forward pass leaves for the backward one; ``gathered``: bytes
    that the method's losses collect from all ranks in a micro-batch, in ``gathers`` exchanges."""

    parameters: int
    averaged: int
    held: int
    block: int
    images: int  # bytes of one image on the device
    frozen: dict[str, Frozen]
    work: dict[tuple[str, str], Line]
    peak: Line
    kept: Line
    gathered: Line
    gathers: int

    def flops(self, kind: str, images: float) -> float:
        """Of one micro-batch, trained and frozen, forward and backward."""
        return sum(self.share(who) * line.at(images) for (who, what), line in self.work.items() if what == kind)

    def of(self, who: str, what: str, images: float) -> float:
        line = self.work.get((who, what))
        return line.at(images) if line else 0.0

    def total(self, what: str, images: float) -> float:
        return sum(self.share(who) * line.at(images) for (who, w), line in self.work.items() if w == what)

    def share(self, who: str) -> float:
        return self.frozen[who].share if who in self.frozen else 1.0

    def silent(self) -> Counted:
        """The same without a word from the frozen networks."""
        return replace(self, frozen={role: replace(frozen, share=0.0) for role, frozen in self.frozen.items()})


def count(recipe: Recipe, number: int, info: DatasetInfo, epochs: float, ranks: int, images: int) -> Counted:
    """Phase ``number`` of a resolved recipe at ``images`` a micro-batch. Raises KdscaleError where its networks do not fit."""
    with imagined(info):
        exchanged: list[Tensor] = []
        built = build(recipe, number, info, epochs, ranks, lambda t: _gathered(t, ranks, exchanged), torch.device("cpu"))
        least = max(2, images)
        steps = [traced_step(built, size, exchanged) for size in (least, 2 * least)]
        return _counted(built, steps, (least, 2 * least), bool(recipe.ema))


def _gathered(rows: Tensor, ranks: int, exchanged: list[Tensor]) -> Tensor:
    if ranks == 1:
        return rows
    found = rows.repeat(ranks, *[1] * (rows.ndim - 1))
    exchanged.append(found.detach())
    return found


def traced_step(built: Built, size: int, exchanged: list[Tensor]) -> dict[tuple[str, str], float]:
    """One micro-batch of ``size`` images: what was booked, and under ('', ...) 'peak', 'kept', 'gathered' and 'gathers'."""
    batch = built.batch(size, torch.device("cpu"))
    distiller = built.distiller
    for parameter in distiller.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    exchanged.clear()
    trace = Trace(_standing(built, batch.images))
    distiller.before_step(built.progress)  # type: ignore[operator]
    taught = {}
    for role in built.shares:
        with trace.of(role), torch.no_grad():
            said = built.say(role, batch.images)
        if role in built.speakers:
            taught[role] = said
        del said
    with trace.of(TRAINED):
        loss = sum(distiller(batch, taught).values())
    kept = trace.live
    with trace.of(TRAINED, backward=True):
        loss.backward()  # type: ignore[union-attr]
    gathered = sum(t.numel() * t.element_size() for t in exchanged)
    facts = {"peak": trace.peak, "kept": kept, "gathered": gathered, "gathers": len(exchanged)}
    return {**trace.totals, **{("", what): float(value) for what, value in facts.items()}}


def _standing(built: Built, images: Tensor) -> list[Tensor]:
    modules: list[nn.Module] = [built.distiller, *built.frozen.values()]
    weights = [t for module in modules for t in (*module.parameters(), *module.buffers())]
    return [*weights, *(t.grad for t in weights if t.grad is not None), images]


def _counted(built: Built, steps: Sequence[Mapping[tuple[str, str], float]], sizes: tuple[int, int], averaged: bool) -> Counted:
    (low, high), (small, large) = steps, sizes
    lines = {}
    for name in low.keys() | high.keys():
        each = (high.get(name, 0.0) - low.get(name, 0.0)) / (large - small)
        lines[name] = Line(low.get(name, 0.0) - each * small, each)
    distiller = built.distiller
    trained = [p for p in distiller.parameters() if p.requires_grad]
    weights = sum(p.numel() for p in trained)
    everything = {t.untyped_storage()._cdata: _bytes(t) for t in (*distiller.parameters(), *distiller.buffers())}
    blocks = sorted((sum(p.numel() for p in block.parameters()) for block in trained_blocks(distiller)), reverse=True)
    rest = weights - sum(blocks)
    return Counted(
        parameters=weights,
        averaged=sum(p.numel() for p in built.student.parameters()) if averaged else 0,
        held=sum(everything.values()) - 4 * weights,
        block=sum(sorted((*blocks, rest), reverse=True)[:2]),
        images=3 * built.views * built.info.size**2 * 4,
        frozen={role: _frozen(built, role) for role in built.frozen},
        work={name: line for name, line in lines.items() if name[0]},
        peak=lines["", "peak"],
        kept=lines["", "kept"],
        gathered=lines["", "gathered"],
        gathers=int(lines["", "gathers"].at(small)),
    )


def _frozen(built: Built, role: str) -> Frozen:
    network = built.frozen[role]
    tensors = {id(t): t for t in (*network.parameters(), *network.buffers())}.values()
    parameters = sum(p.numel() for p in network.parameters())
    return Frozen(network.name, parameters, sum(map(_bytes, tensors)), built.shares.get(role, 0.0))


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
