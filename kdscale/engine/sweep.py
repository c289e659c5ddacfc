"""Several runs as processes of their own, one after another or side by side, the teachers that they miss first.

A run that its folder shows to be finished is not started again, and an interrupted one goes on from its last save: a sweep is
repeated by the same command, like a run.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from ..data.loading import usable_cores
from ..errors import RecipeError
from ..networks.sources import is_missing
from ..recipe import Model, Recipe, from_json, override, resolve
from ..recipe.load import find, load, meant, recipes_of
from ..recipe.resolve import differences, identity
from .faults.ends import DONE, FAULT, STOPPED
from .faults.signals import Signals
from .grid import folder_name, former_name, points, recipe_name

DEVICES = "CUDA_VISIBLE_DEVICES"
POLL = 0.2  # seconds
LEAVE = 60.0  # seconds that runs may take to save themselves before a job's time is over; nothing is begun then
_SIGNAL_AT_DEATH = 1  # Linux's sys/prctl.h
TEACHERS = "teachers"  # the folder of those that are trained first
ENDED = ("finished", "skipped", "failed", "stopped")


@dataclass
class Job:
    """One run: ``kdscale train RECIPE words --out OUT``."""

    reference: str
    words: tuple[str, ...]
    out: Path
    after: tuple[Job, ...] = ()  # teachers that it needs
    exported: bool = False  # is its export what others wait for?
    state: str = "waiting"  # then 'running', then one of ENDED
    recipe: Recipe = field(init=False)

    def __post_init__(self) -> None:
        self.recipe = resolve(override(load(self.reference), self.words))

    @property
    def export(self) -> Path:
        return self.out / "export"

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    @property
    def done(self) -> bool:
        return self.state in ("finished", "skipped")


def jobs(references: Sequence[str], words: Sequence[str], grid: Sequence[str], out: Path) -> list[Job]:
    """The runs of a sweep with their missing teachers, in an order in which they can be run.

    ``references``: RECIPE:NAME, or RECIPE for all recipes of the file. ``words``: path=value for all. ``grid``: path=v1,v2,...;
    every combination is a run. Raises RecipeError for what no run could begin with.
    """
    teachers: dict[Path, Job] = {}
    runs = []
    for reference in itertools.chain.from_iterable(map(spelt_out, references)):
        for point in points(grid):
            place, former = (
                out / "-".join([recipe_name(reference), *map(folder_name, point)]),
                out / former_name([reference, *point]),
            )
            place = former if former.is_dir() and not place.exists() else place
            runs.append(_with_teachers(reference, (*words, *point), place, out, teachers))
    places = [run.out for run in runs]
    twice = sorted({str(place) for place in places if places.count(place) > 1 or place == out / TEACHERS})
    if twice:
        raise RecipeError(
            f"two runs of this sweep have one folder: {', '.join(twice)}; give one of them another recipe name, or a sweep of its own"
        )
    return [*teachers.values(), *runs]


def spelt_out(reference: str) -> list[str]:
    """A reference, or those of all recipes in the file that it names."""
    text, colon, _ = reference.partition(":")
    path = find(text)
    if colon or path.suffix != ".py":
        return [reference]
    return [f"{text}:{name}" for name in meant(recipes_of(path))]


def _with_teachers(
    reference: str, words: tuple[str, ...], place: Path, out: Path, teachers: dict[Path, Job], making: tuple[str, ...] = ()
) -> Job:
    """``making``: the recipes that wait for this one, which it must not wait for."""
    making = (*making, reference)
    if reference in making[:-1]:
        raise RecipeError(f"{' needs a teacher made by '.join(making)}: give one of them as a folder that is there")
    recipe = override(load(reference), words)
    wanted = {source for phase in resolve(recipe).phases for source in phase.networks.values()}
    after: list[Job] = []
    told: list[str] = []
    for where, networks in {"": recipe.networks, **{f"phases.{n}.": p.networks for n, p in enumerate(recipe.phases)}}.items():
        for role, model in networks.items():
            if isinstance(model, Model) and model in wanted and is_missing(model):
                after.append(_teacher(model, words, out, teachers, making))
                told.append(f"{where}networks.{role}={after[-1].export}")
    return Job(reference, (*words, *told), place, tuple(after))


def _teacher(model: Model, words: tuple[str, ...], out: Path, teachers: dict[Path, Job], making: tuple[str, ...]) -> Job:
    """The job that makes ``model`` on the data of ``words``, new or among ``teachers``; no two share a folder."""
    reference, name = str(model.made_by), folder_name(Path(model.name).name) or "teacher"
    words = tuple(word for word in words if word.startswith(("data.source=", "machine.")))
    alike = [job for job in teachers.values() if job.reference == reference and _data(job.words) == _data(words)]
    if alike:
        return alike[0]
    job = _with_teachers(reference, words, out / TEACHERS / name, out, teachers, making)
    number = 1
    while job.out in teachers:
        number += 1
        job.out = out / TEACHERS / f"{name}-{number}"
    job.exported = True
    teachers[job.out] = job
    return job


def _data(words: Sequence[str]) -> list[str]:
    return [word for word in words if word.startswith("data.source=")]


def is_finished(job: Job) -> bool:
    """Whether the job's folder holds the finished run of this very recipe, and the export that others wait for."""
    try:
        code = json.loads((job.out / "verdict.json").read_text())["code"]
        held = from_json((job.out / "recipe.json").read_text())
    except (OSError, ValueError, KeyError, RecipeError):
        return False
    same = not differences(identity(held, {}, {}), identity(job.recipe, {}, {}))
    return code == 0 and same and (not job.exported or (job.export / "config.json").is_file())


class Sweep:
    """Starts what can be started and waits for it. ``side_by_side``: runs at a time, which share the cores and the devices of
    this machine."""

    def __init__(self, todo: Sequence[Job], side_by_side: int, say: Callable[[str], None]) -> None:
        self.todo, self.side_by_side, self.say = todo, side_by_side, say
        self.waiting = list(todo)
        self.running: list[Started] = []
        self._devices = visible_devices()

    def run(self) -> int:
        """The process's exit code; where a stop was asked for, every run has saved itself before."""
        with Signals() as signals:
            signals.deadline.save = LEAVE
            try:
                while self.waiting or self.running:
                    if signals.asked:
                        self._stop()
                    self._start()
                    time.sleep(POLL)
                    self._collect()
            except BaseException:
                self._stop()  # nothing outlives what it was started by
                raise
            stopped = signals.asked is not None
        states = {job.state for job in self.todo}
        if stopped or ("stopped" in states and "failed" not in states):
            return STOPPED
        return DONE if all(job.done for job in self.todo) else FAULT

    def _start(self) -> None:
        for job in [job for job in self.waiting if all(teacher.ended for teacher in job.after)]:
            if len(self.running) >= self.side_by_side:
                return
            self.waiting.remove(job)
            if not all(teacher.done for teacher in job.after):
                self._end(job, "failed", ": a teacher of it is missing")
            elif is_finished(job):
                self._end(job, "skipped", ", as it was finished before")
            else:
                job.state = "running"
                self.running.append(Started(job, share_of(self.side_by_side) | self._device()))
                self.say(f"{job.out}: started")

    def _device(self) -> dict[str, str]:
        """The device with fewest runs on it, for one run."""
        if len(self._devices) < 2:
            return {}
        taken = [started.given.get(DEVICES) for started in self.running]
        return {DEVICES: min(self._devices, key=taken.count)}

    def _collect(self) -> None:
        for started in [s for s in self.running if s.process.poll() is not None]:
            job, code = started.job, started.process.returncode
            if code == DONE and started.next():
                continue
            self.running.remove(started)
            if started.asked and code == -signal.SIGTERM:  # it had not begun to listen
                code = STOPPED
            state = {DONE: "finished", STOPPED: "stopped"}.get(code, "failed")
            self._end(job, state, "" if code in (DONE, STOPPED) else f": see {started.log}")

    def _stop(self) -> None:
        """Once: nothing new begins, and every run is asked to save itself."""
        for job in self.waiting:
            job.state = "stopped"
        self.waiting.clear()
        for started in self.running:
            started.stop()

    def _end(self, job: Job, state: str, why: str) -> None:
        job.state = state
        self.say(f"{job.out}: {state}{why}")


def share_of(side_by_side: int) -> dict[str, str]:
    """Variables that keep runs side by side to their share of the cores, for threads and for data workers."""
    if side_by_side == 1:
        return {}
    cores = str(max(1, usable_cores() // side_by_side))
    return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", cores), "KDSCALE_CORES": cores}


def visible_devices() -> list[str]:
    """What each GPU is called in CUDA_VISIBLE_DEVICES."""
    named = os.environ.get(DEVICES)
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()] if torch.cuda.is_available() else []
    return [str(number) for number in range(torch.cuda.device_count())]


class Started:
    """The processes of a job: its training and, where others wait for it, its export."""

    def __init__(self, job: Job, given: dict[str, str]) -> None:
        """``given``: variables beside those of this process."""
        self.job, self.log, self.given = job, Path(f"{job.out}.log"), given
        self.asked = False  # to stop
        train = ["train", job.reference, *job.words, "--out", str(job.out)]
        self._commands = [train, *([["export", str(job.out), str(job.export)]] if job.exported else [])]
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.log.write_bytes(b"")
        self.next()

    def next(self) -> bool:
        """Starts the next command; False where there is none."""
        if not self._commands or self.asked:
            return False
        words = [sys.executable, "-m", "kdscale", *self._commands.pop(0)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.given},
                start_new_session=True,
                preexec_fn=stop_with_parent(),
            )
        return True

    def stop(self) -> None:
        if not self.asked:
            self.asked = True
            self.process.terminate()


def stop_with_parent() -> Callable[[], object] | None:
    """What a new process calls so that it is asked to stop if this one is killed: where the system is Linux."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    return None if prctl is None else partial(prctl, _SIGNAL_AT_DEATH, int(signal.SIGTERM))
