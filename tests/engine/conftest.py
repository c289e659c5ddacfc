"""Runs in this process share one set of ranks; tiny shards are made once a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdscale.engine.parallel import Session, connect
from tests.engine import small


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.shards(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def session() -> Session:
    return connect()
