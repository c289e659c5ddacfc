"""Training with a teacher's stored answers against the same training with the network, in one interleaved run.

    python -m kdscale.benchmarks.stored_teacher [cifar|imagenet] [--rounds 8] [--batch N] [--keep all|label|10]

Both sides are the engine's own loop on its own stream (reading, decoding and augmenting counted), with one recipe and one start;
the sides take turns, a step each. Weights are random, images are noise in real shards: neither changes the work.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdscale.benchmarks.step import engine_step
from kdscale.data import pack_arrays
from kdscale.engine.parallel import Session, connect
from kdscale.engine.stage import build_stage
from kdscale.engine.teach import Wish, teach
from kdscale.methods import KD, Deit
from kdscale.recipe import AdamW, Augment, Checkpointing, Data, Evaluation, Machine, Model, Phase, Recipe, Stored, resolve

WARM = 2  # rounds not counted
PAIRS: dict[str, dict[str, Any]] = {
    "cifar": {
        "student": Model("wrn_16_2"),
        "teacher": Model("wrn_40_2", floor=0),
        "method": KD(),
        "augment": Augment.cifar(),
        "side": 32,
        "classes": 100,
        "batch": 64,
        "images": 1024,
    },
    "imagenet": {
        "student": Model("deit_tiny_distilled_patch16_224", drop_path=0.1),
        "teacher": Model("regnety_160", floor=0),
        "method": Deit(),
        "augment": Augment.deit(),
        "side": 256,
        "classes": 1000,
        "batch": 16,
        "images": 64,
    },
}


def recipe_of(pair: dict[str, Any], data: Path, batch: int, steps: int) -> Recipe:
    return Recipe(
        networks={"student": pair["student"], "teacher": pair["teacher"]},
        data=Data(str(data), batch=batch, train=pair["augment"], held_out=0),
        phases=(Phase(pair["method"], steps=steps, optimizer=AdamW(5e-4)),),
        evaluation=Evaluation(every=1e9, teachers=False),
        checkpointing=Checkpointing(every_epochs=None, every_steps=10**9),
        machine=Machine(log_every=10**9),
    )


def shards(folder: Path, pair: dict[str, Any]) -> Path:
    rng, side = np.random.default_rng(0), pair["side"]
    for split, count in (("train", pair["images"]), ("val", 2)):
        images = rng.integers(0, 256, (count, side, side, 3), np.uint8)
        labels = np.arange(count) % pair["classes"]
        pack_arrays(images, labels, str(folder), split=split, names=tuple(map(str, range(pair["classes"]))))
    return folder


def steps_of(recipe: Recipe, session: Session, folder: Path, stack: ExitStack) -> Callable[[], float]:
    """One step a call; gives its seconds."""
    stage = build_stage(resolve(recipe), 0, session, None)
    stream = stack.enter_context(closing(stage.stream()))
    engine, batches, numbers = engine_step(stage, folder), stream.batches(0), iter(range(10**6))
    wait: Callable[[], object] = torch.cuda.synchronize if session.device.type == "cuda" else lambda: None

    def step() -> float:
        wait()
        started = time.perf_counter()
        engine(next(numbers), next(batches))
        wait()
        return time.perf_counter() - started

    return step


def compare(name: str, rounds: int, batch: int | None, keep: Any, session: Session) -> Iterator[str]:
    pair = PAIRS[name]
    batch = batch or pair["batch"]
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        root = Path(place)
        # Longer than what is timed, so that the last step, which ends a run, is not reached.
        recipe = recipe_of(pair, shards(root / "data", pair), batch, WARM + rounds + 2)
        started = time.perf_counter()
        teach(recipe, root / "store", session, lambda text: None, Wish(keep))
        taught = time.perf_counter() - started
        stored = replace(recipe, networks={**recipe.networks, "teacher": Stored(str(root / "store"))})
        sides = {"live": recipe, "stored": stored}
        steps = {}
        for side, value in sides.items():
            (root / side).mkdir()
            steps[side] = steps_of(value, session, root / side, stack)
        times: dict[str, list[float]] = {side: [] for side in sides}
        for turn in range(WARM + rounds):
            for side in sides if turn % 2 else reversed(sides):
                times[side].append(steps[side]())
        ratios = [a / b for a, b in zip(times["live"][WARM:], times["stored"][WARM:], strict=True)]
        files = list((root / "store").glob("*/*.npy"))
        rows = sum(len(np.load(file, mmap_mode="r")) for file in files)
        size = sum(file.stat().st_size for file in files) / rows
    student, teacher = pair["student"].name, pair["teacher"].name
    yield f"{name}: {teacher} -> {student}, batch {batch} on {session.device}, threads {torch.get_num_threads()}, keep {keep}"
    for side, found in times.items():
        yield f"{side}: {batch / statistics.median(found[WARM:]):.1f} images/s (median of {rounds} steps)"
    low, middle, high = statistics.quantiles(ratios, n=4)
    yield f"stored / live: {middle:.2f} times the images/s, quartiles {low:.2f} .. {high:.2f}"
    yield f"stored: {size:.1f} bytes an image; taught {rows} images in {taught:.1f} s, start included"


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    words.add_argument("pair", nargs="?", choices=sorted(PAIRS), default="cifar")
    words.add_argument("--rounds", type=int, default=8)
    words.add_argument("--batch", type=int)
    words.add_argument("--keep", default="all", type=lambda word: int(word) if word.isdecimal() else word)
    given = words.parse_args()
    session = connect()
    for line in compare(given.pair, given.rounds, given.batch, given.keep, session):
        sys.stdout.write(f"{line}\n")
    session.close()


if __name__ == "__main__":
    main()
