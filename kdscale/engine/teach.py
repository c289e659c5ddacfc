"""``kdscale teach``: what the frozen networks of a recipe say of its training images, once, for all runs on the same images.

The ranks share the shards, not the batches: each has whole steps, in the micro-batches of ``machine.accumulate``, so the bytes do
not depend on how many ranks write them. A shard is complete or does not exist, and the same command writes those that are
missing: after an interruption, or for more epochs.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from .. import __version__
from ..data import plan
from ..data.files import TEMPORARY, replacing
from ..errors import DataError, KdscaleError, RecipeError, RunError
from ..recipe import Model, Recipe, Stored, resolve
from ..types import Batch
from .checkpoint.files import write_json
from .checkpoint.lock import Lock
from .faults import ends
from .faults.ends import Stopped
from .faults.signals import Signals
from .parallel import Session
from .reporter import Silent, duration
from .run import run_identity
from .stage import build_stage
from .start import judge_teachers
from .stored.answers import Form, Keep, Rows, checksums, header, witness
from .stored.store import FACTS, FORMAT, Present, Shard, changes, inputs, meaning, path_of, place_of, read_facts, row_of, shards

SHARD = 1 << 25  # bytes of a shard, about
VERSIONS = ("torch", "torchvision", "timm", "pillow")  # that decode and change images
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Wish:
    """``epochs``: of each phase; None: its whole length."""

    keep: Keep = "all"
    type: Literal["fp16", "fp32"] = "fp16"
    epochs: float | None = None


def teach(recipe: Recipe, out: Path, session: Session, say: Say, wish: Wish) -> list[Path]:
    """Writes what each frozen role says of each phase's images to ``out``; returns the folders, one a phase and role.

    Raises Stopped where a stop was asked for, and KdscaleError, one line, for what cannot be taught or written.
    """
    recipe = resolve(recipe)
    recipe = dataclasses.replace(recipe, machine=dataclasses.replace(recipe.machine, parallel="ddp"))
    roles = taught_roles(recipe, say)
    resolve(with_stores(recipe, roles, out))  # a method that could not learn from it is told before hours are spent
    if recipe.machine.threads:
        torch.set_num_threads(recipe.machine.threads)
    lock = Lock(out / "lock")
    places: list[Path] = []
    with Signals() as signals:
        session.once(lambda: _claim(out, lock))
        try:
            identity = session.once(lambda: run_identity(recipe))
            for number in roles:
                teaching = Teaching(recipe, number, roles[number], out, session, say, wish)
                teaching.declare(identity["phases"][number]["networks"])
                teaching.write(signals)
                places += teaching.places.values()
        except torch.cuda.OutOfMemoryError as error:
            accumulate = recipe.machine.accumulate
            raise ends.OutOfMemory(
                f"the device is out of memory: double machine.accumulate ({accumulate}) ({error})"
            ) from error
        finally:
            if session.main:
                lock.release()
    return places


def taught_roles(recipe: Recipe, say: Say) -> dict[int, tuple[str, ...]]:
    """Phase number -> frozen roles whose networks are there from the start. Raises RecipeError where there is none."""
    found: dict[int, tuple[str, ...]] = {}
    for number, phase in enumerate(recipe.phases):
        for role in phase.method.needs().frozen:
            if isinstance(phase.networks[role], Model):
                found[number] = (*found.get(number, ()), role)
            else:
                say(f"phase {phase.name}: {role} is left out: its network is of an earlier phase, or stored already")
    if not found:
        raise RecipeError(
            "no phase of this recipe has a frozen network of its own to store the answers of: name one, networks.teacher=NAME;"
            " what a phase of a run has trained is exported first (kdscale export)"
        )
    return found


def with_stores(recipe: Recipe, roles: dict[int, tuple[str, ...]], out: Path) -> Recipe:
    """The recipe that learns from ``out``."""
    phases = list(recipe.phases)
    for number, names in roles.items():
        stores = dict.fromkeys(names, Stored(str(out)))
        phases[number] = dataclasses.replace(phases[number], networks={**phases[number].networks, **stores})
    return dataclasses.replace(recipe, phases=tuple(phases))


def _claim(out: Path, lock: Lock) -> None:
    out.mkdir(parents=True, exist_ok=True)
    foreign = [p.name for p in out.iterdir() if not p.name.startswith((".", lock.path.name)) and not _is_place(p)]
    if foreign:
        raise RunError(
            f"{out} holds files that are no store's ({', '.join(sorted(foreign)[:3])}): choose an empty folder for --out"
        )
    lock.take()
    for path in out.glob(f"*/*{TEMPORARY}*"):
        path.unlink()


def _is_place(path: Path) -> bool:
    """Whether it is a folder that an earlier start made: with its facts, or with nothing but what they were written through."""
    return path.is_dir() and ((path / FACTS).is_file() or all(p.name.startswith(FACTS) for p in path.iterdir()))


class Teaching:
    """One phase's teachers at work on the images of that phase."""

    def __init__(
        self, recipe: Recipe, number: int, roles: tuple[str, ...], out: Path, session: Session, say: Say, wish: Wish
    ) -> None:
        self.session, self.say = session, say
        alone = dataclasses.replace(session, rank=0, size=1)  # each rank reads whole batches, of steps of its own
        self.stage = stage = session.together(partial(build_stage, recipe, number, alone, None))
        learning = Present(with_stores(recipe, {number: roles}, out).phases[number])
        learning.update(stage.trained)
        learning.refuse_readers()
        info = stage.train_split.info
        if wish.epochs is not None:
            stage.plan = plan(stage.data, info.samples, wish.epochs, None)
        self.plan, self.form = stage.plan, Form(wish.keep, wish.type, info.classes)
        self.places = {role: place_of(out, number, role) for role in roles}
        begun = [read_facts(place)["shard_steps"] for place in self.places.values() if (place / FACTS).exists()]
        self.shard_steps = begun[0] if begun else max(1, SHARD // (self.plan.batch * self.form.dtype.itemsize))

    def declare(self, networks: dict[str, Any]) -> None:
        """Judges the teachers and says what the stores will hold. ``networks``: by role, with weights by their content."""
        stage = self.stage
        scores = self.session.together(lambda: judge_teachers(stage, Saying(self.say)))
        for role, place in self.places.items():
            facts = {
                "format": FORMAT,
                "name": stage.frozen[role].name,
                "teacher": networks[role] | {"precision": stage.recipe.precision},
                "form": dataclasses.asdict(self.form),
                "inputs": inputs(stage.recipe, stage.number, stage.train_split.info),
                "steps": self.plan.total_steps,
                "shard_steps": self.shard_steps,
                "top1": scores.get(role),
                "made_by": {"kdscale": __version__, **{name: version(name) for name in VERSIONS}},
            }
            self.session.once(partial(_declare, place, facts))

    def write(self, signals: Signals) -> None:
        """All shards that are missing, each by one rank; the ranks keep step, so that all of them stop after the same one."""
        missing: list[Shard] = self.session.once(self.missing)
        self.say(self._told(missing))
        ranks = self.session.size
        shares = [missing[len(missing) * rank // ranks : len(missing) * (rank + 1) // ranks] for rank in range(ranks)]
        turns, began = max(sum(shard.stop - shard.first for shard in share) for share in shares), time.perf_counter()
        with closing(self.written(shares[self.session.rank])) as work:
            for turn in range(1, turns + 1):
                self._agree(_tried(work), signals)
                if turn % self.stage.recipe.machine.log_every == 0 or turn == turns:
                    self._log(turn, turns, time.perf_counter() - began)

    def _told(self, missing: list[Shard]) -> str:
        size, steps, roles = self.form.dtype.itemsize, self.plan.total_steps, ", ".join(self.places)
        whole = row_of(self.plan, steps) * size / 2**20
        left = f"{len(missing)} shards to write" if missing else "all is written"
        return (
            f"{self.stage.phase.name}: {roles}: {steps} steps of {self.plan.batch} images, {size} bytes an image"
            f" ({self.form.words}), {whole:.1f} MB a role; {left}"
        )

    def _log(self, turn: int, turns: int, seconds: float) -> None:
        rate = self.session.size * turn * self.plan.batch / seconds
        eta = duration(seconds / turn * (turns - turn))
        self.say(f"{self.stage.phase.name} step {turn}/{turns} of each rank, {rate:.0f} images/s, ETA {eta}")

    def _agree(self, fault: Exception | None, signals: Signals) -> None:
        """Raises on every rank what any rank met, or Stopped."""
        failed, stop = self.session.most_flags([fault is not None, signals.asked is not None])
        if failed:
            told = [text for text in self.session.all_of(str(fault) if fault else None) if text]
            raise RunError(told[0]) from fault
        if stop:
            raise Stopped(next(asked for asked in self.session.all_of(signals.asked) if asked))

    def missing(self) -> list[Shard]:
        """Shards that any role has not, or not whole."""

        def there(path: Path, rows: int) -> bool:
            try:
                return header(path, self.form.dtype)[1] >= rows
            except (DataError, FileNotFoundError):
                return False

        needed, places = shards(self.plan, self.plan.total_steps, self.shard_steps), self.places.values()
        return [shard for shard in needed if not all(there(path_of(place, shard.number), shard.rows) for place in places)]

    def written(self, share: list[Shard]) -> Generator[None, None, None]:
        """Writes ``share``, in order; comes back after each step."""
        with closing(self.stage.stream()) as stream:
            batches: Iterator[Batch] = iter(())
            at = -1  # step that the stream is at
            for shard in share:
                if shard.first != at:
                    batches = stream.batches(shard.first)
                kept = {role: np.zeros(shard.rows, self.form.dtype) for role in self.places}
                for step in range(shard.first, shard.stop):
                    for _ in range(self.stage.recipe.machine.accumulate):
                        self._answer(next(batches), step, shard, kept)
                    if step + 1 == shard.stop:
                        self._keep(shard, kept)
                    yield
                at = shard.stop

    @torch.no_grad()
    def _answer(self, batch: Batch, step: int, shard: Shard, kept: dict[str, Rows]) -> None:
        """Puts what is said of a micro-batch into its rows."""
        seen, samples, positions = (t.cpu().numpy() for t in (witness(batch.images), batch.index, batch.position))
        inside = positions - self.plan.position(step) + row_of(self.plan, step) - row_of(self.plan, shard.first)
        for role, rows in kept.items():
            logits = self.stage.frozen[role](batch.images).logits
            for name, column in (self.form.packed(logits) | {"sample": samples, "witness": seen}).items():
                with np.errstate(over="ignore"):
                    rows[name][inside] = column
                if column.dtype.kind == "f" and not np.isfinite(rows[name][inside]).all():
                    raise RunError(
                        f"{role} says a number at step {step} that is not finite in {self.form.type}: is the network broken?"
                        " if it is not, give --type fp32"
                    )

    def _keep(self, shard: Shard, kept: dict[str, Rows]) -> None:
        numbers = row_of(self.plan, shard.first) + np.arange(shard.rows, dtype=np.int64)
        for role, rows in kept.items():
            rows["crc"] = checksums(rows, numbers)
            with replacing(path_of(self.places[role], shard.number)) as file:
                np.save(file, rows)


def _tried(work: Iterator[None]) -> Exception | None:
    """One step of ``work``, and what it met; nothing where it is done."""
    try:
        next(work, None)
    except (KdscaleError, OSError) as error:
        return error
    return None


def _declare(place: Path, facts: dict[str, Any]) -> None:
    """Says in ``place`` what its shards will hold. Raises RunError where it holds other answers; more epochs may be added."""
    if (place / FACTS).exists():
        before = read_facts(place)
        changed = changes(meaning(before), meaning(facts))
        if changed:
            raise RunError(f"{place} holds other answers: {changed}; set it back, or give another --out")
        facts = before | {"steps": max(before["steps"], facts["steps"])}
    place.mkdir(parents=True, exist_ok=True)
    write_json(place / FACTS, facts)


class Saying(Silent):
    """A reporter that only says."""

    def __init__(self, say: Say) -> None:
        self._say = say

    def say(self, text: str) -> None:
        self._say(text)
