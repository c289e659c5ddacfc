"""Saves: a folder of safetensors and JSON that is complete or does not exist, and holds all that the next step depends on.

    checkpoints/step-00012500/save.json            progress, sums, history, optimizer numbers, size and sha256 of each file
                              trained.safetensors     param/<name>, <moment>/<name>, ema/<name>: float32, full shape
                              buffers.safetensors     buffer/<name>, in their own type
                              statistics.safetensors  BatchNorm statistics of each rank (several ranks only)

A part above FILE_LIMIT is several files, trained-00000-of-00004.safetensors and so on, its tensors cut by rows (format 2).
Names are those of the unwrapped module. There is no generator state: steps derive what they draw.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ...data.files import flush_folder
from ...errors import RunError
from .files import sha256, write_json, write_tensors
from .slices import cut, joined, places, taken

FORMATS = (1, 2)  # 2: tensors cut by rows; a save without them is still written as 1
PARTS = ("trained", "buffers", "statistics")
LATE = 60.0  # seconds by which a shared folder may be behind on another machine
FILE_LIMIT = 2**30  # bytes of a part in one file
UNFINISHED, LEAVING, FORMER = ".tmp-", ".del-", ".old-"  # before the name of a save that is being written, removed, replaced


@dataclass
class Save:
    """What a save holds. ``facts``: JSON (phase, step, global step, sums, history, optimizer numbers, what wrote it)."""

    facts: dict[str, Any]
    trained: dict[str, Tensor]
    buffers: dict[str, Tensor] = field(default_factory=dict)
    statistics: dict[str, Tensor] = field(default_factory=dict)


def write(folder: Path, step: int, save: Save) -> Path:
    """Commits a save of global step ``step``; the rename is the commit. Raises OSError and leaves the older saves alone."""
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / name_of(step)
    aside = _aside(UNFINISHED, final)
    aside.mkdir()
    try:
        files: dict[str, Any] = {}
        rows: dict[str, Any] = {}
        for part in PARTS:
            tensors = getattr(save, part)
            if tensors:
                _write_part(aside, part, tensors, files, rows)
        facts = {"format": 2 if rows else 1, **save.facts, "files": files} | ({"rows": rows} if rows else {})
        write_json(aside / "save.json", {**facts, "sha256": seal(facts)})
        _commit(aside, final)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    flush_folder(folder)
    return final


def _commit(aside: Path, final: Path) -> None:
    """A save that has the name already (a step may be saved twice) goes after the new one stands; :func:`sweep` undoes a half."""
    former = _aside(FORMER, final)
    if final.exists():
        os.rename(final, former)
    os.rename(aside, final)
    shutil.rmtree(former, ignore_errors=True)


def _aside(head: str, save: Path) -> Path:
    return save.with_name(f"{head}{save.name}-{uuid.uuid4().hex[:8]}")


def _write_part(aside: Path, part: str, tensors: dict[str, Tensor], files: dict[str, Any], rows: dict[str, Any]) -> None:
    """Writes a part and notes its files, and where it needs several, which rows lie in which."""
    held = cut(tensors, FILE_LIMIT)
    names = [f"{part}-{n:05d}-of-{len(held):05d}" if len(held) > 1 else part for n in range(len(held))]
    for name, content in zip(names, held, strict=True):
        path = aside / f"{name}.safetensors"
        write_tensors(path, {tensor: taken(tensors[tensor], rows) for tensor, rows in content.items()})
        files[path.name] = {"size": path.stat().st_size, "sha256": sha256(path), "tensors": len(content)}
    if len(held) > 1:
        rows[part] = places(tensors, {f"{name}.safetensors": content for name, content in zip(names, held, strict=True)})


def seal(facts: dict[str, Any]) -> str:
    """sha256 of all that a save.json says besides it."""
    return hashlib.sha256(json.dumps({k: v for k, v in facts.items() if k != "sha256"}).encode()).hexdigest()


def read_on(path: Path, told: str | None) -> Save:
    """As :func:`read`, on a machine that may see late what rank 0 has chosen by its seal ``told``."""
    end = time.monotonic() + LATE
    while True:
        try:
            save = read(path)
            if save.facts.get("sha256") != told:
                raise RunError(f"{path} is another save here than on rank 0: the ranks must share one folder")
            return save
        except (RunError, OSError) as error:
            if time.monotonic() > end:
                late = RunError(str(error))
                late.code = 70  # of this machine, not of the command: it may be right on another
                raise late from None
        with suppress(OSError):
            os.listdir(path.parent)  # asks the server anew
        time.sleep(0.5)


def read(path: Path) -> Save:
    """Raises RunError naming the file that is missing, short or changed."""
    facts = verify(path)
    parts = {
        part: joined(_contents(path, [f for f in facts["files"] if part_of(f) == part]), facts.get("rows", {}).get(part, {}))
        for part in PARTS
    }
    return Save(facts, **parts)


def _contents(path: Path, files: list[str]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    for name in files:
        try:
            yield name, load_file(path / name)
        except SafetensorError as error:
            raise RunError(f"{path / name} cannot be read: {error}") from None


def part_of(file: str) -> str:
    return file.removesuffix(".safetensors").partition("-")[0]


def read_facts(path: Path) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads((path / "save.json").read_text())
    except FileNotFoundError:
        raise RunError(f"{path} has no save.json: it is not a complete save") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunError(f"{path / 'save.json'} is damaged: {error}") from None
    if facts.get("format") not in FORMATS:
        raise RunError(f"{path} has format {facts.get('format')!r}; this version reads {' and '.join(map(str, FORMATS))}")
    told = facts.get("sha256")  # saves of older versions have none
    if told is not None and told != seal(facts):
        raise RunError(f"{path / 'save.json'} does not hold what was saved (sha256 differs)")
    return facts


def verify(path: Path, content: bool = True) -> dict[str, Any]:
    """The facts of a whole save. Raises RunError naming the file that is missing, short or (``content``) changed."""
    facts = read_facts(path)
    for name, described in facts["files"].items():
        _verify(path / name, described, content)
    return facts


def _verify(path: Path, described: dict[str, Any], content: bool) -> None:
    if not path.exists():
        raise RunError(f"{path} is missing from its save")
    size = path.stat().st_size
    if size != described["size"]:
        raise RunError(f"{path} is {size} bytes and was saved with {described['size']}: it is truncated")
    if content and sha256(path) != described["sha256"]:
        raise RunError(f"{path} does not hold what was saved (sha256 differs)")


def newest(folder: Path, warn: Callable[[str], None], family: str | None = None, *, remove: bool = True) -> Path | None:
    """The newest whole save of a run (of ``family``); each damaged one before it is told to ``warn``, passed over and removed
    once a whole one is found, so that it can never be counted among those to keep."""
    damaged: list[Path] = []
    for path in reversed(all_saves(folder)):
        try:
            facts = read_facts(path)
            if family is not None and facts.get("family") != family:
                warn(f"{path} is a save of another recipe and is left alone")
                continue
            verify(path)
        except RunError as error:
            warn(f"{error}; going back to the save before it")
            damaged.append(path)
            continue
        for other in damaged if remove else ():
            _remove(other)
        return path
    return None


def all_saves(folder: Path) -> list[Path]:
    """Complete saves, oldest first."""
    return sorted(p for p in folder.glob("step-*") if p.is_dir()) if folder.is_dir() else []


def unfinished(folder: Path) -> list[Path]:
    """Folders of saves that are being written, removed or replaced, or were when their process died."""
    return sorted(p for head in (UNFINISHED, LEAVING, FORMER) for p in folder.glob(f"{head}*"))


def name_of(step: int) -> str:
    return f"step-{step:08d}"


def step_of(path: Path) -> int:
    return int(path.name.partition("-")[2])


def sweep(folder: Path) -> None:
    """Removes what a killed process left half-written, and takes back what it had not yet replaced. Only under the run's lock."""
    for path in unfinished(folder):
        save = path.with_name(path.name[len(FORMER) :].rpartition("-")[0])
        if path.name.startswith(FORMER) and not save.exists():
            os.rename(path, save)
        else:
            shutil.rmtree(path, ignore_errors=True)


def keep(folder: Path, newest_count: int, kept: set[int], at: int) -> None:
    """Deletes all saves up to global step ``at`` but the newest ``newest_count`` and the steps in ``kept``; later ones are not ours."""
    for path in [p for p in all_saves(folder) if step_of(p) <= at][:-newest_count]:
        if step_of(path) not in kept:
            _remove(path)


def _remove(path: Path) -> None:
    """Renamed first: no half-deleted save has a good name."""
    aside = _aside(LEAVING, path)
    os.rename(path, aside)
    shutil.rmtree(aside, ignore_errors=True)
