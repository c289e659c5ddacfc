from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from kdscale.export import Report, export_network

from .hub import Hub
from .students import deit, facts


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """One export of a small distilled DeiT, proved by both loaders; tests do not change it."""
    return export_network(deit(), tmp_path_factory.mktemp("exported") / "deit", facts())


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub = Hub()
    yield hub
    hub.close()


@pytest.fixture
def copied(exported: Report, tmp_path: Path) -> Path:
    """A copy of the export that a test may spoil."""
    return Path(shutil.copytree(exported.folder, tmp_path / "copied"))
