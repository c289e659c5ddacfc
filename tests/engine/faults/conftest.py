"""A run of two ranks to which nothing happened, for those to be compared with to which something does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine import small
from tests.engine.stable import Stable, stable


@pytest.fixture(scope="module")
def forks() -> Iterator[Stable]:
    with stable() as made:
        yield made


@pytest.fixture(scope="module")
def recipe(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.write(tmp_path_factory.mktemp("recipe") / "r.json", small.recipe(data))


@pytest.fixture(scope="module")
def whole(recipe: Path, forks: Stable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks to which nothing happened."""
    out = tmp_path_factory.mktemp("whole") / "out"
    forks.train(recipe, out=out, ranks=2)
    return out
