"""What saves take: bytes, how many are kept, seconds to write one, and how often it pays to.

The interval is Young's (J. W. Young 1974): the square root of two times the cost of a save times the time between faults.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..data import Plan
from ..recipe import Checkpointing, Recipe
from .counted import Counted
from .machines import Machines


@dataclass(frozen=True, slots=True)
class Storage:
    """Bytes and seconds. ``one``: a save; ``kept``: saves that stand at the end; ``left``: the file that a phase leaves;
    ``stall``: until the weights are in the host's memory; ``interval``: between saves, by Young; ``faults``: expected in the
    run; ``lost``: seconds that they cost."""

    one: float
    kept: int
    left: float
    write: float
    stall: float
    every: float
    interval: float
    faults: float
    lost: float

    @property
    def total(self) -> float:
        return self.one * self.kept + 2 * self.left  # the end's and the best's


def storage(counted: Counted, recipe: Recipe, moment: int, machines: Machines, plan: Plan, seconds: float) -> Storage:
    """Of a phase that takes ``seconds``, saved as the recipe asks. ``moment``: bytes of optimizer state a parameter."""
    weights, averaged = 4.0 * counted.parameters, 4.0 * counted.averaged
    one = weights + moment * counted.parameters + averaged + counted.held
    saves, forever = _saves(recipe.checkpointing, plan)
    every = seconds / max(1.0, saves)
    write = one / (1e9 * machines.disk.value)
    between = 3600 * machines.fault_hours.value / machines.ranks
    faults = seconds / between
    return Storage(
        one=one,
        kept=min(recipe.checkpointing.keep, math.ceil(saves)) + forever,
        left=weights + averaged + counted.held,
        write=write,
        stall=one / (1e9 * machines.bus.value),
        every=every,
        interval=math.sqrt(2 * write * between),
        faults=faults,
        lost=faults * every / 2,
    )


def _saves(asked: Checkpointing, plan: Plan) -> tuple[float, int]:
    """(saves of the phase, how many of them stay for good)."""
    forever = math.floor(plan.epochs / asked.keep_every_epochs) if asked.keep_every_epochs else 0
    if asked.every_steps:
        return plan.total_steps / asked.every_steps, forever
    return (plan.epochs / asked.every_epochs if asked.every_epochs else 1.0), forever
