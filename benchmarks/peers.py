"""KD on WRN-40-2 -> WRN-16-2, batch 64: kdscale against a loop in the style of the published CIFAR scripts, data included.

    python -m kdscale.benchmarks.peers --data PACKED_CIFAR [--device cpu] [--steps 5] [--pairs 15] [machine.compile=true ...]

Each side is a process, as its user would start it, with its own allocator and workers. They take turns of ``--steps`` steps;
a side whose turn it is not is stopped with its workers, so that it neither takes the other's cores nor reads ahead for free.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from kdscale.benchmarks.sides import STUDENT, TEACHER
from kdscale.errors import KdscaleError

WORKERS = 8  # of the published scripts, where there are as many cores
WARM = 1  # pairs of turns not counted


class Side:
    """One side's process. ``told``: what it says that it does."""

    def __init__(self, name: str, given: dict[str, Any]) -> None:
        self.name = name
        hidden = {"CUDA_VISIBLE_DEVICES": ""} if given["device"] == "cpu" else {}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "kdscale.benchmarks.sides", name, json.dumps(given)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | hidden,
            process_group=0,  # so that its workers stop with it
        )
        self.told: dict[str, Any] = json.loads(self._answer())
        self._signal(signal.SIGSTOP)

    def turn(self, steps: int) -> float:
        """Seconds a step, on a machine that is its own."""
        self._signal(signal.SIGCONT)
        self._say(steps)
        taken = float(self._answer())
        self._signal(signal.SIGSTOP)
        return taken / steps

    def end(self) -> None:
        if self.process.poll() is None:
            self._signal(signal.SIGKILL)
        self.process.communicate()

    def _say(self, steps: int) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()

    def _answer(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise KdscaleError(f"the side {self.name!r} ended with code {self.process.wait()}: its own words are above")
        return line

    def _signal(self, number: int) -> None:
        os.killpg(self.process.pid, number)


def compare(given: dict[str, Any], steps: int, pairs: int) -> Iterator[str]:
    """Lines with both sides' settings, their medians, and the ratio with its quartiles."""
    sides: list[Side] = []
    try:
        for name in ("published", "kdscale"):
            sides.append(Side(name, given))
        rival, engine = sides
        same_work(rival.told, engine.told)
        yield f"KD {given['teacher']} -> {given['student']}, batch {engine.told['batch']} on {engine.told['device']}"
        yield f"kdscale: {engine.told['settings']}"
        yield f"published style: {rival.told['settings']}"
        turns = [taken(rival, engine, steps, pair) for pair in range(WARM + pairs)][WARM:]
    finally:
        for side in sides:
            side.end()
    theirs, ours = (statistics.median(column) for column in zip(*turns, strict=True))
    ratios = [rival_seconds / engine_seconds for rival_seconds, engine_seconds in turns]
    quartiles = statistics.quantiles(ratios, n=4)
    yield f"kdscale {1000 * ours:.1f} ms, published style {1000 * theirs:.1f} ms a step (medians of {pairs} turns of {steps} steps)"
    yield f"kdscale is faster by {statistics.median(ratios):.3f} (median), quartiles {quartiles[0]:.3f} .. {quartiles[2]:.3f}"


def taken(rival: Side, engine: Side, steps: int, pair: int) -> tuple[float, float]:
    """Seconds a step of both, in an order that alternates."""
    if pair % 2:
        ours = engine.turn(steps)
        return rival.turn(steps), ours
    return rival.turn(steps), engine.turn(steps)


def same_work(rival: dict[str, Any], engine: dict[str, Any]) -> None:
    """Raises KdscaleError where the sides differ in weights, batch or device: their times would say nothing."""
    for name, value in rival.items():
        if name != "settings" and engine[name] != value:
            raise KdscaleError(f"the sides differ in {name}: published style {value}, kdscale {engine[name]}")


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m kdscale.benchmarks.peers")
    parser.add_argument("--data", required=True, help="packed CIFAR-100")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--steps", type=int, default=5, help="of a turn")
    parser.add_argument("--pairs", type=int, default=15, help="of turns")
    parser.add_argument(
        "--workers", type=int, default=min(WORKERS, os.cpu_count() or 1), help="of the published style's loader"
    )
    parser.add_argument("set", nargs="*", metavar="path=value", help="fields of the recipe")
    read = vars(parser.parse_args(words))
    steps, pairs = read.pop("steps"), read.pop("pairs")
    for line in compare({**read, "student": STUDENT, "teacher": TEACHER}, steps, pairs):
        sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
