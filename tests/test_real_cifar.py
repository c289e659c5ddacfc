"""CIFAR-100 whole: packed from its strips, two trained networks score on it what their authors published."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.engine import small
from tests.shared import shared

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cifar100")
    told = small.kdscale("data", "pack", shared("data", "cifar100"), out).stdout
    assert "train of 50000 samples, 100 classes" in told
    assert "val of 10000 samples, 100 classes" in told
    return out


@pytest.mark.parametrize(("network", "top1", "top5"), [("resnet20", 68.83, 91.00), ("resnet56", 72.62, 91.94)])
def test_published_accuracy(cifar: Path, network: str, top1: float, top5: float) -> None:
    """Half precision on disk: resnet56 is right on 7261, and on 7263 as published."""
    told = small.kdscale("evaluate", shared("weights", f"cifar100_{network}"), "--data", cifar).stdout
    found = re.search(r"top1 ([0-9.]+) top5 ([0-9.]+) .* of 10000 images", told)
    assert found is not None, told
    assert float(found[1]) == pytest.approx(top1, abs=0.0101)
    assert float(found[2]) == pytest.approx(top5, abs=0.0101)
