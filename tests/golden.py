"""Stored cases of published losses, and how near a computed one must come.

``KDSCALE_GOLDEN`` names another folder of the same form (``baselines/`` and ``methods/``, with their ``index.json``).
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from .shared import shared

DTYPES = [torch.float64, torch.float32]


def golden(*parts: str) -> Path:
    chosen = os.environ.get("KDSCALE_GOLDEN")
    if not chosen:
        return shared("golden", *parts)
    assert Path(chosen).is_dir(), f"KDSCALE_GOLDEN={chosen} is no folder"
    if not Path(chosen, *parts).exists():
        pytest.skip(f"{'/'.join(parts)} is not in {chosen}")
    return Path(chosen, *parts)


@dataclass
class Tolerance:
    """Relative: of a loss, and of a gradient to its largest element; ``floor`` is absolute."""

    loss: float
    gradient: float
    floor: float


BASELINES = {torch.float64: Tolerance(1e-9, 1e-7, 1e-13), torch.float32: Tolerance(1e-5, 1e-4, 1e-6)}
METHODS = {torch.float64: Tolerance(1e-10, 1e-10, 0.0), torch.float32: Tolerance(1e-5, 1e-5, 0.0)}


def near(actual: Tensor, expected: Tensor, relative: float, floor: float = 0.0) -> None:
    limit = relative * float(expected.abs().max()) + floor
    worst = float((actual.detach().double() - expected.double()).abs().max())
    assert worst <= limit, f"off by {worst:.3g}, allowed {limit:.3g}"


@dataclass
class Case:
    """Inputs (leaves that want a gradient) and stored outputs, by their names without prefix."""

    given: dict[str, Tensor]
    stored: dict[str, Tensor]
    hyper: dict[str, Any]
    tolerance: Tolerance

    def value(self, name: str, actual: Tensor) -> None:
        near(actual, self.stored[name], self.tolerance.loss)

    def gradients(self, loss: Tensor, prefix: str, names: list[str]) -> None:
        wanted = torch.autograd.grad(loss, [self.given[n] for n in names], retain_graph=True, materialize_grads=True)
        for name, actual in zip(names, wanted, strict=True):
            near(actual, self.stored[prefix + name], self.tolerance.gradient, self.tolerance.floor)


def leaves(tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {n: t.to(dtype).requires_grad_() if t.is_floating_point() else t for n, t in tensors.items()}


def under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def baselines_case(file: str, name: str, dtype: torch.dtype) -> Case:
    """Case ``name`` ('kd/T4') of ``file`` ('logits.safetensors')."""
    stored = under(load_file(golden("baselines", file)), f"{name}/")
    cases = json.loads(golden("baselines", "index.json").read_text())["cases"]
    hyper = next(c["hyperparameters"] for c in cases if c["name"] == name)
    return Case(leaves(under(stored, "in/"), dtype), stored, hyper, BASELINES[dtype])


def methods_case(name: str, dtype: torch.dtype) -> Case:
    stored = load_file(golden("methods", f"{name}.safetensors"))
    hyper = json.loads(golden("methods", "index.json").read_text())[name]["hyper"]
    return Case(leaves(under(stored, "in."), dtype), under(stored, "out."), hyper, METHODS[dtype])
