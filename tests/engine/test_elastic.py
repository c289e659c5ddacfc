"""Killed anywhere and continued: on as many ranks to the same bits, on others or under another back-end on the same samples.

Every start is a world of its own, killed with -9 when it has told of a step that is drawn.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kdscale.methods import Crd, Shake
from kdscale.recipe import SGD, Model, Phase, Recipe, override
from tests.engine import small, witness
from tests.engine.launch import ROOT
from tests.engine.test_ranks import close
from tests.engine.test_run import same

pytestmark = pytest.mark.ranks
STEPS = 22
PARALLELS = ["ddp", "zero1", "zero2", "zero3", "fsdp2"]
slow = pytest.mark.slow
every_back_end = pytest.mark.parametrize("parallel", PARALLELS)


def recipe_of(shards: Path, **changes: Any) -> Recipe:
    """SHAKE on a DeiT with mixup, drop-path and EMA; the samples repeat three times with augmentations of their own."""
    one = small.recipe(shards, **changes)
    return override(one, ["data.repeats=3"])


class World:
    """One start of a recipe by the pool's program, on ``ranks`` processes under one back-end."""

    def __init__(self, folder: Path, recipe: Recipe, out: Path, parallel: str, ranks: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "seen").mkdir()
        path = small.write(folder / "recipe.json", recipe)
        jobs = folder / "jobs.json"
        jobs.write_text(json.dumps([{"recipe": str(path), "out": str(out), "parallel": parallel}]))
        launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m"] if ranks > 1 else []
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-m", *launcher, "tests.engine.backends", str(jobs)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            env=small.environment() | {witness.FOLDER: str(folder / "seen")},
            cwd=ROOT,
        )

    def kill_at(self, step: int) -> None:
        """Everything of this start ends with -9 once ``step`` is told: the launcher too."""
        small.wait_for_step(self.process, step)
        words = ["ps", "-o", "pid=", "--ppid", str(self.process.pid)]
        ranks = subprocess.run(words, capture_output=True, text=True, check=False).stdout.split()
        for pid in (self.process.pid, *map(int, ranks)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()  # type: ignore[union-attr]

    def finish(self) -> str:
        told, _ = self.process.communicate(timeout=300)
        assert self.process.returncode == 0, told[-4000:]
        return told

    def seen(self) -> dict[int, set[tuple[int, int]]]:
        return witness.seen(self.folder / "seen")


def through(folder: Path, recipe: Recipe, worlds: list[tuple[str, int]], drawn: random.Random) -> tuple[Path, list[World]]:
    """One run that is killed at a drawn step of every world but the last."""
    out, at, starts = folder / "out", 4, []
    for number, (parallel, ranks) in enumerate(worlds):
        world = World(folder / f"world{number}", recipe, out, parallel, ranks)
        starts.append(world)
        if number == len(worlds) - 1:
            assert ("from step" in world.finish()) == (number > 0)
        else:
            at = drawn.randint(at, at + (STEPS - 2 - at) // (len(worlds) - 1 - number))
            world.kill_at(at)
            at += 3  # the saves are three steps apart: the next world is past what this one told
    return out, starts


def dice(*words: object) -> random.Random:
    """A draw of its own in every session, told so that it can be repeated."""
    seed = int(os.environ.get("KDSCALE_SEED", random.SystemRandom().randrange(10**6)))
    sys.stdout.write(f"KDSCALE_SEED={seed} {words}\n")
    return random.Random(f"{seed} {words}")


@pytest.fixture(scope="module")
def crd(data: Path) -> Recipe:
    """A bank of features, of the teacher's and the student's, with BatchNorm of each rank beside it."""
    return recipe_of(
        data,
        networks={"student": Model("resnet8"), "teacher": Model("resnet8x4", floor=0)},
        phases=(Phase(Shake(plus=(Crd(negatives=64),)), steps=STEPS, name="student", optimizer=SGD(0.02, clip=1.0)),),
    )


@slow
@every_back_end
@pytest.mark.parametrize("what", ["deit", "bank"])
def test_on_as_many_ranks_it_continues_to_the_same_bits(
    parallel: str, what: str, data: Path, crd: Recipe, tmp_path: Path
) -> None:
    recipe = (
        recipe_of(data)
        if what == "deit"
        else override(crd, ["data.repeats=1", "data.train.mixup=0", "data.train.cutmix=0", "machine.channels_last=true"])
    )
    whole, _ = through(tmp_path / "whole", recipe, [(parallel, 2)], dice())
    killed, _ = through(tmp_path / "killed", recipe, [(parallel, 2)] * 3, dice(parallel, what))
    same(killed, whole)


def witnessed(data: Path) -> Recipe:
    return recipe_of(data, phases=(Phase(witness.Witness(), steps=STEPS, name="student", optimizer=SGD(0.02, clip=1.0)),))


CHAINS = [[(parallel, ranks) for ranks in (2, 1, 4)] for parallel in PARALLELS]
CHAINS += [
    [("zero2", 2), ("ddp", 1), ("fsdp2", 4)],
    [("fsdp2", 2), ("zero3", 1), ("ddp", 2)],
    [("zero1", 4), ("zero3", 2), ("zero2", 1)],
]


def told(chain: list[tuple[str, int]]) -> str:
    return "-".join(f"{parallel}x{ranks}" for parallel, ranks in chain)


@slow
@pytest.mark.parametrize("chain", CHAINS, ids=told)
def test_other_ranks_and_back_ends_go_on_with_the_same_global_batches(
    chain: list[tuple[str, int]], data: Path, tmp_path: Path
) -> None:
    """By position and sample, over all steps (more than four epochs), and by the losses of every step, drop-path included."""
    recipe = witnessed(data)
    whole, (alone,) = through(tmp_path / "whole", recipe, [("ddp", 1)], dice())
    out, starts = through(tmp_path / "out", recipe, chain, dice(told(chain)))
    expected = alone.seen()
    assert sorted(expected) == list(range(STEPS))
    assert all(len(batch) == 24 for batch in expected.values())
    covered: set[int] = set()
    for world, last in itertools.zip_longest(starts, [None] * (len(starts) - 1), fillvalue=True):
        seen = world.seen()
        steps = sorted(seen)
        if last is None:
            steps = steps[:-1]  # killed in the midst of the last one
        assert all(seen[step] == expected[step] for step in steps), told(chain)
        covered |= set(steps)
    assert covered == set(range(STEPS))
    close(out, whole, 1e-4)
