"""Shadow knowledge distillation (SHAKE): a head that follows the teacher trades knowledge with the student both ways.

One kind, three places for the shadow. On a student with a distillation token the shadow is that token's head, as the paper
does for DeiT: nothing is added to the network. On any other student it is a second classifier on the student's own
features, which it shares and trains with. The published program does something else, kept as ``form='code'``: there the
shadow re-reads the frozen teacher's stages through the teacher's own classifier, and all logits are normalised.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator
from torch import Tensor, nn, ones, zeros
from torch.nn import functional

from ..errors import NetworkError
from ..losses import deit, shake
from ..networks import Network
from ..networks.heads import FusedHead, LinearHead
from ..recipe import Needs, Paper
from ..recipe.frozen import value
from ..tasks import Rows, logits_of
from ..types import Batch, Context, Losses, Outputs, Progress, Taught
from .base import Distiller, Method, require_distillation_head

Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]


@value
class Shake(Method):
    """CE(s, y) + ``weight`` [KD(s <- h) + KD(h <- s)] + KD(h <- t), all at ``temperature``; what h follows is ``proxy_signal``.

    On a distillation token: (1 - ``alpha``) CE(s, q) + ``alpha`` D(h, t) + the same mutual terms, D as in DeiT.
    """

    temperature: Positive = 4.0
    weight: Weight = 1.0  # lambda, of the two mutual terms
    head: Literal["auto", "linear", "fused", "token"] = "auto"  # 'auto': the token where there is one, else linear
    form: Literal["paper", "code"] = "paper"
    proxy_signal: shake.ProxySignal | None = None  # None: 'kl' in the paper, 'l2' in the code
    ce_temperature: Positive = 1.0  # of proxy_signal 'ce'
    proxy_labels: bool | None = None  # does the shadow see labels? None: no in the paper, yes in the code
    detach_features: bool = False  # True: the shadow does not train the features that it reads
    logit_scale: Positive | None = None  # of normalised logits; None: raw in the paper, 3.1415 in the code
    fused_taps: tuple[str, str, str] | None = None  # None: the student's last three stages; the code's are 1, 2, 3
    warmup_epochs: Weight = 0.0  # epochs in which all terms but the labels' grow, as some of the authors' logs show
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5  # token only
    hard: bool = True  # token only
    tau: Positive | None = None  # token only, of D where it is not hard; None: ``temperature``
    inference: Literal["average", "class"] = "average"  # token only: what the student answers
    kind: Literal["shake"] = "shake"

    paper: ClassVar[Paper] = Paper(
        title="Shadow Knowledge Distillation: Bridging Offline and Online Knowledge Transfer",
        authors="Li, Jin",
        year=2022,
        venue="NeurIPS",
        section="3",
        formula="CE(s, y) + KD(s <- sg h) + KD(h <- sg s) + KD(h <- t)",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Any:
        if self.form == "code" and self.head in ("linear", "token"):
            raise ValueError(f"form='code' has the fused head alone (head={self.head!r}): take head='fused' or form='paper'")
        return self

    @property
    def signal(self) -> shake.ProxySignal:
        return self.proxy_signal or ("kl" if self.form == "paper" else "l2")

    @property
    def labels(self) -> bool:
        return self.form == "code" if self.proxy_labels is None else self.proxy_labels

    @property
    def scale(self) -> float | None:
        return 3.1415 if self.logit_scale is None and self.form == "code" else self.logit_scale

    @property
    def code_taps(self) -> tuple[str, str, str]:
        return self.fused_taps or ("stage1", "stage2", "stage3")

    def needs(self) -> Needs:
        taps = {"teacher": self.code_taps} if self.form == "code" else {}
        return Needs(frozen=("teacher",), taps=taps, distillation_head=self.head == "token")

    def build(self, context: Context) -> Distiller:
        student = context.networks["student"]
        if self.form == "code":
            return CodeDistiller(self, context)
        if self.head == "token" or (self.head == "auto" and student.has_distillation_head):
            require_distillation_head(student, self.kind)
            return TokenDistiller(self, context)
        return FeatureDistiller(self, context)


class ShakeDistiller(Distiller):
    """What all places of the shadow share: the ramp and the terms."""

    ramp: Tensor  # [] float: factor on all terms but the labels'

    def __init__(self, method: Shake, context: Context) -> None:
        super().__init__(context)
        self.method = method
        self.register_buffer("ramp", ones(()), persistent=False)

    def before_step(self, progress: Progress) -> None:
        super().before_step(progress)
        if self.method.warmup_epochs:
            self.ramp.fill_(min((math.floor(progress.epoch) + 1) / self.method.warmup_epochs, 1.0))

    def mutual(self, rows: Rows, student: Tensor, shadow: Tensor) -> Losses:
        terms = shake.mutual(student, shadow, self.method.temperature)
        return {name: self.method.weight * rows.mean(values) for name, values in terms.items()}

    def ramped(self, losses: Losses) -> Losses:
        return {name: self.ramp * loss for name, loss in losses.items()}


class FeatureDistiller(ShakeDistiller):
    """The shadow reads the student's features, linearly from the pooled one or through a fused head from three stages."""

    def __init__(self, method: Shake, context: Context) -> None:
        super().__init__(method, context)
        if method.head == "fused":
            self.taps: tuple[str, ...] = method.fused_taps or last_stages(self.student)
            self.shadow: nn.Module = FusedHead(channels(self.student, self.taps), self.student.classes)
        else:
            self.taps = ("pooled",)
            self.shadow = LinearHead(self.student.width, self.student.classes)

    def losses(self, batch: Batch, taught: Taught) -> Losses:
        outputs, shadow = self.answers(batch)
        return self.objective(outputs, shadow, batch, taught)

    def predictions(self, batch: Batch) -> dict[str, Tensor]:
        outputs, shadow = self.answers(batch)
        return {"student": logits_of(outputs), "shadow": shadow}

    def answers(self, batch: Batch) -> tuple[Outputs, Tensor]:
        outputs = self.student(batch.images, taps=self.taps)
        features = [outputs.taps[tap] for tap in self.taps]
        if self.method.detach_features:
            features = [feature.detach() for feature in features]
        return outputs, self.shadow(*features)

    def objective(self, outputs: Outputs, shadow: Tensor, batch: Batch, taught: Taught) -> Losses:
        method, rows = self.method, self.rows(outputs, batch, taught)
        student, shadow, teacher = (self.compared(z) for z in (rows.logits, shadow, rows.teacher["teacher"]))
        signal = method.signal
        temperature = method.ce_temperature if signal == "ce" else method.temperature
        learned = self.mutual(rows, student, shadow)
        learned["shadow<-teacher"] = rows.mean(shake.proxy(shadow, teacher, signal, temperature))
        if method.labels:
            learned |= {f"shadow<-{name}": loss for name, loss in self.supervised(Outputs(shadow), batch).items()}
        return self.supervised(Outputs(student), batch) | self.ramped(learned)

    def compared(self, logits: Tensor) -> Tensor:
        """The logits as the losses see them; those of the predictions stay raw."""
        scale = self.method.scale
        return logits if scale is None else shake.normalised(logits, scale)


class CodeDistiller(FeatureDistiller):
    """The shadow of the published program: the frozen teacher's stages, fused, through a copy of the teacher's classifier.

    The student's backbone has no gradient from it, and an evaluation, which has no teacher, has no shadow.
    """

    classifier: Tensor  # [C,D]
    bias: Tensor  # [C]

    def __init__(self, method: Shake, context: Context) -> None:
        ShakeDistiller.__init__(self, method, context)
        teacher = context.networks["teacher"]
        head = teacher.head
        if not isinstance(head, nn.Linear):
            raise NetworkError(
                f"form='code' copies the teacher's linear classifier, and {teacher.name!r} ends in a {type(head).__name__}"
            )
        self.taps = method.code_taps
        self.shadow = FusedHead(channels(teacher, self.taps), width=head.in_features)
        self.register_buffer("classifier", head.weight.detach().clone())
        self.register_buffer("bias", zeros(head.out_features) if head.bias is None else head.bias.detach().clone())

    def losses(self, batch: Batch, taught: Taught) -> Losses:
        features = self.shadow(*(taught["teacher"].taps[tap] for tap in self.taps))
        shadow = functional.linear(features, self.classifier, self.bias)
        return self.objective(self.student(batch.images), shadow, batch, taught)

    def predictions(self, batch: Batch) -> dict[str, Tensor]:
        return {"student": logits_of(self.student(batch.images))}


class TokenDistiller(ShakeDistiller):
    """The shadow is the distillation token's head; labels reach the class head alone, the teacher the shadow alone."""

    def losses(self, batch: Batch, taught: Taught) -> Losses:
        method, heads = self.method, self.student(batch.images).heads
        student, shadow = heads["class"], heads["distillation"]
        rows = self.rows(Outputs(shadow), batch, taught)
        teacher = rows.teacher["teacher"]
        learned = deit.hard(shadow, teacher) if method.hard else deit.soft(shadow, teacher, method.tau or method.temperature)
        terms = {"shadow<-teacher": method.alpha * rows.mean(learned)} | self.mutual(rows, student, shadow)
        return self.supervised(Outputs(student), batch, 1 - method.alpha) | self.ramped(terms)

    def predictions(self, batch: Batch) -> dict[str, Tensor]:
        """``student`` is what ``inference`` says; the class head, the shadow and the mean of both are all there."""
        outputs = self.student(batch.images)
        heads, average = outputs.heads, logits_of(outputs)
        said = {"class": heads["class"], "shadow": heads["distillation"]}
        if self.method.inference == "class":
            return {"student": heads["class"], "average": average} | said
        return {"student": average} | said


def last_stages(network: Network) -> tuple[str, ...]:
    """The taps of the last three stages. Raises NetworkError where there are fewer."""
    stages = [tap for tap in network.tap_names() if tap.startswith("stage") and "." not in tap]
    if len(stages) < 3:
        raise NetworkError(f"head='fused' reads three stages, and {network.name!r} has {len(stages)}: take head='linear'")
    return tuple(stages[-3:])


def channels(network: Network, taps: tuple[str, ...]) -> tuple[int, ...]:
    return tuple(network.shape(tap)[0] for tap in taps)
