"""``kdscale bench step``."""

from __future__ import annotations

from typing import Annotated

import typer

from .arguments import Assignments, RecipeWord, quiet_libraries, recipe_of

app = typer.Typer(no_args_is_help=True, help="Measure against a rival, as ratios.")


@app.callback()
def _group() -> None:
    """Keeps `step` a word of its own while it is the only one."""


@app.command("step")
def step(
    recipe: RecipeWord,
    assignments: Assignments = None,
    pairs: Annotated[int, typer.Option("--pairs", min=3, help="Interleaved pairs of steps.")] = 30,
) -> None:
    """Time a training step against plain PyTorch.

    The engine's step and the same step written by hand, interleaved, on the same batches.
    """
    quiet_libraries()
    value = recipe_of(recipe, assignments)
    from kdscale.benchmarks.step import compare

    from ..engine.parallel import connect

    session = connect(value.machine, value.precision)
    try:
        for line in compare(value, session, pairs):
            typer.echo(line)
    finally:
        session.close()
