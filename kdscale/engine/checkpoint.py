"""Saves: a folder of safetensors and JSON that is complete or does not exist, and holds all that the next step depends on.

    checkpoints/step-00012500/save.json            progress, sums, history, optimizer numbers, size and sha256 of each file
                              trained.safetensors     param/<name>, <moment>/<name>, ema/<name>: float32, full shape
                              buffers.safetensors     buffer/<name>, in their own type
                              statistics.safetensors  BatchNorm statistics of each rank (several ranks only)

Names are those of the unwrapped module. There is no generator state: steps derive what they draw.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..data.files import flush_folder
from ..errors import RunError
from .files import sha256, write_json, write_tensors

FORMAT = 1


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
    aside = folder / f".tmp-{final.name}-{uuid.uuid4().hex[:8]}"
    aside.mkdir()
    try:
        files: dict[str, Any] = {}
        for name in ("trained", "buffers", "statistics"):
            tensors = getattr(save, name)
            if tensors:
                path = aside / f"{name}.safetensors"
                write_tensors(path, tensors)
                files[path.name] = {"size": path.stat().st_size, "sha256": sha256(path), "tensors": len(tensors)}
        write_json(aside / "save.json", {"format": FORMAT, **save.facts, "files": files})
        if final.exists():
            _remove(final)
        os.rename(aside, final)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    flush_folder(folder)
    return final


def read(path: Path) -> Save:
    """Raises RunError naming the file that is missing, short or changed."""
    facts = read_facts(path)
    for name, described in facts["files"].items():
        _verify(path / name, described)
    parts: dict[str, dict[str, Tensor]] = {"trained": {}, "buffers": {}, "statistics": {}}
    for name in facts["files"]:
        try:
            parts[name.partition(".")[0]] = load_file(path / name)
        except SafetensorError as error:
            raise RunError(f"{path / name} cannot be read: {error}") from None
    return Save(facts, **parts)


def read_facts(path: Path) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads((path / "save.json").read_text())
    except FileNotFoundError:
        raise RunError(f"{path} has no save.json: it is not a complete save") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunError(f"{path / 'save.json'} is damaged: {error}") from None
    if facts.get("format") != FORMAT:
        raise RunError(f"{path} has format {facts.get('format')!r}; this version reads {FORMAT}")
    return facts


def _verify(path: Path, described: dict[str, Any]) -> None:
    if not path.exists():
        raise RunError(f"{path} is missing from its save")
    size = path.stat().st_size
    if size != described["size"]:
        raise RunError(f"{path} is {size} bytes and was saved with {described['size']}: it is truncated")
    if sha256(path) != described["sha256"]:
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
            for name, described in facts["files"].items():
                _verify(path / name, described)
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


def name_of(step: int) -> str:
    return f"step-{step:08d}"


def step_of(path: Path) -> int:
    return int(path.name.partition("-")[2])


def sweep(folder: Path) -> None:
    """Removes what a killed process left half-written. Only under the run's lock."""
    if folder.is_dir():
        for path in (*folder.glob(".tmp-*"), *folder.glob(".del-*")):
            shutil.rmtree(path, ignore_errors=True)


def keep(folder: Path, newest_count: int, kept: set[int], at: int) -> None:
    """Deletes all saves up to global step ``at`` but the newest ``newest_count`` and the steps in ``kept``; later ones are not ours."""
    for path in [p for p in all_saves(folder) if step_of(p) <= at][:-newest_count]:
        if step_of(path) not in kept:
            _remove(path)


def _remove(path: Path) -> None:
    """Renamed first: no half-deleted save has a good name."""
    aside = path.with_name(f".del-{path.name}-{uuid.uuid4().hex[:8]}")
    os.rename(path, aside)
    shutil.rmtree(aside, ignore_errors=True)
