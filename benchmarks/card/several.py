"""What takes several processes: a run that is killed and goes on, some side by side on one device, and the end of them all.

    python -m kdscale.benchmarks.card.several resume OUT STEPS RECIPE path=value ...
    python -m kdscale.benchmarks.card.several abreast OUT COUNTS SECONDS DATA DEVICE path=value ...

Figures are JSON in the last line of output. ``resume``: two runs to their end beside one that is killed (SIGKILL) and started
again; where the two differ already, the device adds in an order of its own, and no resume can be equal. ``abreast``: steps
that COUNT processes do together in SECONDS, once all are under way, against the published style's loop alone.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from kdscale.benchmarks.peers import Side
from kdscale.benchmarks.sides import RECIPE, STUDENT, TEACHER
from kdscale.errors import KdscaleError

LOOK = 0.01  # seconds between two looks at a run
SETTLED = 3  # lines of the log after which a run is under way
PUBLISHED = {"cuda": (20, 100), "cpu": (1, 3)}  # steps of the published style: before the clock runs, and timed
WORKERS = 8
LET_GO = 20  # seconds that the killed have to be gone
MARK = "KDSCALE_ROW"  # in the environment of everything that a row starts, whatever session or parent that has by then
QUIET = ("evaluation.every=1e9", "evaluation.teachers=false", "checkpointing.every_epochs=null")


class Run:
    """One ``kdscale train`` in ``out``, which a second one continues."""

    def __init__(self, out: Path, words: Sequence[str]) -> None:
        self.out, self.log = out, out.with_suffix(".log")
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "kdscale", "train", *words, "--out", str(out)]
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, "KDSCALE_PROGRESS": "lines"},
            )  # fmt: skip

    def lines(self) -> list[dict[str, Any]]:
        path = self.out / "metrics.jsonl"
        whole = path.read_text().split("\n")[:-1] if path.exists() else []  # the last may be under way
        return [line for line in map(json.loads, whole) if line["event"] == "train"]

    @property
    def step(self) -> int:
        return max((line["step"] for line in self.lines()), default=0)

    def wait(self, until: Callable[[Run], bool]) -> None:
        """Returns once the run has come so far. Raises KdscaleError where it ends before."""
        while not until(self):
            if self.process.poll() is not None and not until(self):
                raise KdscaleError(f"{self.out.name} ended with {self.process.returncode}: {self.last_word()}")
            time.sleep(LOOK)

    def last_word(self) -> str:
        return next((line for line in reversed(self.log.read_text().splitlines()) if line.strip()), "without a word")

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def ended(run: Run) -> bool:
    return run.process.poll() == 0


def resume(out: Path, steps: int, words: Sequence[str]) -> dict[str, Any]:
    """What two whole runs, and one that was killed and went on, differ by."""
    every = steps // 4
    words = [*words, f"steps={steps}", *QUIET[:2], "machine.log_every=1", f"checkpointing.every_steps={every}"]
    whole, again, killed = runs = [Run(out / name, words) for name in ("whole", "again", "killed")]
    try:
        killed.wait(lambda run: run.step > 1.5 * every and any(run.out.glob("checkpoints/*")))
        killed.kill()
        at = killed.step
        if at >= steps:
            raise KdscaleError(f"the run of {steps} steps ended before it was killed: give it more")
        runs.append(resumed := Run(killed.out, words))
        for run in (whole, again, resumed):
            run.wait(ended)
    finally:
        for run in runs:
            run.kill()
    return {"killed at step": at, "resumed": difference(whole, resumed), "two whole runs": difference(whole, again)}


def difference(one: Run, other: Run) -> str:
    """In words: of the losses of all steps, and of the last weights."""
    ours, theirs = ({line["step"]: line["loss"] for line in run.lines()} for run in (one, other))
    if ours.keys() != theirs.keys():
        raise KdscaleError(f"{one.out.name} told of {len(ours)} steps and {other.out.name} of {len(theirs)}")
    apart = [step for step in sorted(ours) if ours[step] != theirs[step]]
    weight = largest_difference(one.out, other.out)
    if not apart and not weight:
        return "equal to the bit"
    last = max(ours)
    first = f"losses from step {apart[0]} on, the last by {abs(ours[last] - theirs[last]):.1e}" if apart else "no loss"
    return f"differ: {first}; a weight by {weight:.1e}"


def largest_difference(one: Path, other: Path) -> float:
    """Of a single number of the phases' last weights; infinite where one is not a number."""
    from safetensors.torch import load_file

    largest = 0.0
    for file in sorted(one.glob("phases/*/end.safetensors")):
        ours, theirs = load_file(file), load_file(other / file.relative_to(one))
        for name, tensor in ours.items():
            apart = (tensor.double() - theirs[name].double()).abs()
            largest = max(largest, float(apart.nan_to_num(nan=float("inf")).max()) if apart.numel() else 0.0)
    return largest


def abreast(out: Path, counts: Iterable[int], seconds: float, data: str, device: str, words: Sequence[str]) -> dict[str, Any]:
    """Images a second of the published style, of each count of runs, and how many times the former the latter are."""
    batch, alone = published(data, device)
    figures: dict[str, Any] = {"published style images/s": alone}
    network = [
        f"data.source={data}",
        f"networks.student={STUDENT}",
        f"networks.teacher={{kind: model, name: {TEACHER}, floor: 0}}",
    ]
    long = ["steps=1000000", *QUIET, f"machine.log_every={20 if device == 'cuda' else 1}"]
    for count in counts:
        try:
            rate = batch * together(out / str(count), count, seconds, [RECIPE, *network, *long, *words])
            figures |= {f"{count} abreast images/s": rate, f"{count} abreast times": rate / alone}
        except KdscaleError as error:  # too many for the device, say: the smaller counts are worth telling
            figures[f"{count} abreast"] = f"failed: {error}"
    return figures


def published(data: str, device: str) -> tuple[int, float]:
    """(batch, images a second) of the published style's loop."""
    given = {"data": data, "device": device, "workers": min(WORKERS, os.cpu_count() or 1), "set": []}
    side = Side("published", {**given, "student": STUDENT, "teacher": TEACHER})
    try:
        warm, counted = PUBLISHED[device]
        side.turn(warm)
        return side.told["batch"], side.told["batch"] / side.turn(counted)
    finally:
        side.end()


def together(out: Path, count: int, seconds: float, words: Sequence[str]) -> float:
    """Steps a second of ``count`` runs in one stretch of time, counted by what their logs tell."""
    out.mkdir(parents=True)
    runs = [Run(out / str(number), [*words, f"seed={number}"]) for number in range(count)]
    try:
        for run in runs:
            run.wait(lambda run: len(run.lines()) >= SETTLED)
        before, started = sum(run.step for run in runs), time.perf_counter()
        time.sleep(seconds)
        done, taken = sum(run.step for run in runs) - before, time.perf_counter() - started
        for run in runs:
            run.wait(lambda run: run.process.poll() is None)  # one that ended meanwhile is a failure of the count
    finally:
        for run in runs:
            run.kill()
        shutil.rmtree(out, ignore_errors=True)
    return done / taken


def ended_within(limit: float, command: Sequence[str], environment: dict[str, str], log: Path) -> int | None:
    """The exit code of ``command``, None where it was killed; what it has started is gone with it, however it ends."""
    mark = uuid.uuid4().hex
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env={**environment, MARK: mark}, start_new_session=True
        )
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        return None
    finally:
        end(mark)
        with suppress(subprocess.TimeoutExpired):  # a process that its driver holds on to outlives even this
            process.wait(LET_GO)


def end(mark: str) -> None:
    """Kills what bears the mark. A launcher gives its workers sessions of their own, so the group alone is not all of it."""
    until = time.monotonic() + LET_GO
    while (living := list(marked(mark))) and time.monotonic() < until:
        for number in living:
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        time.sleep(0.02)


def marked(mark: str) -> Iterator[int]:
    """Processes with the mark in their environment; one that has ended and waits for its parent has none."""
    wanted = f"{MARK}={mark}".encode()
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if wanted in (place / "environ").read_bytes().split(b"\0"):
                yield int(place.name)


def main(words: list[str]) -> None:
    what, out, *rest = words
    Path(out).mkdir(parents=True, exist_ok=True)
    if what == "resume":
        figures = resume(Path(out), int(rest[0]), rest[1:])
    else:
        figures = abreast(Path(out), map(int, rest[0].split(",")), float(rest[1]), rest[2], rest[3], rest[4:])
    sys.stdout.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KdscaleError as error:
        sys.exit(f"kdscale: {error}")
