"""The order and the shard plan of an ImageNet-21k-sized set at thousands of ranks, walked for a whole epoch on one machine.

    python -m kdscale.benchmarks.order_at_scale [ranks] [samples] [samples a shard]

There are no images: an order is a function of counts, so the run's own code deals every position to its rank here as it would
there. Told are the balance of ranks and shards, what it takes to plan, and what a rank does before its first batch. Each setting
of the order is a process of its own, so that its memory is its own.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kdscale.data.order import sequence
from kdscale.data.plans import check_batch, plan
from kdscale.data.records import RECORD, open_records, write_records
from kdscale.data.stream import Steps
from kdscale.plan.shards import balance
from kdscale.recipe import Augment, Data, Order

RANKS, SAMPLES, SHARD = 4096, 13_153_500, 1000
A_RANK = 4  # images of a step
SETTINGS = {
    "the default order (256 lanes, blocks of 32)": Order(),
    "as many lanes as ranks (blocks of 32, windows of 4)": None,
    "a full permutation (blocks of 1)": Order(block=1),
}
FIRST = 8  # steps whose positions a rank looks up before its first batch


def main(words: list[str]) -> None:
    if words[:1] == ["one"]:
        sys.stdout.write(json.dumps(measured(*map(int, words[1:5]))))
        return
    ranks, samples, shard = (int(w) for w in (*words, *map(str, (RANKS, SAMPLES, SHARD)[len(words) :])))
    for line in lines(ranks, samples, shard):
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


def lines(ranks: int, samples: int, shard: int) -> Iterator[str]:
    yield (
        f"{samples:,} samples in {-(-samples // shard):,} shards, {ranks:,} ranks, batch {A_RANK * ranks:,}: one epoch of each order"
    )
    for number, name in enumerate(SETTINGS):
        command = [sys.executable, "-m", "kdscale.benchmarks.order_at_scale", "one"]
        done = subprocess.run(
            [*command, *map(str, (number, ranks, samples, shard))], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
        yield from told(name, json.loads(done.stdout))


def told(name: str, found: dict[str, Any]) -> Iterator[str]:
    yield f"{name}"
    yield f"  samples a rank {_ends(found['samples_a_rank'])}; each sample once: {found['once']}"
    yield f"  shards a rank {_ends(found['shards_a_rank'])} of {found['shards']:,}; reads a shard {_ends(found['reads_a_shard'])}"
    yield f"  shards a step {_ends(found['shards_a_step'])}; requests for each block {found['requests']:.2f}"
    yield f"  the whole epoch walked in {found['seconds']:.1f} s, {1e6 * found['seconds'] / found['positions']:.2f} us a position"
    yield f"  memory {found['peak'] - found['base']:.0f} MB beside the {found['base']:.0f} of the interpreter and its libraries"
    yield (
        f"  a rank: index of {found['index']:.0f} MB mapped in {1e3 * found['open']:.1f} ms, first {FIRST} steps looked up in"
        f" {1e3 * found['first']:.1f} ms at step 0 and in {1e3 * found['late']:.1f} ms at step 1 000 000"
    )


def measured(number: int, ranks: int, samples: int, shard: int) -> dict[str, Any]:
    """One order at scale: its balance over an epoch, seconds, and MB of this process."""
    asked = list(SETTINGS.values())[number] or Order(lanes=ranks, window=4)
    data = Data("none", batch=A_RANK * ranks, train=Augment(), order=asked)
    whole = plan(data, samples, 300.0, None)
    check_batch(whole, ranks, 1)
    order = sequence(data, whole, seed=7)
    counts = np.minimum(np.arange(0, samples + shard, shard, dtype=np.int64), samples)
    base = _peak()
    began = time.perf_counter()
    found = balance(order, whole, counts, ranks, samples)
    seconds = time.perf_counter() - began
    peak = _peak()
    start = _start_of_a_rank(order, whole, counts, ranks)
    even = found.reads_a_shard[0] == counts[-1] - counts[-2] and found.reads_a_shard[1] == shard
    facts = {name: getattr(found, name) for name in found.__slots__}
    return {**facts, **start, "seconds": seconds, "peak": peak, "base": base, "once": bool(even and _once(order, samples))}


def _start_of_a_rank(order: Any, whole: Any, counts: Any, ranks: int) -> dict[str, float]:
    """Seconds until a rank knows its first samples, with an index on disk as packing writes it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.index"
        write_records(path, counts, np.zeros(int(counts[-1]), RECORD))
        began = time.perf_counter()
        open_records(path)
        opened = time.perf_counter() - began
        size = path.stat().st_size / 1e6
    looked = []
    for step in (0, 1_000_000):
        steps = Steps(whole, ranks - 1, ranks, 1, step)
        began = time.perf_counter()
        order.at(np.concatenate([steps.positions(number) for number in range(FIRST)]))
        looked.append(time.perf_counter() - began)
    return {"open": opened, "index": size, "first": looked[0], "late": looked[1]}


def _once(order: Any, samples: int) -> bool:
    """Whether the first epoch holds every sample exactly once."""
    seen = np.zeros(samples, bool)
    for start in range(0, samples, 1 << 20):
        found, _, _ = order.at(np.arange(start, min(start + (1 << 20), samples), dtype=np.int64))
        seen[found] = True
    return bool(seen.all())


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _ends(pair: list[int]) -> str:
    return f"{pair[0]:,}" if pair[0] == pair[1] else f"{pair[0]:,} to {pair[1]:,}"


if __name__ == "__main__":
    main(sys.argv[1:])
