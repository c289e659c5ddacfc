"""How long the first batch takes when training starts in the middle of a long epoch, against a start at step 0.

    python -m kdscale.benchmarks.first_batch SHARDS     (a packed data set; its index is repeated to ImageNet's 1 281 167 samples)

Both starts are taken in turn in one process; milliseconds of wall time, medians of 20 pairs.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from kdscale.data import Split, TrainStream, open_split, plan
from kdscale.data.records import RECORD, open_records, write_records
from kdscale.recipe import Augment, Data

SAMPLES, STEP, PAIRS = 1_281_167, 10**8 + 17, 20


def repeated(split: Split, folder: Path, samples: int) -> Split:
    """The split with its index repeated to ``samples`` entries."""
    path = folder / "large.index"
    write_records(path, np.array([0, samples]), np.resize(np.asarray(split.records), samples).astype(RECORD))
    counts, records = open_records(path)
    info = replace(split.info, samples=samples, labels=records["label"])
    return replace(split, index_path=path, counts=counts, records=records, info=info)


def main(source: str) -> None:
    data = Data(source, batch=64, train=Augment.cifar(28), workers=0)
    with tempfile.TemporaryDirectory() as folder:
        first = open_split(data, "train")
        split = repeated(replace(first, shards=first.shards[:1]), Path(folder), SAMPLES)
        steps = plan(data, SAMPLES, None, 10**9)
        stream = TrainStream(
            split, data, steps, seed=0, rank=0, ranks=1, accumulate=1,
            device=torch.device("cpu"), classes=split.info.classes, workers=0,
        )  # fmt: skip

        def seconds(step: int) -> float:
            began = time.perf_counter()
            next(iter(stream.batches(step)))
            return time.perf_counter() - began

        seconds(0)
        pairs = [(seconds(0), seconds(STEP)) for _ in range(PAIRS)]
    early, late = (1000 * statistics.median(column) for column in zip(*pairs, strict=True))
    sys.stdout.write(f"first batch of 64: {early:.1f} ms at step 0, {late:.1f} ms at step {STEP} of {SAMPLES} samples\n")


if __name__ == "__main__":
    main(sys.argv[1])
