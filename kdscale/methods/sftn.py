"""Student-friendly teachers (SFTN): the teacher is trained together with copies of the student's later blocks.

This phase trains the *teacher*: it is what the phase evaluates, exports and hands on (``FromPhase("sftn", role="teacher")``),
and a later phase of any method distils from it. Of the student the architecture alone is taken; its blocks are drawn afresh
for each branch and thrown away. For a teacher that is trained already, a phase with ``branches_only`` comes first, and this
one takes its branches over by ``carry=("branches",)``.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from ..errors import NetworkError
from ..losses import sftn
from ..networks import Network, freeze
from ..networks.branch import Branch
from ..networks.transforms import Transform
from ..recipe import Needs, Paper
from ..recipe.frozen import value
from ..tasks import logits_of
from ..types import Batch, Context, Losses, Outputs, Taught
from .base import Distiller, Method

Weight = Annotated[float, Field(ge=0)]
Pairing = Literal["index", "resolution"]


@value
class Sftn(Method):
    """``lambda_t`` CE(t, y) + mean over the branches i of ``lambda_kl`` T^2 KL(t || r_i) + ``lambda_ce`` CE(r_i, y).

    Branch i reads the teacher's i-th stage and goes on with the student's stages i + 1 and later. On ImageNet the paper has
    ``lambda_kl`` 1.
    """

    lambda_t: Weight = 1.0
    lambda_kl: Weight = 3.0
    lambda_ce: Weight = 1.0
    temperature: Annotated[float, Field(gt=0)] = 1.0
    kl_direction: sftn.Direction = "code"  # 'code': KL(t || r); 'paper': KL(r || t), as equation 5 is printed
    kl_t_squared: bool = True
    detach_features: bool = False  # True: the branches do not train the teacher's features
    detach_target: bool = False  # True: the divergence does not train the teacher's answer
    transform_norm: bool = True  # False: the transforms are bare convolutions
    pairing: Pairing = "index"  # 'resolution': the teacher's deepest stage whose map is as large
    branches_only: bool = False  # the teacher is held still, in eval mode
    kind: Literal["sftn"] = "sftn"

    paper: ClassVar[Paper] = Paper(
        title="Learning Student-Friendly Teacher Networks for Knowledge Distillation",
        authors="Park, Cha, Jeong, Kim, Han",
        year=2021,
        venue="NeurIPS",
        section="3",
        formula="CE(t, y) + 3 mean_i KL(t || r_i) + mean_i CE(r_i, y)",
        published=(
            "teacher WRN-40-2 for WRN-16-2: 78.20, alone 76.30 (table 1)",
            "teacher resnet32x4 for resnet8x4: 79.41, alone 79.25 (table 1)",
            "WRN-40-2 -> WRN-16-2 by KD: 76.25, from the plain teacher 75.46 (table 1)",
            "resnet32x4 -> resnet8x4 by KD: 76.09, from the plain teacher 73.39 (table 1)",
            "resnet32x4 -> ShuffleV2 by KD: 78.07, from the plain teacher 75.25 (table 2)",
            "ImageNet ResNet-50 -> ResNet-34 by KD: 74.14, from the plain teacher 73.55 (table 3)",
        ),
    )

    def needs(self) -> Needs:
        return Needs(trained=("teacher",), drawn=("student",), cuts=("student",))

    def build(self, context: Context) -> Distiller:
        return SftnDistiller(self, context)


class StudentBranch(nn.Module):
    """A transform of the teacher's map [D,H,W] and the student's blocks behind its stage. ``student`` is used up by this."""

    def __init__(self, given: tuple[int, ...], student: Network, stage: int, norm: bool) -> None:
        super().__init__()
        self.blocks = Branch(student, student.cuts[stage - 1][-1])
        if len(self.blocks.input_shape) != 3:
            raise NetworkError(
                f"method 'sftn' hands the student's blocks a map, and those of {student.name!r} take tokens: take a CIFAR"
                " network or a timm ResNet as the student"
            )
        self.transform = Transform(given, self.blocks.input_shape, norm)

    def forward(self, feature: Tensor) -> Tensor:
        """Logits [B,C]."""
        return logits_of(self.blocks(self.transform(feature)))


class SftnDistiller(Distiller):
    """The teacher, and the branches with their transforms as one part."""

    def __init__(self, method: Sftn, context: Context) -> None:
        super().__init__(context, student="teacher")
        self.method, teacher = method, self.student
        first = context.fresh("student", 1)
        pairs = paired(teacher, first, method.pairing)
        others = (context.fresh("student", number) for number in range(2, len(pairs) + 1))
        self.taps = tuple(tap for tap, _ in pairs)
        self.branches = nn.ModuleList(
            StudentBranch(teacher.shape(tap), student, stage, method.transform_norm)
            for (tap, stage), student in zip(pairs, (first, *others), strict=True)
        )
        if method.branches_only:
            freeze(teacher)

    def answers(self, batch: Batch) -> tuple[Outputs, list[Tensor]]:
        """What the teacher says, and each branch [B,C]."""
        outputs = self.student(batch.images, taps=self.taps)
        features = [outputs.taps[tap] for tap in self.taps]
        if self.method.detach_features:
            features = [feature.detach() for feature in features]
        return outputs, [branch(feature) for branch, feature in zip(self.branches, features, strict=True)]

    def losses(self, batch: Batch, taught: Taught) -> Losses:
        method, (outputs, branches) = self.method, self.answers(batch)
        rows = self.rows(outputs, batch, taught)
        target = rows.logits.detach() if method.detach_target else rows.logits
        losses = self.supervised(outputs, batch, method.lambda_t)
        for number, said in enumerate(branches, 1):
            apart = sftn.agreement(said, target, method.temperature, method.kl_direction, method.kl_t_squared)
            losses[f"branch{number}<-teacher"] = method.lambda_kl / len(branches) * rows.mean(apart)
            labelled = self.supervised(Outputs(said), batch, method.lambda_ce / len(branches))
            losses |= {f"branch{number}<-{name}": loss for name, loss in labelled.items()}
        return losses

    def predictions(self, batch: Batch) -> dict[str, Tensor]:
        outputs, branches = self.answers(batch)
        return {"student": logits_of(outputs)} | {f"branch{number}": said for number, said in enumerate(branches, 1)}


def paired(teacher: Network, student: Network, pairing: Pairing) -> list[tuple[str, int]]:
    """(teacher's tap, number of the student's stage) of each branch; the last stage of neither has one.

    Raises NetworkError where there is no such pair.
    """
    taps = teacher.expanded(("stages",))[:-1]
    stages = range(1, len(student.cuts))
    if pairing == "index":
        pairs = list(zip(taps, stages, strict=False))
    else:
        deepest = {teacher.shape(tap)[1:]: tap for tap in taps}
        sizes = {stage: student.shape(f"stage{stage}")[1:] for stage in stages}
        pairs = [(deepest[size], stage) for stage, size in sizes.items() if size in deepest]
    if not pairs:
        raise NetworkError(
            f"method 'sftn' finds no stage of teacher {teacher.name!r} that the blocks of {student.name!r} could go on from:"
            " take a teacher with stages, a CIFAR network or a timm ResNet as the student, and pairing='index'"
        )
    return pairs
