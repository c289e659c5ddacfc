"""A teacher that is not there: what it said of a phase, written by ``kdscale teach``, in the place of the network.

The order, the crops and the mixing of a phase are functions of (recipe, data, position), so the images that the teacher saw
come again. A store names all that they depend on, and is refused where the recipe differs in any of it; the labels'
smoothing and the length of the run change no image and are not named. Beyond the epochs that it holds nothing comes again:
each has its own crops, so a longer run is refused too.

    DIR/1-teacher/store.json   what was taught, of which inputs, in which form (a folder a phase and role)
                  00000.npy    rows of ``answers.Form``, in order of position; each shard a whole number of steps
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from ...data import Plan, plan
from ...data.order import Integers
from ...data.store import LocalStore
from ...errors import DataError, RecipeError
from ...recipe import Data, Model, Phase, Recipe, Stored, to_plain
from ...recipe.method import kind_of
from ...recipe.resolve import differences, digest, phase_data, without_news
from ...types import DatasetInfo
from .answers import Form, Rows, checksums, header

FORMAT, FACTS = 1, "store.json"
UNSEEN = (  # of Data: no training image depends on it
    "source", "label", "workers", "prefetch", "verify", "max_bad", "read", "resident_mb",
    "eval_split", "eval_batch", "eval_crop", "eval_interpolation", "held_out",
)  # fmt: skip
SHOWN = 3  # differences that a message tells


def inputs(recipe: Recipe, number: int, info: DatasetInfo) -> dict[str, Any]:
    """All that the images of phase ``number`` of a resolved recipe depend on, under the recipe's own names."""
    phase = recipe.phases[number]
    data: dict[str, Any] = to_plain(recipe)["phases"][number]["data"]
    for name in UNSEEN:
        data.pop(name)
    data["train"].pop("smoothing")
    known = plan(phase_data(phase), info.samples, None, 1)
    data |= {"identity": info.identity, "mean": str(info.mean), "std": str(info.std), "repeat_group": known.repeat_group}
    named = {"seed": recipe.seed, "phase": number + 1, "views": phase.method.needs().views, "size": info.size, "data": data}
    return _plain(named)


def _plain(thing: Any) -> dict[str, Any]:
    """As JSON gives it back."""
    plain: dict[str, Any] = json.loads(json.dumps(thing))
    return plain


def place_of(folder: Path, number: int, role: str) -> Path:
    return folder / f"{number + 1}-{role}"


def path_of(place: Path, shard: int) -> Path:
    return place / f"{shard:05d}.npy"


def row_of(plan: Plan, step: int) -> int:
    """Number in the store of the first row of ``step``; with the tail 'drop' some positions have no row."""
    return step * plan.batch if plan.epoch_tail == "drop" else plan.position(step)


@dataclass(frozen=True, slots=True)
class Shard:
    """Steps ``first`` to ``stop`` (not included)."""

    number: int
    first: int
    stop: int
    rows: int


def shards(plan: Plan, steps: int, size: int) -> list[Shard]:
    """The shards of the first ``steps`` steps, of ``size`` steps each; the last one may have fewer."""
    ends = pairwise([*range(0, steps, size), steps])
    return [Shard(n, first, stop, row_of(plan, stop) - row_of(plan, first)) for n, (first, stop) in enumerate(ends)]


def read_facts(place: Path) -> dict[str, Any]:
    path = place / FACTS
    try:
        facts = json.loads(path.read_text())
        if facts["format"] != FORMAT:
            raise DataError(f"{path} has format {facts['format']!r}; this version reads {FORMAT}")
        Form(**facts["form"])
    except FileNotFoundError:
        raise DataError(
            f"{place} is no store of answers: it has no {FACTS}; make one with kdscale teach RECIPE --out {place.parent}"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}): restore it, or teach anew with kdscale teach") from None
    return dict(facts)


def meaning(facts: dict[str, Any]) -> dict[str, Any]:
    """What makes two stores the same, whatever their paths and length: weights count by their content."""
    return {field: facts[field] for field in ("inputs", "teacher", "form")}


def changes(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Each field that differs, with both values; '' where none does. Both as :func:`meaning` gives them.

    A field that the version which wrote ``old`` did not know is none where it says what was done before it.
    """
    defaults = {"inputs": {"data": dataclasses.asdict(Data(""))}, "teacher": dataclasses.asdict(Model(""))}
    changed = differences(old, without_news(new, old, _plain(defaults)))
    told = "; ".join(f"{path.removeprefix('inputs.')} was {was!r}, is {now!r}" for path, was, now in changed[:SHOWN])
    return told + (f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else "")


def identity_of(folder: Path) -> str:
    """sha256 of what was taught in ``folder``."""
    found = {place.name: meaning(read_facts(place)) for place in sorted(folder.glob("*/")) if (place / FACTS).exists()}
    if not found:
        raise DataError(f"{folder} holds no stored teacher: make one with kdscale teach RECIPE --out {folder}")
    return digest(found)


class Store:
    """What one role said in one phase. ``steps``: how many of them are asked for; their shards must be whole."""

    def __init__(self, place: Path, facts: dict[str, Any], plan: Plan, steps: int) -> None:
        self.place, self.facts, self.plan = place, facts, plan
        self.form = Form(**facts["form"])
        self.shard_steps = int(facts["shard_steps"])
        self._files = LocalStore()
        self._starts = self._checked(steps)

    @property
    def identity(self) -> str:
        return digest(meaning(self.facts))

    @property
    def words(self) -> str:
        """For a line of the log."""
        top1 = self.facts["top1"]
        judged = "" if top1 is None else f", top1 {100 * top1:.2f} on held-out images when it was taught"
        return f"{self.facts['name']}, stored in {self.place} ({self.form.words}){judged}"

    def _checked(self, steps: int) -> list[int]:
        """Bytes before the first row, of each shard. DataError for one that is missing, cut short or of another form."""
        again = "the same kdscale teach command writes what is missing"
        needed = [(path_of(self.place, s.number), s.rows) for s in shards(self.plan, steps, self.shard_steps)]
        starts = []
        missing = [path for path, _ in needed if not path.is_file()]
        if missing:
            raise DataError(f"{missing[0]} is missing ({len(missing)} of {len(needed)} shards are): {again}")
        for path, rows in needed:
            try:
                start, found = header(path, self.form.dtype)
            except DataError as error:
                raise DataError(f"{error}: delete it, and {again}") from None
            if found < rows:
                raise DataError(f"{path} holds {found} answers and {rows} are needed: {again}")
            starts.append(start)
        return starts

    def read(self, step: int, positions: Integers) -> Rows:
        """The rows of these positions of ``step``. DataError, naming the file, for what is cut short or damaged."""
        shard = step // self.shard_steps
        numbers = positions - self.plan.position(step) + row_of(self.plan, step)
        inside = numbers - row_of(self.plan, shard * self.shard_steps)
        path, size = path_of(self.place, shard), self.form.dtype.itemsize
        runs = np.split(inside, np.flatnonzero(np.diff(inside) != 1) + 1)
        parts = [self._files.read(path, self._starts[shard] + int(run[0]) * size, len(run) * size) for run in runs]
        rows: Rows = np.frombuffer(b"".join(parts), self.form.dtype)
        wrong = np.flatnonzero(checksums(rows, numbers) != rows["crc"])
        if len(wrong):
            raise DataError(
                f"{path} is damaged: {len(wrong)} of {len(rows)} answers of step {step} do not match their checksums;"
                " delete the file, and the same kdscale teach command writes it again"
            )
        return rows

    def close(self) -> None:
        self._files.close()


def open_stores(recipe: Recipe, number: int, info: DatasetInfo) -> dict[str, Store]:
    """role -> store, of the roles of phase ``number`` that are stored. Raises KdscaleError where one does not fit."""
    phase = recipe.phases[number]
    return {
        role: open_store(recipe, number, role, Path(source.name), info)
        for role, source in phase.networks.items()
        if isinstance(source, Stored)
    }


def open_store(recipe: Recipe, number: int, role: str, folder: Path, info: DatasetInfo) -> Store:
    phase, place = recipe.phases[number], place_of(folder, number, role)
    facts = read_facts(place)
    where = f"phase {phase.name!r}: {role}"
    changed = changes(meaning(facts), meaning(facts) | {"inputs": inputs(recipe, number, info)})
    if changed:
        raise RecipeError(
            f"{where} was taught ({place}) on other images than this recipe's: {changed}; set it back, or teach anew into another"
            " folder with kdscale teach"
        )
    asked = plan(phase_data(phase), info.samples, phase.epochs, phase.steps)
    if asked.total_steps > facts["steps"]:
        raise RecipeError(
            f"{where} is stored for {facts['steps']} steps ({facts['steps'] * asked.batch / info.samples:g} epochs) in {place}, and"
            f" the phase has {asked.total_steps}: later epochs have other crops, so store them too (kdscale teach --epochs"
            f" {asked.epochs:g} --out {folder}), or train for as long as the store"
        )
    return Store(place, facts, asked, asked.total_steps)


class Present(dict[str, Any]):
    """The networks of a phase by role. Asking for one of which only the answers are stored is a fault of the recipe."""

    def __init__(self, phase: Phase) -> None:
        super().__init__()
        self.phase = phase

    def __missing__(self, role: str) -> NoReturn:
        source = self.phase.networks.get(role)
        if not isinstance(source, Stored):
            raise KeyError(role)
        raise RecipeError(
            f"phase {self.phase.name!r}: method {kind_of(self.phase.method)!r} reads the {role}'s network itself, which stored answers"
            f" ({source.name}) cannot stand for: name the network, networks.{role}=NAME, or take a method that needs logits alone"
        )

    def refuse_readers(self) -> None:
        """Raises RecipeError where the method reads a stored role between its blocks."""
        if any(isinstance(source, Stored) for source in self.phase.networks.values()):
            for role in self.phase.method.reads(self):
                self[role]
