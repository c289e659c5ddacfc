"""The recipe itself: everything that decides a run, as one value."""

from __future__ import annotations

import dataclasses
import re
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ..errors import RecipeError
from .data import Augment, Data
from .frozen import FrozenDict, FrozenMapping, value
from .method import AnyMethod, Method
from .networks import FromPhase, Model, Source
from .optim import SGD, AdamW, Constant, Optimizer, Schedule

ROLE = re.compile(r"(student|teacher|peer|assistant)[0-9]*")
PHASE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")


@value
class Ema:
    """A running average of the student's weights in float32. ``warmup``: the decay grows as (1+t)/(10+t) up to its value."""

    decay: Annotated[float, Field(gt=0, lt=1)] = 0.9999
    warmup: bool = False


@value
class Evaluation:
    """When the whole evaluation split is measured, and which answer decides the best checkpoint."""

    every: Annotated[float, Field(gt=0)] = 1.0  # epochs; the end of a phase is always measured
    best_of: str = "student"  # a name of the method's predictions, or 'ema'
    teachers: bool = True  # the teachers' accuracy on the whole split, once at the start of a phase


@value
class Checkpointing:
    """When a run saves itself, and what it keeps. A signal or the end of a phase always saves."""

    every_epochs: Annotated[float, Field(gt=0)] | None = 1.0
    every_steps: Annotated[int, Field(gt=0)] | None = None  # in place of epochs
    keep: Annotated[int, Field(gt=0)] = 3  # newest
    keep_every_epochs: Annotated[int, Field(gt=0)] | None = None  # kept for good


@value
class Machine:
    """How the run is computed, not what: a resume may change all of it."""

    parallel: Literal["ddp", "zero1", "zero2", "zero3", "fsdp2"] = "ddp"  # how weights and optimizer lie on the ranks
    accumulate: Annotated[int, Field(gt=0)] = 1  # micro-batches a step
    compile: bool = False
    channels_last: bool = False
    threads: Annotated[int, Field(gt=0)] | None = None  # of a rank on the CPU
    log_every: Annotated[int, Field(gt=0)] = 50  # steps
    stall: Annotated[float, Field(gt=0, le=1100)] = 600  # seconds without a step, after which a hung run is given up
    trackers: tuple[str, ...] = ()  # of Accelerate: 'tensorboard', 'wandb', ...


@value
class Phase:
    """One method, some networks, a length. ``None`` takes the recipe's own."""

    method: AnyMethod
    epochs: Annotated[float, Field(gt=0)] | None = None
    steps: Annotated[int, Field(gt=0)] | None = None  # in place of epochs
    name: str = ""
    networks: FrozenMapping[Source] = FrozenDict()
    data: Data | None = None
    batch: Annotated[int, Field(gt=0)] | None = None
    optimizer: Optimizer = AdamW()
    schedule: Schedule = Constant()
    carry: tuple[str, ...] = ()  # parts taken from the phase before
    part: int | None = None  # which part of an expanded method this phase is

    @model_validator(mode="after")
    def _one_length(self) -> Any:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(f"a phase has either epochs or steps (epochs={self.epochs}, steps={self.steps}): give one of them")
        return self

    @model_validator(mode="after")
    def _name_of_a_folder(self) -> Any:
        if self.name and not PHASE_NAME.fullmatch(self.name):
            raise ValueError(
                f"a phase's name is a folder's, and {self.name!r} is none: use letters, digits, '_', '-' and '.', the last not first"
            )
        return self


@value
class Recipe:
    """Networks by role, data, and a row of phases."""

    networks: FrozenMapping[Source]
    data: Data
    phases: tuple[Phase, ...]
    ema: Ema | None = None
    evaluation: Evaluation = Evaluation()
    seed: Annotated[int, Field(ge=0)] = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    batch_norm: Literal["local", "sync"] = "local"
    nonfinite: Literal["stop", "skip"] = "stop"
    machine: Machine = Machine()
    checkpointing: Checkpointing = Checkpointing()
    name: str = ""
    published: FrozenMapping[float] = FrozenDict()  # where -> the top-1 % printed there for this very setting

    @model_validator(mode="after")
    def _consistent(self) -> Any:
        if not self.phases:
            raise ValueError("a recipe has at least one phase: phases=[Phase(...)]")
        for where in (self.networks, *(phase.networks for phase in self.phases)):
            for role in where:
                if not ROLE.fullmatch(role):
                    raise ValueError(f"there is no role {role!r}; roles are student, teacher, teacher2, peer1, assistant")
        named = [phase.name for phase in self.phases if phase.name]
        if len(set(named)) < len(named):
            raise ValueError(f"two phases have one name: {', '.join(named)}")
        return self

    def with_method(self, method: Method, phase: str | int | None = None) -> Recipe:
        """The same recipe with another method in its only phase, or in the one that ``phase`` names.

        It has no name and no published numbers: those are of the method that it had.
        """
        if phase is None and len(self.phases) > 1:
            names = ", ".join(p.name or str(i) for i, p in enumerate(self.phases))
            raise RecipeError(f"this recipe has several phases: say which by phase= ({names})")
        place = self.phase_number(0 if phase is None else phase)
        changed = dataclasses.replace(self.phases[place], method=method)
        phases = (*self.phases[:place], changed, *self.phases[place + 1 :])
        return dataclasses.replace(self, phases=phases, name="", published={})

    def phase_number(self, phase: str | int) -> int:
        """Place of a phase given by name or number. Raises RecipeError naming the phases there are."""
        names = [p.name for p in self.phases]
        if isinstance(phase, str) and phase in names:
            return names.index(phase)
        if str(phase).isdigit() and int(phase) < len(names):
            return int(phase)
        known = ", ".join(name or str(i) for i, name in enumerate(names))
        raise RecipeError(f"there is no phase {phase!r} in this recipe; its phases: {known}")


__all__ = [
    "SGD", "AdamW", "Augment", "Checkpointing", "Data", "Ema", "Evaluation", "FromPhase", "Machine", "Model", "Phase", "Recipe",
]  # fmt: skip
