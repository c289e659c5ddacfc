"""What a recipe says of SHAKE, and which of its places a setting means."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from ...losses.shake import Divergence, ProxySignal
from ...recipe import Needs, Paper, numbered
from ...recipe.frozen import value
from ...recipe.method import AnyMethod
from ...types import Context
from ..base import Distiller, Method, require_distillation_head
from ..terms import Positive, Weight
from .agreement import contradiction
from .code import CodeDistiller
from .features import FeatureDistiller
from .own_path import PathDistiller
from .token import TokenDistiller

Share = Annotated[float, Field(gt=0, le=1)]


@value
class Shake(Method):
    """CE(s, y) + ``weight`` [KD(s <- h) + KD(h <- s)] + KD(h <- t), all at ``temperature``; what h follows is ``proxy_signal``.

    On a distillation token: (1 - ``alpha``) CE(s, q) + ``alpha`` D(h, t) + the same mutual terms, D as in DeiT. Of K teachers
    all but CE is the mean over k; AEKD's weights are of the K terms KD(s <- h_k), or of one head's KD(h <- t_k). ``plus`` adds
    the own terms of other methods, without their labels and their KD.
    """

    temperature: Positive = 4.0  # of divergence='kl'; alpha is taken at 1
    weight: Weight = 1.0  # lambda, of the two mutual terms
    head: Literal["auto", "linear", "fused", "token"] = "auto"  # 'auto': the token where there is one, else linear
    form: Literal["paper", "code"] = "paper"
    proxy: Literal["shared", "network", "teacher_copy"] = "shared"  # 'network': another student; both train a whole network
    proxy_signal: ProxySignal | None = None  # None: 'kl' in the paper, 'l2' in the code
    ce_temperature: Positive = 1.0  # of proxy_signal 'ce'
    proxy_labels: bool | None = None  # does the shadow see labels? None: no in the paper, yes in the code
    divergence: Divergence = "kl"  # of all KD terms
    detach_features: bool = False  # True: the shadow does not train the features that it reads
    own_bn: bool = False  # a second path through the student's convolutions with batch norms of its own
    width: Share = 1.0  # of the channels that the shadow reads
    width_applies_to: Literal["backbone", "head"] = "backbone"  # 'backbone': of every convolution; needs own_bn
    logit_scale: Positive | None = None  # of normalised logits; None: raw in the paper, 3.1415 in the code
    fused_taps: tuple[str, str, str] | None = None  # None: the student's last three stages; the code's are 1, 2, 3
    warmup_epochs: Weight = 0.0  # epochs in which all terms but the labels' grow, as some of the authors' logs show
    teachers: Annotated[int, Field(ge=1)] = 1  # roles teacher, teacher2, ..
    heads: Literal["each", "one"] | None = None  # None: one on a token, else one for each teacher
    teacher_reduction: Literal["mean", "sum"] = "mean"
    weights: Literal["aver", "aekd"] = "aver"
    weights_on: Literal["student", "all"] = "student"  # 'all': a head's own terms have its weight too
    tolerance: Share = 0.6  # aekd only: the most that one teacher weighs
    normalise_gradients: bool = False  # aekd only
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5  # token only
    hard: bool = True  # token only
    tau: Positive | None = None  # token only, of D where it is not hard; None: ``temperature``
    inference: Literal["average", "class"] = "average"  # token only: what the student answers
    plus: tuple[AnyMethod, ...] = ()  # methods with a term of their own, as FitNets() or Crd()
    kind: Literal["shake"] = "shake"

    paper: ClassVar[Paper] = Paper(
        title="Shadow Knowledge Distillation: Bridging Offline and Online Knowledge Transfer",
        authors="Li, Jin",
        year=2022,
        venue="NeurIPS",
        section="3",
        formula="CE(s, y) + KD(s <- sg h) + KD(h <- sg s) + KD(h <- t)",
        published=(
            "WRN-40-2 -> WRN-16-2: 76.82 (supplement, table 1); 76.62 (poster)",
            "ResNet-110 -> ResNet-20: 72.02, proxy 71.96; own batch norms 72.16, half their width 71.15 (tables 1 and 3)",
            "separate proxy: ResNet-20 71.82, WRN-16-2 76.36, VGG-8 74.35 (supplement, table 1)",
            "signal l2 76.68, ce 76.45, kl with labels 75.73, WRN-40-2 -> WRN-16-2 (supplement, table 2)",
            "three teachers: VGG-16 76.89, one head 75.95; AVER 76.82, AEKD 76.88 on WRN-16-2 (supplement, table 5; poster)",
            "WRN-16-2: with FitNets 76.91, with CRD 77.17, with the alpha-divergence 77.17 (supplement, tables 4 and 6)",
        ),
    )

    @model_validator(mode="after")
    def _consistent(self) -> Any:
        found = contradiction(self)
        if found:
            raise ValueError(found)
        return self

    @property
    def signal(self) -> ProxySignal:
        return self.proxy_signal or ("kl" if self.form == "paper" else "l2")

    @property
    def labels(self) -> bool:
        return self.form == "code" if self.proxy_labels is None else self.proxy_labels

    @property
    def scale(self) -> float | None:
        return 3.1415 if self.logit_scale is None and self.form == "code" else self.logit_scale

    @property
    def roles(self) -> tuple[str, ...]:
        return numbered("teacher", self.teachers)

    def needs(self) -> Needs:
        others = [method.needs() for method in self.plus]
        coupled = self.weights == "aekd" or any(needs.couples for needs in others)
        return Needs(
            frozen=self.roles,
            taps=self._taps(others),
            cuts=united(needs.cuts for needs in others),
            distillation_head=self.head == "token",
            labels=any(needs.labels for needs in others),
            whole_weights=self.own_bn,
            couples="micro-batch" if coupled else None,
        )

    def _taps(self, others: list[Needs]) -> dict[str, tuple[str, ...]]:
        asked = [needs.taps for needs in others]
        if self.form == "code":
            asked = [dict.fromkeys(self.roles, self.fused_taps or ("stages",)), *asked]
        roles = united(tuple(taps) for taps in asked)
        return {role: united(taps.get(role, ()) for taps in asked) for role in roles}

    def build(self, context: Context) -> Distiller:
        student = context.networks["student"]
        if self.form == "code":
            return CodeDistiller(self, context)
        if self.proxy != "shared" or self.own_bn:
            return PathDistiller(self, context)
        if self.head == "token" or (self.head == "auto" and student.has_distillation_head):
            require_distillation_head(student, self.kind)
            return TokenDistiller(self, context)
        return FeatureDistiller(self, context)


def united(words: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    """All words, each once, in order."""
    return tuple(dict.fromkeys(word for some in words for word in some))
