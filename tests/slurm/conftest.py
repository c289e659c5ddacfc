"""One small cluster for all tests that need it, and a run that lasts long enough to be interrupted."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine import small

from .cluster import Cluster, missing
from .jobs import Place


@pytest.fixture(scope="session")
def place() -> Iterator[Place]:
    """A cluster with data, recipes and a folder for runs."""
    lacking = missing()
    if lacking:
        pytest.skip(f"needs {', '.join(lacking)}: apt-get install slurmctld slurmd slurm-client munge")
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # short: the name of a socket in it may have 107 letters
    try:
        with Cluster(folder) as cluster:
            cluster.environment |= small.environment() | {
                "PATH": cluster.environment["PATH"],
                "KDSCALE_PYTHON": sys.executable,
            }
            yield Place(cluster, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
