"""Runs in this process share one set of ranks; tiny shards are made once a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdscale.engine import teach as teaching
from kdscale.engine.parallel import Session, connect
from tests.engine import small
from tests.engine.taught import BYTES, recipe_of, taught


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.shards(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def session() -> Session:
    return connect()


@pytest.fixture(scope="module")
def store(data: Path, session: Session, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The teacher's answers to two epochs, in four shards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teaching, "SHARD", BYTES)
        return taught(recipe_of(data), tmp_path_factory.mktemp("store") / "s", session, type="fp32")
