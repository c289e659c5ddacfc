"""``kdscale sweep``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from .arguments import quiet_libraries, register_methods

HELP = """Train several recipes, or one over a grid.

kdscale sweep cifar100/wrn_40_2_wrn_16_2:kd cifar100/wrn_40_2_wrn_16_2:shake --grid seed=0,1,2 --out runs/wrn

A file without :NAME stands for all its recipes. Teachers that a recipe names and that are missing are trained first.

The same command skips what is finished and continues what was interrupted; DIR/table.md holds the scores."""

Words = Annotated[
    list[str], typer.Argument(metavar="RECIPE[:NAME]... [path=value]...", help="Recipes, and fields to change in all of them.")
]
Grid = Annotated[
    list[str] | None, typer.Option("--grid", metavar="path=v1,v2", help="An axis; all combinations are run. May be repeated.")
]
Out = Annotated[Path, typer.Option("--out", "-o", metavar="DIR", file_okay=False, help="A folder for all runs.")]
SideBySide = Annotated[int, typer.Option("--side-by-side", "-n", min=1, help="Runs at a time, on one device.")]
Record = Annotated[
    Path | None, typer.Option("--record", metavar="FILE", help="Also append each finished run to this file of results.")
]
Dry = Annotated[bool, typer.Option("--dry-run", help="List the runs and train nothing.")]


def run(
    words: Words, out: Out, grid: Grid = None, side_by_side: SideBySide = 1, record: Record = None, dry_run: Dry = False
) -> None:
    quiet_libraries()
    register_methods()
    from ..engine.sweep import Sweep, is_finished, jobs
    from ..report import results

    if os.environ.get("WORLD_SIZE", "1") not in ("", "1"):
        raise typer.BadParameter("a sweep starts its runs itself, each on one device: start it without torchrun")
    references = [word for word in words if "=" not in word]
    if not references:
        raise typer.BadParameter("name at least one recipe: kdscale sweep RECIPE[:NAME] ... --out DIR", param_hint="'RECIPE'")
    if record is not None:
        results.read(record)  # what is wrong with it is said now, and not after the last run
    todo = jobs(references, [word for word in words if "=" in word], grid or [], out)
    if dry_run:
        for job in todo:
            state = "finished" if is_finished(job) else "to do"
            typer.echo(f"{state:<9} {job.out}: kdscale train {' '.join([job.reference, *job.words])}")
        return
    code = 70
    try:
        code = Sweep(todo, side_by_side, typer.echo).run()
    finally:
        _tell([job.out for job in todo if job.done and not job.exported], out, record)
    raise typer.Exit(code)


def _tell(finished: list[Path], out: Path, record: Path | None) -> None:
    from ..engine.trained import open_run
    from ..report import results

    rows = [results.row_of(open_run(path)) for path in finished]
    if record is not None:
        for row in rows:
            results.record(record, row)
    if rows:
        lines = results.table(rows)
        (out / "table.md").write_text("\n".join(lines) + "\n")
        typer.echo("\n".join(lines))
