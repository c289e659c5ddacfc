"""What an export says of a run beyond the weights: the words and numbers of its card and its configuration."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypedDict

Triple = tuple[float, float, float]


class Evaluation(TypedDict):
    """One measurement of one answer of the run, as ``metrics.jsonl`` has it."""

    name: str  # 'student', 'ema', 'class', 'shadow', 'average', 'teacher'
    split: str
    top1: float  # in [0, 1]
    top5: float  # in [0, 1]
    count: int  # images
    epoch: float


@dataclass(frozen=True, slots=True)
class Teacher:
    name: str
    accuracy: float | None = None  # top-1 in [0, 1], of the evaluation split
    sha256: str | None = None  # of its weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Everything that decides how the student is fed, and what a reader of its card needs to judge and repeat it.

    ``mean``, ``std``, ``crop_pct``, ``interpolation`` and ``size`` are those of the evaluation whose numbers the card gives.
    """

    what: str  # the answer that is exported: 'student', 'ema', 'peer1'
    label_names: tuple[str, ...]  # in order of the classes; () where the data do not name them
    mean: Triple
    std: Triple
    crop_pct: float
    interpolation: str
    size: int  # pixels of a side
    recipe_json: str  # resolved
    recipe_hash: str
    command: str
    version: str  # of kdscale
    method: str  # kind
    paper: str  # its title
    dataset: str
    split: str
    teachers: tuple[Teacher, ...] = ()
    evaluations: tuple[Evaluation, ...] = ()
    seed: int = 0
    hardware: str = ""
    date: str = ""
    seconds: float = 0.0
    dataset_id: str | None = None  # on the Hub, 'ILSVRC/imagenet-1k'
    license: str | None = None  # of the weights, an identifier of the Hub

    @property
    def tag(self) -> str:
        """The tag of these weights beside the architecture's name, as timm writes one: 'kdscale_shake_imagenet'."""
        return "_".join(slug(part) for part in ("kdscale", self.method, self.dataset) if slug(part))

    def measures_this(self, evaluation: Evaluation) -> bool:
        """Whether it measures the very answer that is exported; others stand beside it in the card's table alone."""
        return evaluation["name"] == self.what


def slug(text: str) -> str:
    """Lower-case letters, digits and underscores: 'CIFAR-100' -> 'cifar_100'."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")
