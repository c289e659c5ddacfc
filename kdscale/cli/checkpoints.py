"""``kdscale checkpoints``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .arguments import quiet_libraries

if TYPE_CHECKING:
    from ..engine.checkpoint.inventory import Found

HELP = """List a run's saves and prove them whole.

Every save with its place, size, age and writer, and what is wrong with it; unfinished ones and the files of phases too.

Nothing is removed: a run may be training in DIR. Ends with 0 where the newest save is whole, else with 70."""

Dir = Annotated[Path, typer.Argument(metavar="DIR", exists=True, file_okay=False, help="A run's folder.")]
Verify = Annotated[bool, typer.Option("--verify/--no-verify", help="Read all files against their hashes, or sizes alone.")]
COLUMNS = ("save", "phase", "step", "epoch", "size", "age", "written by", "marks", "state")


def run(folder: Dir, verify: Verify = True) -> None:
    quiet_libraries()
    from ..engine.checkpoint import inventory

    saves = inventory.saves(folder, verify)
    phases = list(inventory.phase_files(folder))
    lines = _aligned([COLUMNS, *map(_row, saves)]) if saves else []
    if phases:
        lines += [""] * bool(lines) + _aligned([("phase file", *COLUMNS[1:]), *map(_row, phases)])
    start = inventory.next_start(saves)
    lines.append(f"the next start goes on from {start}" if start else "no save is whole: the next start begins anew")
    for line in lines:
        typer.echo(line)
    raise typer.Exit(0 if inventory.newest_is_whole(saves) else 70)


def _row(found: Found) -> tuple[str, ...]:
    step = "" if found.step is None else str(found.step)
    epoch = "" if found.epoch is None else f"{found.epoch:.2f}"
    age = _age(found.seconds)
    return found.name, found.phase, step, epoch, _bytes(found.bytes), age, found.writer, ", ".join(found.marks), found.state


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """In columns; those that have nothing below their head are left out."""
    columns = [column for column in zip(*rows, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in zip(*columns, strict=True)
    ]


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.4g} GB"


def _age(seconds: float) -> str:
    """In the largest unit of which there are two."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
