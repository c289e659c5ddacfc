"""``kdscale train``."""

from __future__ import annotations

from typing import Annotated

import typer

from .arguments import Assignments, Out, RecipeWord, quiet_libraries, recipe_of

HELP = """Train a recipe, or continue its run.

The same command continues an interrupted run at its last save. Ctrl-C and SIGTERM finish the step, save, and end with 75.

Several processes: torchrun --nproc-per-node 2 -m kdscale train ... (accelerate launch -m kdscale train ... on GPUs)."""


def run(
    recipe: RecipeWord,
    out: Out,
    assignments: Assignments = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete the run that the folder holds and begin anew.")
    ] = False,
) -> None:
    quiet_libraries()
    value = recipe_of(recipe, assignments)
    from ..engine.parallel import connect
    from ..engine.run import train
    from .terminal import reporters

    session = connect(value.machine, value.precision)
    try:
        code = train(value, out, session, reporters, overwrite=overwrite)
    finally:
        session.close()
    if code == 0 and session.main:
        typer.echo(f"done: {out}")
    raise typer.Exit(code)
