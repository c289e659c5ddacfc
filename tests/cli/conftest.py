"""One small packed data set, its recipe in a file, and one finished run, for all tests of the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.calling import done
from tests.engine import small


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.shards(tmp_path_factory.mktemp("cli") / "data")


@pytest.fixture(scope="session")
def recipe(data: Path) -> Path:
    return small.write(data.parent / "r.json", small.recipe(data))


@pytest.fixture(scope="session")
def run(recipe: Path) -> Path:
    """The folder of a finished run of two phases, three steps each."""
    file = small.write(recipe.parent / "two.json", small.two_phases(recipe.parent / "data"))
    out = recipe.parent / "run"
    done("train", file, "phases.teacher.steps=3", "phases.student.steps=3", "--out", out)
    return out
