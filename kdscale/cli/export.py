"""``kdscale export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .arguments import quiet_libraries, register_methods

HELP = """Write a folder that timm and transformers load.

The folder is loaded in fresh processes before it gets its name: a difference in the logits refuses it."""

Run = Annotated[Path, typer.Argument(metavar="RUN", help="The --out folder of a finished run.")]
Target = Annotated[Path | None, typer.Argument(metavar="OUT", file_okay=False, help="Folder to write; default: RUN/export.")]
What = Annotated[str, typer.Option("--what", help="student, ema, a role, a phase, or PHASE.ROLE.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a folder with other files in it.")]


def run(run: Run, out: Target = None, what: What = "student", overwrite: Overwrite = False) -> None:
    quiet_libraries()
    from ..export.from_run import export_run

    register_methods()

    report = export_run(run, out, what, overwrite=overwrite)
    for name, size in report.files:
        typer.echo(f"{size:>12,}  {name}")
    proved = ", ".join(f"{loader} {difference:.1e}" for loader, difference in report.differences.items())
    typer.echo(f"{report.folder}: {report.parameters:,} parameters; logits in fresh processes differ by: {proved}")
