"""``kdscale results``."""

from __future__ import annotations

from itertools import filterfalse
from pathlib import Path
from typing import Annotated

import typer

from .arguments import quiet_libraries, register_methods

HELP = """Our scores beside the published ones.

kdscale results: the table of FILE, with a line 'not run yet' for each recipe of --of that has no row.

kdscale results RUN...: first appends these finished runs to FILE."""

Runs = Annotated[list[Path] | None, typer.Argument(metavar="[RUN]...", help="Folders of finished runs to append.")]
File = Annotated[Path, typer.Option("--file", metavar="FILE", dir_okay=False, help="A row of JSON for each finished run.")]
Of = Annotated[
    list[str] | None, typer.Option("--of", metavar="RECIPE", help="A recipe, or a file of them, to be in the table.")
]
Page = Annotated[
    Path | None, typer.Option("--readme", metavar="PAGE", help="Rewrite the table between the marks of this page.")
]


def run(
    runs: Runs = None,
    file: File = Path("recipes/cifar100/results.jsonl"),
    of: Of = None,
    readme: Page = None,
) -> None:
    quiet_libraries()
    register_methods()
    from ..engine.sweep import spelt_out
    from ..engine.trained import open_run
    from ..recipe.load import load
    from ..report import results

    told = {path: results.row_of(open_run(path)) for path in filterfalse(_is_log, runs or [])}  # all of them, or none
    for path, row in told.items():
        added = results.record(file, row)
        typer.echo(f"{path}: {'appended to' if added else 'is already in'} {file}")
    expected = [(name, dict(load(name).published)) for reference in of or [] for name in spelt_out(reference)]
    rows = results.read(file)
    if not rows and not expected:
        raise typer.BadParameter(f"{file} holds no row: append finished runs by kdscale results RUN", param_hint="'--file'")
    lines = results.table(rows, expected)
    if readme is not None:
        results.rewrite(readme, lines)
    typer.echo("\n".join(lines))


def _is_log(path: Path) -> bool:
    """What a sweep writes beside a run's folder, and a pattern like DIR/*seed=* finds too."""
    return path.suffix == ".log" and path.is_file() and Path(str(path).removesuffix(".log")).is_dir()
