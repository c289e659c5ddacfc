"""``kdscale check``."""

from __future__ import annotations

import typer

from .arguments import Assignments, RecipeWord, quiet_libraries, recipe_of

HELP = """Prove that a recipe can run here; train nothing.

Opens the data, builds every network, measures the teachers on held-out images, times steps, and says what the whole run takes."""


def run(recipe: RecipeWord, assignments: Assignments = None) -> None:
    quiet_libraries()
    value = recipe_of(recipe, assignments)
    from ..engine.check import check
    from ..engine.parallel import connect

    session = connect(value.machine, value.precision)
    try:
        check(value, session, typer.echo if session.main else lambda text: None)
    finally:
        session.close()
