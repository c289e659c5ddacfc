"""Runs that are killed at random moments, again and again, and end with the same bits as a run that nothing happened to.

    python -m tests.soak --runs 100 --seed 7

Three small recipes take turns (token student with drop-path, mixup and EMA on one rank; the same on two; a teacher and then
its student). Each run is stopped one to three times: kill -9 of all its ranks or of one, or SIGTERM or SIGUSR1 of all, at a
moment of its start, or after a line of its log, that the seed draws. One line a run; the exit code is 1 where any differs.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import re
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from kdscale.engine.checkpoint import saving
from kdscale.recipe import override
from tests.engine import small
from tests.engine.stable import Run, Stable, stable

STEPS = 14
LINES = 16  # of steps and evaluations in a start, among which the moment is drawn
OVER = "over before"
KINDS = {"token": 1, "token on two ranks": 2, "teacher, student": 1}  # ranks


def recipes(folder: Path) -> dict[str, Path]:
    data = small.shards(folder / "data")
    token = small.write(folder / "token.json", override(small.recipe(data), [f"steps={STEPS}"]))
    chain = small.write(folder / "chain.json", small.two_phases(data))
    return dict(zip(KINDS, (token, token, chain), strict=True))


def left(out: Path) -> dict[str, Any]:
    """All that must not depend on what happened: lines, weights, EMA, moments."""
    saves = saving.all_saves(out / "checkpoints")
    files = [*sorted((out / "phases").glob("*/*.safetensors")), *sorted(saves[-1].glob("*.safetensors"))]
    said = [
        {name: value for name, value in line.items() if name not in ("seconds", "images_per_second", "data_wait", "eta")}
        for event in ("train", "evaluation")
        for line in small.lines(out, event)
    ]
    return {
        "lines": said,
        "files": {str(path.relative_to(out)): digest(path) for path in files},
        "best": os.readlink(out / "best"),
    }


def digest(path: Path) -> str:
    """Of every tensor by name: the library writes its metadata in no order."""
    hasher = hashlib.sha256()
    for name, tensor in sorted(load_file(path).items()):
        hasher.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
    return hasher.hexdigest()


def differing(mine: dict[str, Any], whole: dict[str, Any]) -> str:
    """Nothing, or the first lines and files in which two runs differ."""
    lines = [f"{a} is not {b}" for a, b in zip(mine["lines"], whole["lines"], strict=False) if a != b][:1]
    files = [
        name for name in mine["files"].keys() | whole["files"].keys() if mine["files"].get(name) != whole["files"].get(name)
    ]
    counts = [f"{len(r['lines'])} lines, best {r['best']}" for r in (mine, whole)]
    told = [*lines, *sorted(files), *(counts if counts[0] != counts[1] else [])]
    return f" ({'; '.join(told)})" if told else ""


def strike(run: Run, rng: random.Random) -> str:
    """Waits for a moment and does it; what was done, in words."""
    if rng.random() < 0.2:
        pause = rng.uniform(0, 3)
        when = f"{pause:.2f} s after its start"
    else:
        lines, pause = rng.randint(1, LINES), rng.uniform(0, 0.25)
        when = f"{1000 * pause:.0f} ms after line {lines}"
        run.until(lambda: run.said.count(" step ") >= lines or None not in run.codes())
    time.sleep(pause)
    how = rng.choices(["kill -9", "kill -9 of one", "SIGTERM", "SIGUSR1"], [6, 2 if len(run.pids) > 1 else 0, 1, 1])[0]
    if None not in run.codes():
        return OVER
    if how == "kill -9 of one":
        run.send(signal.SIGKILL, rng.randrange(len(run.pids)))
    else:
        run.send(signal.SIGKILL if how == "kill -9" else signal.Signals[how])
    run.wait()
    return f"{how} {when}"


def soak(number: int, seed: int, recipe: Path, ranks: int, out: Path, forks: Stable) -> list[str]:
    """What was done to one run, which is at its end."""
    rng = random.Random(f"{seed} {number}")
    done = []
    for _ in range(rng.randint(1, 3)):
        done.append(strike(forks.start(recipe, out=out, ranks=ranks), rng))
    forks.train(recipe, out=out, ranks=ranks)
    return done


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=None)
    given = parser.parse_args()
    seed = given.seed if given.seed is not None else int(time.time())
    print(f"seed {seed}, {given.runs} runs", flush=True)
    began, good, stops = time.time(), 0, 0
    with tempfile.TemporaryDirectory(prefix="kdscale-soak-") as name, stable() as forks:
        folder = Path(name)
        paths, expected = recipes(folder), {}
        for kind, ranks in KINDS.items():
            whole = folder / re.sub(r"\W+", "-", kind)
            forks.train(paths[kind], out=whole, ranks=ranks)
            expected[kind] = left(whole)
        for number in range(given.runs):
            kind = list(KINDS)[number % len(KINDS)]
            out = folder / f"run-{number:03d}"
            done = soak(number, seed, paths[kind], KINDS[kind], out, forks)
            different = differing(left(out), expected[kind])
            equal = not different
            good += equal
            stops += sum(what != OVER for what in done)
            print(f"{number + 1:3d} {'equal ' if equal else 'DIFFERS'} {kind}: {'; '.join(done)}{different}", flush=True)
    print(f"{good} of {given.runs} runs end bit-equal, stopped {stops} times, seed {seed}, {time.time() - began:.0f} s")
    return 0 if good == given.runs else 1


if __name__ == "__main__":
    sys.exit(main())
