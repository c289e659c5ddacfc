"""How long a save stops training: written behind the next steps, as the engine does, against written on the spot.

    python -m kdscale.benchmarks.save_stall [--model deit_tiny_patch16_224] [--batch 16] [--pairs 10] [--folder DIR]

A student with AdamW and EMA on noise; both kinds of save in turn, between the same steps of the engine's own loop. Told are
medians: the time for which a save holds the training thread, the time to its commit, and the steps that fall beside a write,
which shares the cores with them. ``--folder``: on the disk that is to be measured.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from kdscale.benchmarks.step import endless, some_batches
from kdscale.data import pack_arrays
from kdscale.engine.checkpoint import saving
from kdscale.engine.checkpoint.folder import Folder
from kdscale.engine.faults.signals import Signals
from kdscale.engine.keeper import Memory, collect
from kdscale.engine.loop import Loop
from kdscale.engine.meter import Meter
from kdscale.engine.parallel import Session, connect
from kdscale.engine.reporter import Silent
from kdscale.engine.stage import Stage, build_stage
from kdscale.engine.upkeep import Upkeep, refuse_poison
from kdscale.errors import KdscaleError
from kdscale.methods import Supervised
from kdscale.recipe import AdamW, Augment, Data, Ema, Model, Phase, Recipe, resolve

SIDE, CLASSES = 64, 1000  # of the packed noise
NAMES = tuple(f"class {n}" for n in range(CLASSES))
WARM = 1  # pairs not counted
QUIET = 3  # steps before each save


@dataclass
class Seconds:
    """Of one side: a number a save, and the steps that were taken while its saves were written."""

    held: list[float] = field(default_factory=list)  # the training thread was held for
    complete: list[float] = field(default_factory=list)  # from the start of the save to its commit
    beside: list[float] = field(default_factory=list)

    def told(self, name: str) -> str:
        held, complete = (1000 * statistics.median(s[WARM:]) for s in (self.held, self.complete))
        quartiles = [1000 * q for q in statistics.quantiles(self.held[WARM:], n=4)]
        steps = f"; steps meanwhile {1000 * statistics.median(self.beside):.0f} ms" if self.beside else ""
        spread = f"{quartiles[0]:.0f} .. {quartiles[2]:.0f}"
        return f"{name}: training is held {held:.0f} ms (quartiles {spread}), complete after {complete:.0f} ms{steps}"


def recipe_of(folder: Path, model: str, batch: int) -> Recipe:
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        images = rng.integers(0, 255, (4 * batch, SIDE, SIDE, 3), dtype=np.uint8)
        pack_arrays(images, np.arange(4 * batch) % CLASSES, str(folder), split=split, name="noise", names=NAMES)
    return endless(
        resolve(
            Recipe(
                networks={"student": Model(model)},
                data=Data(str(folder), batch=batch, train=Augment(size=224), workers=0),
                phases=(Phase(Supervised(), steps=1, optimizer=AdamW(1e-3, clip=1.0)),),
                ema=Ema(0.999),
            )
        )
    )


class Bench:
    """One stage with its loop, and the two ways to save it."""

    def __init__(self, stage: Stage, folder: Path) -> None:
        self.stage, self.batches, self.number = stage, some_batches(stage), 0
        memory, meter = Memory(), Meter(stage.session)
        self.upkeep = Upkeep(stage, memory, meter, Folder(folder), Silent())
        self.loop = Loop(stage, memory, meter, Silent(), self.upkeep, Signals())
        self.wait: Callable[[], None] = torch.cuda.synchronize if stage.session.device.type == "cuda" else lambda: None
        stage.distiller.train()

    def step(self) -> float:
        started = time.perf_counter()
        self.loop.step(self.number, iter([self.batches[self.number % len(self.batches)]]))
        self.wait()
        self.number += 1
        return time.perf_counter() - started

    def on_the_spot(self, said: Seconds) -> None:
        upkeep, started = self.upkeep, time.perf_counter()
        refuse_poison(self.stage, upkeep.memory)
        save = collect(self.stage, upkeep.memory, upkeep.meter)
        saving.write(upkeep.folder.checkpoints, upkeep.memory.global_step, save)
        said.held.append(time.perf_counter() - started)
        said.complete.append(said.held[-1])

    def behind(self, said: Seconds) -> None:
        begun, started = time.time(), time.perf_counter()
        self.upkeep.save()
        said.held.append(time.perf_counter() - started)
        while self.upkeep.saving:
            said.beside.append(self.step())
            self.upkeep.settle(wait=False)
        assert self.upkeep.last_save is not None
        said.complete.append(self.upkeep.last_save.stat().st_ctime - begun)

    def pair(self, spot: Seconds, behind: Seconds, turn: int) -> list[float]:
        """A save of each kind; returns the seconds of the steps beside which nothing was written."""
        quiet = []
        for side, said in ((self.on_the_spot, spot), (self.behind, behind))[:: 1 if turn % 2 else -1]:
            quiet += [self.step() for _ in range(QUIET)]
            side(said)
        return quiet


def compare(recipe: Recipe, session: Session, folder: Path, pairs: int) -> Iterator[str]:
    stage = build_stage(recipe, 0, session, None)
    bench = Bench(stage, folder)
    spot, behind = Seconds(), Seconds()
    bench.step()  # makes the optimizer's state
    quiet = [seconds for turn in range(WARM + pairs) for seconds in bench.pair(spot, behind, turn)]
    size = sum(file.stat().st_size for file in saving.all_saves(folder / "checkpoints")[-1].iterdir())
    yield (
        f"{recipe.networks['student'].name} on {session.device}, batch {stage.plan.batch}, threads {torch.get_num_threads()}:"
        f" saves of {size / 1e6:.1f} MB, steps of {1000 * statistics.median(quiet):.0f} ms; medians of {pairs} pairs"
    )
    yield spot.told("on the spot")
    yield behind.told("behind the next steps")


def main() -> None:
    parser = argparse.ArgumentParser(description="How long a save stops training.")
    parser.add_argument("--model", default="deit_tiny_patch16_224")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    session = connect()
    try:
        with tempfile.TemporaryDirectory(dir=asked.folder) as place:
            recipe = recipe_of(Path(place) / "data", asked.model, asked.batch)
            for line in compare(recipe, session, Path(place), asked.pairs):
                sys.stdout.write(line + "\n")
    except KdscaleError as error:
        sys.exit(str(error))
    finally:
        session.close()


if __name__ == "__main__":
    main()
