"""How far apart two runs of one recipe are: each loss of each step, and the weights, buffers and averages that phases left.

Rounding grows as training goes on, by leaps: where it changes the sign before a ReLU, a loss moved from 1e-7 to 2e-5 within
three steps, in one process whose start was moved by 1e-7 as well as between one process and two. What is wrong shows at once.
So what is allowed begins small and doubles with the steps.

A single weight is a poor judge. Where the true gradient is zero (a bias before a batch norm, the keys' bias of attention) Adam
turns its rounding into steps, so that weight wanders and nothing else changes. Weights are judged by the parts that they make up.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
MISSING = math.inf
DOUBLING, MOST = 2, 32.0  # steps in which what is allowed of a loss doubles, and as far as it grows
Losses = dict[tuple[str, int], dict[str, float]]


@dataclass(frozen=True)
class Tolerance:
    """``loss``: in a phase's first step, of a loss's size, or of 1 where it is smaller. ``growth``: as far as that may grow.
    ``weights``: of the norm of a part's weights, that of the difference."""

    loss: float
    growth: float
    weights: float

    @classmethod
    def of(cls, precision: str, equal: bool, alike: bool = True) -> Tolerance:
        """``equal``: both runs have as many ranks. ``alike``: what a process computes at once is the same on either side."""
        if precision == "bf16":
            return cls(5e-3, 1.0, 5e-2)
        if not alike:
            return cls(5e-5, MOST, 5e-3)
        return cls(5e-6 if equal else 2e-5, MOST, 1e-3)

    def at(self, step: int) -> float:
        """Of a loss in step number ``step`` of a phase, from 1."""
        return float(self.loss * min(self.growth, 2.0 ** ((step - 1) / DOUBLING)))


@dataclass(frozen=True)
class Difference:
    """The largest ones. ``loss``: as in :class:`Tolerance`; ``weight``: of a single one, absolute; ``part``: relative, of
    ``part_name``; ``wrong``: what is not within the tolerance, a line each."""

    loss: float
    step: int | None
    weight: float
    weight_name: str
    part: float
    part_name: str
    wrong: tuple[str, ...]


def compare(run: Path, reference: Path, allowed: Tolerance, statistics: bool = True) -> Difference:
    """``statistics``: whether those of BatchNorm are compared too, which follow the number of micro-batches."""
    apart = list(_apart(losses(run), losses(reference)))
    loss, (_, step), _ = max(apart, default=(0.0, ("", 0), ""))
    weight, weight_name, part, part_name = 0.0, "", 0.0, ""
    for file in _files(run, reference):
        single, parts = weights_apart(run / file, reference / file, statistics)
        weight, weight_name = max((weight, weight_name), *((d, f"{file.parent.name}/{n}") for n, d in single.items()))
        part, part_name = max((part, part_name), *((d, f"{file.parent.name}/{n}") for n, d in parts.items()))
    wrong = []
    beyond = [(place[1], place[0], name, d) for d, place, name in apart if not d <= allowed.at(place[1])]
    if beyond:
        first, phase, name, d = min(beyond)
        wrong.append(f"{name!r} by {d:.1e} in step {first} of phase {phase}")
    if not part <= allowed.weights:
        wrong.append(f"weights of {part_name} by {part:.1e} of their norm")
    return Difference(loss, step if loss else None, weight, weight_name, part, part_name, tuple(wrong))


def losses(run: Path) -> Losses:
    """(phase, step) -> each loss by name and their sum as 'loss', of every logged step."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {
        (line["phase"], line["step"]): line["losses"] | {"loss": line["loss"]} for line in lines if line["event"] == "train"
    }


def _apart(mine: Losses, theirs: Losses) -> Iterator[tuple[float, tuple[str, int], str]]:
    """(difference, place, name) of every loss that either run has."""
    for place in mine.keys() | theirs.keys():
        a, b = mine.get(place, {}), theirs.get(place, {})
        for name in a.keys() | b.keys():
            yield loss_apart(a.get(name), b.get(name)), place, name


def loss_apart(a: float | None, b: float | None) -> float:
    """Relative to ``b``, or to 1 where that is larger; infinite where either is missing or not finite."""
    if a is None or b is None:
        return MISSING
    return abs(a - b) / max(1.0, abs(b))


def _files(run: Path, reference: Path) -> list[Path]:
    found = {p.relative_to(folder) for folder in (run, reference) for p in folder.glob("phases/*/end.safetensors")}
    return sorted(found)


def weights_apart(mine: Path, theirs: Path, statistics: bool) -> tuple[dict[str, float], dict[str, float]]:
    """(largest absolute difference by tensor, relative difference by part) of two files of tensors."""
    if not (mine.exists() and theirs.exists()):
        return {"the file": MISSING}, {"the file": MISSING}
    single: dict[str, float] = {}
    squares: dict[str, tuple[float, float]] = {}
    with safe_open(mine, "pt") as a, safe_open(theirs, "pt") as b:
        ours, others = set(a.keys()), set(b.keys())
        for name in sorted(ours | others):
            own = name.rpartition(".")[2] in STATISTICS
            if own and not statistics:
                continue
            part = f"{name.partition('.')[0]}{', statistics' * own}"
            before = squares.get(part, (0.0, 0.0))
            if name not in ours or name not in others:
                single[name], squares[part] = MISSING, (MISSING, 0.0)
                continue
            there = b.get_tensor(name).double()
            away = a.get_tensor(name).double() - there
            single[name] = finite(float(away.abs().max())) if away.numel() else 0.0
            squares[part] = before[0] + finite(float(away.square().sum())), before[1] + float(there.square().sum())
    return single, {part: _ratio(*pair) for part, pair in squares.items()}


def _ratio(difference: float, size: float) -> float:
    return math.sqrt(difference / size if size else difference)


def finite(number: float) -> float:
    return number if math.isfinite(number) else MISSING
