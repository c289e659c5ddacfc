"""KDCL: networks from scratch, each with its own augmentation of an image, follow one target that is made of all of them."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ..losses import kdcl
from ..losses.logits import kd_kl
from ..losses.precision import wide
from ..recipe import Needs, Paper
from ..recipe.frozen import value
from ..tasks import logits_of
from ..types import Batch, Context, Losses, Progress, Taught, World
from .base import Distiller, Method
from .peers import PeersDistiller, peer_roles
from .terms import Positive, Weight


@value
class KDCL(Method):
    """``ce`` CE of each network + ``weight`` T^2 KL(target || own); ``variant`` says how the target is made.

    ``mean`` is no variant of the paper's but of a public program (with ce 0.5 and weight 0.5). ``general`` weighs the
    networks by how their errors went together on the training batches of the epoch before; in the first all weigh the same.
    """

    variant: Literal["naive", "linear", "min_logit", "general", "mean"] = "naive"
    students: Annotated[int, Field(ge=2, le=4)] = 2  # networks in all: student, peer1, ..
    temperature: Positive = 4.0  # of the CRD protocol here; a public program has 2
    ce: Weight = 1.0
    weight: Weight = 1.0
    views: Literal["separate", "same"] = "separate"  # whether each network has an augmentation of its own
    kind: Literal["kdcl"] = "kdcl"

    paper: ClassVar[Paper] = Paper(
        title="Online Knowledge Distillation via Collaborative Learning",
        authors="Guo, Wang, Wu, Yu, Liang, Hu, Luo",
        year=2020,
        venue="CVPR",
        section="3",
        formula="sum_i [CE(z_i, y) + T^2 KL(sg z_T || z_i)], z_T made of all z_j by variant",
        published=(
            "WRN-40-2 and WRN-16-2: 75.45, naive (SFTN, table 4)",
            "resnet32x4 and resnet8x4: 75.21, naive (SFTN, table 4)",
            "resnet32x4 and ShuffleV1: 73.98, naive (SFTN, table 4)",
            "ResNet-50 and VGG-8: 73.48, naive (SFTN, table 4)",
        ),
    )

    def needs(self) -> Needs:
        return Needs(
            trained=peer_roles(self.students),
            views=self.students if self.views == "separate" else 1,
            couples="micro-batch" if self.variant == "linear" else None,
        )

    def build(self, context: Context) -> Distiller:
        kinds: dict[str, type[KDCLDistiller]] = {"linear": LinearDistiller, "general": GeneralDistiller}
        return kinds.get(self.variant, KDCLDistiller)(self, context)


class KDCLDistiller(PeersDistiller):
    """The variants whose target is a matter of each row alone."""

    made: ClassVar = {"naive": kdcl.naive, "min_logit": kdcl.min_logit, "mean": kdcl.mean}

    def __init__(self, method: KDCL, context: Context) -> None:
        super().__init__(context, {role: context.networks[role] for role in peer_roles(method.students)[1:]})
        self.method = method

    def losses(self, batch: Batch, taught: Taught) -> Losses:
        method, said = self.method, self.answers(batch.images)
        rows = self.rows(said["student"], batch, taught)
        logits = wide(torch.stack([logits_of(outputs) for outputs in said.values()]))
        truth = kdcl.one_hot(rows.labels, logits) if batch.targets is None else batch.targets
        target = self.target(logits.detach(), truth, rows.valid)
        losses = self.labelled(said, batch, method.ce)
        for role, own in zip(self.roles, logits, strict=True):
            losses[f"{role}<-ensemble"] = method.weight * rows.mean(kd_kl(own, target, method.temperature))
        return losses

    def target(self, logits: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
        """The logits [N,C] that all follow. ``logits`` [M,N,C] without gradient, ``truth`` [N,C], ``valid`` [N]."""
        target: Tensor = self.made[self.method.variant](logits, truth)
        return target


class LinearDistiller(KDCLDistiller):
    """One set of weights for the micro-batch of all ranks, each of which solves the same problem."""

    def target(self, logits: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
        count, _, classes = logits.shape
        row = torch.cat([*logits, truth.to(logits), valid[:, None].to(logits)], 1)
        *everyone, truths, counted = torch.split(self.world.gather(row), [classes] * (count + 1) + [1], 1)
        return kdcl.combined(logits, kdcl.linear_weights(torch.stack(everyone), truths, counted[:, 0]))


class GeneralDistiller(KDCLDistiller):
    """Weights from the epoch before, whose sums are buffers of a save: a resumed epoch is the same epoch."""

    def __init__(self, method: KDCL, context: Context) -> None:
        super().__init__(method, context)
        self.errors = EpochErrors(method.students)

    def target(self, logits: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
        self.errors.observe(kdcl.error_products(logits, truth, valid), valid.sum())
        return kdcl.combined(logits, self.errors.weights)

    def before_step(self, progress: Progress) -> None:
        super().before_step(progress)
        self.errors.begin(math.floor(progress.epoch))

    def after_step(self, progress: Progress) -> None:
        self.errors.keep(self.world)


class EpochErrors(nn.Module):
    """How the errors of ``students`` networks go together: summed over the epoch's rows, turned into weights at its end.

    Whether an epoch has ended is found on the device, for the host would have to wait to ask it.
    """

    weights: Tensor  # [M] float64, in use
    products: Tensor  # [M,M] float64: sum over the rows of this epoch so far, of all ranks
    rows: Tensor  # [] float64: how many
    epoch: Tensor  # [] int64: of these sums

    def __init__(self, students: int) -> None:
        super().__init__()
        self.register_buffer("weights", torch.full((students,), 1 / students, dtype=torch.float64))
        self.register_buffer("products", torch.zeros(students, students, dtype=torch.float64))
        self.register_buffer("rows", torch.zeros((), dtype=torch.float64))
        self.register_buffer("epoch", torch.zeros((), dtype=torch.int64))
        self.step: Tensor | None = None  # [M,M + 1] of this rank: products of the step, rows in the first of the last column

    def observe(self, products: Tensor, rows: Tensor) -> None:
        """Adds a micro-batch of this rank."""
        seen = torch.cat([products, rows.to(products).expand(len(products), 1)], 1)
        self.step = seen if self.step is None else self.step + seen

    @torch.no_grad()
    def begin(self, epoch: int) -> None:
        """Before a step of ``epoch``: the first of a new one turns the sums of the last into weights."""
        self.step = None
        turned = (self.epoch != epoch) & (self.rows > 0)
        fresh = kdcl.general_weights(self.products / self.rows.clamp(min=1))
        self.weights.copy_(torch.where(turned, fresh, self.weights))
        self.products.mul_(~turned)
        self.rows.mul_(~turned)
        self.epoch.fill_(epoch)

    @torch.no_grad()
    def keep(self, world: World) -> None:
        """After a step: its sums over all ranks, the same on each."""
        if self.step is not None:
            seen = world.total(self.step)
            self.products.add_(seen[:, :-1])
            self.rows.add_(seen[0, -1])
