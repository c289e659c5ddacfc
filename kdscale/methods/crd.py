"""Contrastive representation distillation: each network's embedding of an image finds the other's among many thousand others.

Both linear embeddings are trained, the teacher's too. The others come from two memories, one row a training sample and
network, that lag behind: a row moves half-way to its sample's embedding after each step that used it. The two normalisers
are measured on the first batch, while the memories are still random, and stay for good: that is how the published numbers
came about.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from .. import keys
from ..errors import RecipeError
from ..losses.contrastive import contrast_loss, contrast_scores, embedding, remembered
from ..recipe import Needs, Paper
from ..recipe.frozen import value
from ..types import Batch, Context, Losses, Outputs, Progress, Taught
from .memory import Negatives, drawn_memory
from .terms import Positive, Term, TermMethod, Weight

DRAWS, STUDENT, TEACHER = 21, 22, 23  # what a key is for


@value
class Crd(TermMethod):
    """``ce`` CE + ``kd`` KD + ``weight`` (contrast of the student + contrast of the teacher), over ``negatives`` others.

    CRD+KD of the paper is ``Crd(kd=1.0)``.
    """

    weight: Weight = 0.8
    negatives: Annotated[int, Field(gt=0)] = 16384  # a sample; with replacement where the set has fewer
    tau: Positive = 0.07  # temperature of the contrast
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5  # of a memory's rows
    width: Annotated[int, Field(gt=0)] = 128  # of the embeddings
    positive: Literal["exact", "relax"] = "exact"  # 'relax': any sample of the class
    kind: Literal["crd"] = "crd"

    paper: ClassVar[Paper] = Paper(
        title="Contrastive Representation Distillation",
        authors="Tian, Krishnan, Isola",
        year=2020,
        venue="ICLR",
        section="3.2",
        formula="CE(s, y) + 0.8 sum over {s, t} of [-log P_0/(P_0 + K/n) - sum_k log (K/n)/(P_k + K/n)], P = exp(m.v/tau)/Z",
        published=(
            "WRN-40-2 -> WRN-16-2: 75.48, with KD 75.64 (SHAKE supplement, table 4)",
            "ResNet-32x4 -> ResNet-8x4: 75.51, with KD 75.46 (SHAKE supplement, table 4)",
            "VGG13 -> VGG8: 73.94, with KD 74.29 (SHAKE supplement, table 4)",
        ),
    )

    @property
    def taps(self) -> Mapping[str, tuple[str, ...]]:
        return {"student": ("pooled",), "teacher": ("pooled",)}

    def needs(self) -> Needs:
        return Needs(frozen=("teacher",), taps=self.taps, labels=True, couples="micro-batch")

    def term(self, context: Context) -> Term:
        data = context.phase.data
        if data is not None and data.repeats > 1:
            raise RecipeError(
                f"method 'crd' remembers one embedding a sample and step, and data.repeats={data.repeats} shows a sample more"
                " than once: set data.repeats=1"
            )
        if data is not None and (data.train.mixup or data.train.cutmix):
            warnings.warn("method 'crd' remembers the embeddings of mixed images as those of their first sample", stacklevel=2)
        return ContrastTerm(self, context)


class ContrastTerm(Term):
    """Rows that a step has seen wait in ``seen`` until it is done: all its micro-batches compare with the same memories."""

    memory_student: Tensor  # [n,width]
    memory_teacher: Tensor
    normalisers: Tensor  # [2]: of the student's scores and of the teacher's; 0 until the first batch
    draws: Tensor  # [] int64: key of (seed, phase, step)

    def __init__(self, method: Crd, context: Context) -> None:
        super().__init__()
        self.method, self.task, self.world, self.seed = method, context.task, context.world, context.seed
        self.samples = context.data.samples
        self.embed_student = nn.Linear(context.networks["student"].shape("pooled")[0], method.width)
        self.embed_teacher = nn.Linear(context.networks["teacher"].shape("pooled")[0], method.width)
        self.negatives = Negatives(context.data, method.negatives, method.positive == "relax")
        for name, use in (("memory_student", STUDENT), ("memory_teacher", TEACHER)):
            memory = drawn_memory(self.samples, method.width, keys.key(context.seed, use), context.device)
            self.register_buffer(name, memory)
        self.register_buffer("normalisers", torch.zeros(2))
        self.register_buffer("draws", torch.zeros((), dtype=torch.int64), persistent=False)
        self.seen: list[tuple[Tensor, Tensor]] = []
        self.settled = False  # a step of this process is done, so the normalisers are there

    def forward(self, outputs: Outputs, batch: Batch, taught: Taught) -> Losses:
        student = embedding(self.embed_student(outputs.taps["pooled"]))
        teacher = embedding(self.embed_teacher(taught["teacher"].taps["pooled"]))
        contrast = self.negatives(self.draws, batch.index, batch.position)
        scores = (
            contrast_scores(student, self.memory_teacher, contrast, self.method.tau),
            contrast_scores(teacher, self.memory_student, contrast, self.method.tau),
        )
        normalisers = self.normalisers if self.settled else self._settle(scores, batch.valid)
        values = contrast_loss(scores[0], normalisers[0], self.samples) + contrast_loss(scores[1], normalisers[1], self.samples)
        numbers = torch.stack([batch.position, batch.index, batch.valid.long()], 1)
        self.seen.append((torch.cat([student, teacher], 1).detach(), numbers))
        rows: Any = self.task.rows(outputs, batch, taught, self.world)
        return {"crd": self.method.weight * rows.mean(values)}

    @torch.no_grad()
    def _settle(self, scores: tuple[Tensor, Tensor], valid: Tensor) -> Tensor:
        """The normalisers, measured on all ranks where they are not there yet: n times the mean score of the rows that count.

        Where none counts it is 1, the score of two embeddings at right angles.
        """
        counted = [s.masked_fill(~valid[:, None], 0.0).sum(dtype=torch.float64) for s in scores]
        sums = self.world.total(torch.stack([*counted, valid.sum(dtype=torch.float64) * scores[0].shape[1]]))
        mean = torch.where(sums[2] > 0, sums[:2] / sums[2].clamp(min=1), 1.0)
        measured = (self.samples * mean).to(self.normalisers.dtype)
        normalisers = torch.where(self.normalisers > 0, self.normalisers, measured)
        self.normalisers.copy_(normalisers)
        return normalisers

    def before_step(self, progress: Progress) -> None:
        self.seen.clear()  # of a step that was skipped
        self.draws.fill_(keys.signed(keys.key(self.seed, DRAWS, progress.phase, progress.step)))

    @torch.no_grad()
    def after_step(self, progress: Progress) -> None:
        """Both memories take the step's embeddings of all ranks, in order of position."""
        embeddings, numbers = (self.world.gather(torch.cat(parts)) for parts in zip(*self.seen, strict=True))
        order = numbers[:, 0].argsort()
        index, valid = numbers[order, 1], numbers[order, 2] > 0
        student, teacher = embeddings[order].chunk(2, 1)
        for memory, rows in ((self.memory_student, student), (self.memory_teacher, teacher)):
            memory[index] = remembered(memory, index, rows, self.method.momentum, valid)
        self.seen.clear()
        self.settled = True
