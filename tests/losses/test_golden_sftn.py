"""Stored case of student-friendly teachers, through the whole distiller with what its networks say put in their place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kdscale.methods import Sftn
from kdscale.types import Outputs

from ..golden import DTYPES, Case, methods_case, near
from ..methods.small import built
from ..test_golden import batch_of

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
METHODS: dict[str, Sftn] = {
    "default": Sftn(),
    "tau5_t2": Sftn(temperature=5.0),
    "tau5_no_t2": Sftn(temperature=5.0, kl_t_squared=False),
    "reverse": Sftn(kl_direction="paper"),
}


def loss_of(method: Sftn, case: Case) -> Tensor:
    distiller: Any
    distiller, _ = built(method, "cnn")
    given = case.given
    distiller.answers = lambda batch: (Outputs(given["t"]), [given["r1"], given["r2"]])
    losses: dict[str, Tensor] = distiller(batch_of(given["labels"]), {})
    return torch.stack(list(losses.values())).sum()


@every_dtype
@pytest.mark.parametrize("entry", METHODS)
def test_sftn(entry: str, dtype: torch.dtype) -> None:
    case = methods_case("sftn", dtype)
    loss = loss_of(METHODS[entry], case)
    case.value(f"loss_{entry}", loss)
    if f"grad_{entry}.t" in case.stored:
        case.gradients(loss, f"grad_{entry}.", ["t", "r1", "r2"])


@every_dtype
def test_a_detached_target_is_another_method(dtype: torch.dtype) -> None:
    case = methods_case("sftn", dtype)
    case.gradients(loss_of(Sftn(detach_target=True), case), "grad_detached_target.", ["t"])
    (taught,) = torch.autograd.grad(loss_of(Sftn(), case), case.given["t"])
    with pytest.raises(AssertionError, match="off by"):
        near(taught, case.stored["grad_detached_target.t"], 0.1)
