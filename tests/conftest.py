"""What all tests share: quiet hypothesis deadlines (two shared cores have no steady clock), few threads, long files first."""

from __future__ import annotations

import gc
import os

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile("kdscale", deadline=None, max_examples=50, derandomize=True)
hypothesis.settings.load_profile("kdscale")
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)

LONG = ("test_methods.py", "test_parallel.py", "test_ranks.py", "test_run.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file stays on one worker, so one of minutes that comes last would keep the other worker waiting."""
    items.sort(key=lambda item: item.path.name not in LONG)


def pytest_collection_finish() -> None:
    """Every phase ends with a collection, which would look through all imported modules for half a second each time."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # libraries that count what is lost at the end would tell of it
