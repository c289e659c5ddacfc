"""What a worker meets when it hands its share over is told: by one line, at the start where it can be known."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest
import torch

from kdscale.data import TrainStream, open_split, plan
from kdscale.data.evaluate import Rounds
from kdscale.data.loading import Loading
from kdscale.data.reader import Rows
from kdscale.data.table import Part
from kdscale.errors import DataError
from kdscale.recipe.data import Data


def opened(packed: Path) -> TrainStream:
    data = Data(str(packed), batch=8)
    split = open_split(data, "train")
    settings = {"rank": 0, "ranks": 1, "accumulate": 1, "device": torch.device("cpu"), "classes": 3, "workers": 1}
    return TrainStream(split, data, plan(data, len(split), None, 2), seed=5, **settings)  # type: ignore[arg-type]


def test_a_small_limit_of_files_is_said_at_the_start(packed: Path) -> None:
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 10, old[1]))
    try:
        with pytest.raises(
            DataError, match=r"files may have 4 KB here \(ulimit -f\), .* raise the limit, or set data.workers=0"
        ):
            next(iter(opened(packed).batches(0)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


class Lost:
    """A reader whose parts cannot be handed over, as where shared memory is refused: it asks for the limit in the worker."""

    size = 64

    def look_up(self, positions: np.ndarray) -> Rows:
        none = np.zeros((len(positions), 0))
        return Rows(positions, positions, positions, positions.astype(np.uint64), none, none.astype(np.int64))

    def read(self, rows: Rows, following: Rows | None = None) -> Part:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 10, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        count = len(rows.positions)
        return Part(torch.zeros(count, 64, 64, 3, dtype=torch.uint8), torch.zeros(count, 13, dtype=torch.int64))


def test_what_cannot_be_handed_over_is_told_by_its_own_error() -> None:
    """Neither a hang nor the end of the batches without a word."""
    loading = Loading(Rounds(64, 0, 1, 16), Lost(), 1, 2, 0, False)
    try:
        with pytest.raises(DataError, match=r"data worker 0 of rank 0 failed: RuntimeError: .*File too large"):
            next(iter(loading))
    finally:
        loading.close()
