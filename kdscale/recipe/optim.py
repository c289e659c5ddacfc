"""Optimizers and learning-rate schedules, as values."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from .frozen import FrozenDict, FrozenMapping, value

Rate = Annotated[float, Field(ge=0)]


@value
class Part:
    """What one trained part (the student, a shadow head, an adapter) has of its own."""

    lr: Rate = 1.0  # factor on the phase's rate
    decay: Rate | None = None  # in place of the optimizer's


@value
class SGD:
    """Stochastic gradient descent. ``per``: the rate is for this global batch and scales linearly with the real one."""

    lr: Rate = 0.05
    per: Annotated[int, Field(gt=0)] | None = None
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = False
    decay: Rate = 5e-4
    decay_all: bool = True  # CIFAR habit: decay also on biases and norms; False: not where timm says so
    clip: Annotated[float, Field(gt=0)] | None = None  # of the gradient's norm
    parts: FrozenMapping[Part] = FrozenDict()
    kind: Literal["sgd"] = "sgd"


@value
class AdamW:
    """AdamW; no decay on biases, norms and what the network names (``no_weight_decay``)."""

    lr: Rate = 1e-3
    per: Annotated[int, Field(gt=0)] | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    eps: Annotated[float, Field(gt=0)] = 1e-8
    decay: Rate = 0.05
    decay_all: bool = False
    clip: Annotated[float, Field(gt=0)] | None = None
    parts: FrozenMapping[Part] = FrozenDict()
    kind: Literal["adamw"] = "adamw"


@value
class Timm:
    """Any optimizer of timm's factory by its name (``lamb``, ``lion``, ``nadamw``)."""

    name: str
    lr: Rate = 1e-3
    per: Annotated[int, Field(gt=0)] | None = None
    decay: Rate = 0.05
    decay_all: bool = False
    clip: Annotated[float, Field(gt=0)] | None = None
    args: FrozenMapping[Any] = FrozenDict()
    parts: FrozenMapping[Part] = FrozenDict()
    kind: Literal["timm"] = "timm"


Optimizer = Annotated[SGD | AdamW | Timm, Field(discriminator="kind")]


@value
class Constant:
    """One rate, after an optional linear warm-up. Lengths in epochs."""

    warmup: Rate = 0.0
    start: Rate = 1e-6  # rate at the start of the warm-up
    kind: Literal["constant"] = "constant"


@value
class Cosine:
    """Half a cosine from the rate to ``end``. ``offset`` and ``total`` (epochs) lay one curve over several phases."""

    warmup: Rate = 0.0
    start: Rate = 1e-6
    end: Rate = 1e-5  # lowest rate
    offset: Rate = 0.0
    total: Rate | None = None  # None: the phase's length
    kind: Literal["cosine"] = "cosine"


@value
class MultiStep:
    """The rate times ``factor`` once for each milestone (in whole epochs done) that has passed."""

    milestones: tuple[Rate, ...] = (150, 180, 210)
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    warmup: Rate = 0.0
    start: Rate = 1e-6
    offset: Rate = 0.0
    kind: Literal["multistep"] = "multistep"


@value
class Plateau:
    """The rate times ``factor`` each time a recorded metric has not improved for more than ``patience`` records.

    ``metric``: of the evaluations, or 'train.loss', the mean loss of each epoch of training. ``stops``: the phase ends at the
    cut that brings the rate down to ``end``; its length is then only a limit.
    """

    metric: str = "student.top1"
    mode: Literal["max", "min"] = "max"
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    patience: Annotated[int, Field(ge=0)] = 5
    threshold: Rate = 1e-4
    relative: bool = False  # the threshold is a share of the best value
    end: Rate = 0.0  # lowest rate
    stops: bool = False
    warmup: Rate = 0.0
    start: Rate = 1e-6
    kind: Literal["plateau"] = "plateau"

    @model_validator(mode="after")
    def _reaches_its_end(self) -> Any:
        if self.stops and not self.end:
            raise ValueError("a plateau that stops the phase needs a rate to stop at: set schedule.end, say to 1e-5")
        return self


Schedule = Annotated[Constant | Cosine | MultiStep | Plateau, Field(discriminator="kind")]
