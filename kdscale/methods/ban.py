"""Born-again networks: each generation is drawn afresh and learns from the one before, at temperature 1.

Two variants ask why that helps (section 3.2 of the paper). ``cwtm``, confidence weighted by teacher max, takes of the teacher
only how sure it is: no distribution is imitated, and a sample's cross-entropy with its label weighs as much as the teacher's
largest probability does among those of the batch. ``dkpp``, dark knowledge with permuted predictions, leaves the largest
probability where it is and exchanges the others. The paper has both without further labels, and does not say how often
the permutation is drawn: here for each sample and step, which leaves nothing of what the classes have in common.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from .. import keys
from ..losses.born_again import confidence, permuted
from ..losses.logits import cross_entropy, soft_cross_entropy
from ..recipe import FromPhase, Needs, Paper, Phase, numbered
from ..recipe.frozen import value
from ..tasks import Rows, logits_of
from ..types import Batch, Context, Losses, Outputs, Progress, Taught
from .base import Distiller
from .chain import ChainMethod, Learner, part_of
from .terms import Positive, Weight

PERMUTATION = 24  # what a key is for


@value
class BAN(ChainMethod):
    """CE(s, y) + KD(s <- the generation before), T = 1; the first generation's is the role teacher. A phase a generation.

    ``labels=False`` leaves the labels out, as the best rows of the paper do. ``ensemble``: the last generation also measures
    the mean of all generations' probabilities, for which it holds the earlier ones; the teacher is not among them.

    ``variant`` 'cwtm' is ``ce`` sum_b w_b CE(s_b, y_b), w_b = max t_b / sum_a max t_a over the batch of all ranks, and no KD,
    so that ``kd`` is of no use there; each of accumulated micro-batches has weights of its own. 'dkpp' is KD from a teacher
    whose classes but the largest are exchanged, beside the labels unless ``labels=False``, as the paper has it.
    """

    temperature: Positive = 1.0
    ce: Weight = 1.0
    kd: Weight = 1.0
    generations: Annotated[int, Field(ge=1)] = 3
    labels: bool = True
    variant: Literal["ban", "cwtm", "dkpp"] = "ban"
    ensemble: bool = False
    generation: Annotated[int, Field(ge=1)] | None = None  # of an expanded part, from 1
    kind: Literal["ban"] = "ban"

    paper: ClassVar[Paper] = Paper(
        title="Born-Again Neural Networks",
        authors="Furlanello, Lipton, Tschannen, Itti, Anandkumar",
        year=2018,
        venue="ICML",
        section="3",
        formula="CE(s, y) + KL(t || s), t the generation before; cwtm: sum_b [max t_b / sum_a max t_a] CE(s_b, y_b) (equation 10);"
        " dkpp: KL(phi t || s), phi permutes all but the largest (equation 11)",
        published=(
            "CIFAR-100, error of DenseNet-90-60 (teacher 17.69): BAN 16.69, with labels 16.93, CWTM 17.42, DKPP 17.43 (table 2)",
            "the same, DenseNet-80-80 (17.16): 16.36, 16.50, 17.16, 16.84; after three generations 15.50",
        ),
    )

    @model_validator(mode="after")
    def _consistent(self) -> Any:
        if self.ensemble and self.generations == 1:
            raise ValueError("one generation is no ensemble: take generations=2 or more, or ensemble=false")
        if self.variant == "cwtm" and not self.labels:
            raise ValueError("variant='cwtm' learns from labels alone: take labels=true, or another variant")
        if self.generation is not None and self.generation > self.generations:
            raise ValueError(f"there is no generation {self.generation} of {self.generations}: set generations higher")
        return self

    @property
    def averages(self) -> bool:
        """Whether this part answers for all generations."""
        return self.ensemble and self.generation == self.generations

    def needs(self) -> Needs:
        frozen = numbered("teacher", self.generations - 1) if self.averages else ("teacher",)
        return Needs(frozen=frozen, couples="micro-batch" if self.variant == "cwtm" else None)

    def asks(self, progress: Progress) -> tuple[str, ...]:
        return ("teacher",)

    def phases(self, phase: Phase) -> tuple[Phase, ...]:
        if phase.part is not None:
            return (phase,)
        parts: list[Phase] = []
        for number in range(self.generations):
            method = dataclasses.replace(self, generation=number + 1)
            before = {role: FromPhase(p.name) for role, p in zip(method.needs().frozen, reversed(parts), strict=False)}
            parts.append(part_of(phase, number, f"generation{number + 1}", method, before))
        return tuple(parts)

    def build(self, context: Context) -> Distiller:
        kinds = {"ban": Generation, "cwtm": WeighedGeneration, "dkpp": PermutedGeneration}
        return kinds[self.variant](self, context)


class Generation(Learner):
    method: BAN

    def __init__(self, method: BAN, context: Context) -> None:
        super().__init__(method, context)
        earlier = [context.networks[role] for role in method.needs().frozen] if method.averages else []
        self.earlier = nn.ModuleList(copy.deepcopy(network) for network in earlier)

    def losses(self, batch: Batch, taught: Taught) -> Losses:
        losses = super().losses(batch, taught)
        return losses if self.method.labels else {"kd": losses["kd"]}

    def predictions(self, batch: Batch) -> dict[str, Tensor]:
        """``ensemble``: logarithms of the mean probabilities of all generations."""
        student = logits_of(self.student(batch.images))
        if not self.earlier:
            return {"student": student}
        answers = torch.stack([student.float(), *(logits_of(network(batch.images)) for network in self.earlier)])
        return {"student": student, "ensemble": answers.log_softmax(-1).logsumexp(0) - math.log(len(answers))}


class WeighedGeneration(Generation):
    """The labels alone, each as heavy as the generation before was sure of its own answer."""

    def losses(self, batch: Batch, taught: Taught) -> Losses:
        rows = self.rows(self.student(batch.images), batch, taught)
        weights = confidence(rows.teacher["teacher"], self.method.temperature)
        mean = self.world.total(rows.mean(weights)) / self.world.size
        labelled = weights / mean.clamp(min=torch.finfo(mean.dtype).tiny) * by_label(rows, batch)
        return {"ce": self.method.ce * rows.mean(labelled)}


class PermutedGeneration(Generation):
    """The generation before speaks with its wrong classes exchanged, for each sample and step anew."""

    draws: Tensor  # [] int64: key of (seed, phase, step)

    def __init__(self, method: BAN, context: Context) -> None:
        super().__init__(method, context)
        self.register_buffer("draws", torch.zeros((), dtype=torch.int64), persistent=False)

    def before_step(self, progress: Progress) -> None:
        super().before_step(progress)
        self.draws.fill_(keys.signed(keys.key(self.seed, PERMUTATION, progress.phase, progress.step)))

    def losses(self, batch: Batch, taught: Taught) -> Losses:
        teacher = logits_of(taught["teacher"])
        classes = torch.arange(teacher.shape[-1], device=teacher.device)
        words = keys.torch_fold(keys.torch_fold(self.draws, batch.position)[:, None], classes)
        return super().losses(batch, {"teacher": Outputs(permuted(teacher, words))})


def by_label(rows: Rows, batch: Batch) -> Tensor:
    """Cross-entropy a row [N] with the label, or with the soft target where the batch has them."""
    if batch.targets is None:
        return cross_entropy(rows.logits, rows.labels)
    return soft_cross_entropy(rows.logits, batch.targets)
