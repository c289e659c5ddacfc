"""What lies in a run's folder to go on from, judged without touching it: a run may be training there meanwhile."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...errors import RunError
from . import saving
from .folder import Folder, family
from .phase_file import PhaseFile

WHOLE, OTHER = "whole", "of another recipe, left alone"
ASIDE = {
    saving.UNFINISHED: "unfinished: being written, or cut off; the next start removes it",
    saving.LEAVING: "being removed",
    saving.FORMER: "being replaced; the next start takes it back where the new one is missing",
}


@dataclass(frozen=True)
class Found:
    """One save, whole or not, or one file of a phase. ``state``: WHOLE, or in words what it is instead."""

    name: str
    bytes: int
    seconds: float  # of age
    state: str
    facts: dict[str, Any]  # of a save whose save.json can be read
    marks: tuple[str, ...] = ()  # newest, best, kept

    @property
    def step(self) -> int | None:
        """Of the phase."""
        step = self.facts.get("memory", self.facts).get("step")
        return None if step is None else int(step)

    @property
    def phase(self) -> str:
        return str(self.facts.get("phase_name", ""))

    @property
    def epoch(self) -> float | None:
        """None for saves of older versions, which do not say."""
        epoch = self.facts.get("epoch")
        return None if epoch is None else float(epoch)

    @property
    def writer(self) -> str:
        """Ranks and back-end: what wrote a save, not what may read it."""
        world = self.facts.get("world")
        return f"{world.get('parallel', 'ddp')} x {world['ranks']}" if world else ""


def saves(out: Path, content: bool = True) -> list[Found]:
    """Every save of a run's folder, oldest first, unfinished ones last; ``content``: files are read and hashed too.

    A save that the run removes while it is being read is left out. Raises RunError where the folder is no run's.
    """
    folder = Folder(out)
    if not (out / "recipe.json").exists() and not folder.checkpoints.is_dir():
        raise RunError(f"{out} holds no run: give the folder that was --out of kdscale train")
    mine = _family(out)
    seen = [found for path in saving.all_saves(folder.checkpoints) if (found := _save(path, mine, content))]
    ours = [found for found in seen if found.state != OTHER]
    kept: list[int] = next((found.facts["memory"]["kept"] for found in reversed(ours) if found.state == WHOLE), [])
    marked = []
    for found in seen:
        step = saving.step_of(Path(found.name))
        marks = {"newest": found in ours[-1:], "best": step == folder.best_step(), "kept": step in kept}
        marked.append(replace(found, marks=tuple(mark for mark, holds in marks.items() if holds)))
    return marked + list(_unfinished(folder.checkpoints))


def newest_is_whole(found: list[Found]) -> bool:
    """Whether the newest save of the run's own recipe can be gone on from."""
    return any("newest" in f.marks and f.state == WHOLE for f in found)


def next_start(found: list[Found]) -> str | None:
    """The save that the run's next start goes on from; None where it begins anew."""
    return next((f.name for f in reversed(found) if f.state == WHOLE), None)


def phase_files(out: Path) -> Iterator[Found]:
    """What phases left for later phases and for the export; safetensors tells a file that is cut short."""
    for path in sorted((out / "phases").glob("*/*.safetensors")):
        try:
            facts, state = {"step": PhaseFile(path).step}, WHOLE
        except RunError as error:
            facts, state = {}, str(error)
        name = f"{path.parent.name}/{path.stem}"
        yield Found(name, path.stat().st_size, time.time() - path.stat().st_mtime, state, facts)


def _save(path: Path, mine: str | None, content: bool) -> Found | None:
    facts: dict[str, Any] = {}
    try:
        facts = saving.read_facts(path)
        saving.verify(path, content)
        state = WHOLE if mine in (None, facts.get("family")) else OTHER
    except RunError as error:
        state = str(error).replace(f"{path}/", "").replace(f"{path} ", "")
    try:
        when = facts.get("time") or path.stat().st_mtime
        return Found(path.name, _size(path), time.time() - when, state, facts)
    except FileNotFoundError:
        return None


def _unfinished(folder: Path) -> Iterator[Found]:
    for path in saving.unfinished(folder):
        state = next(said for head, said in ASIDE.items() if path.name.startswith(head))
        try:
            yield Found(path.name, _size(path), time.time() - path.stat().st_mtime, state, {})
        except FileNotFoundError:
            continue  # finished or gone meanwhile


def _size(path: Path) -> int:
    return sum(entry.stat().st_size for entry in os.scandir(path) if entry.is_file())


def _family(out: Path) -> str | None:
    try:
        return family(json.loads((out / "identity.json").read_text()))
    except (OSError, ValueError, KeyError):
        return None
