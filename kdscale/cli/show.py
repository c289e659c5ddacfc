"""``kdscale show``."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .arguments import Assignments, quiet_libraries, recipe_of, register_methods

if TYPE_CHECKING:
    from ..recipe import Recipe
    from ..recipe.networks import Source

HELP = """Show recipes, methods, or one of them.

kdscale show recipes [WORD]...: what is shipped, and what the folder recipes/ holds, with the published top-1; of names that hold each WORD.

kdscale show methods [NAME]...: papers, phases, trained parameters; of a NAME also the loss, its hyper-parameters and what was published.

kdscale show RECIPE[:NAME] [path=value]...: steps, batch, rates, parameters, what is trained and what is frozen.

A method of one's own is a class in the recipe's file or in a module beside it; the runs that it trains know where it is. The variable KDSCALE_METHODS, a module or file, or several with commas between, makes it known to every command: to show methods, and for a recipe in JSON or YAML."""

What = Annotated[str, typer.Argument(metavar="WHAT", help="'recipes', 'methods', or RECIPE[:NAME].")]
Json = Annotated[bool, typer.Option("--json", help="Of a recipe: the resolved one as JSON, every default spelt out.")]

COLUMNS = ("phases", "data", "networks", "published")


def run(what: What, assignments: Assignments = None, json: Json = False) -> None:
    quiet_libraries()
    words = assignments or []
    if what in ("recipes", "methods") and json:
        raise typer.BadParameter(f"a recipe can be shown so, and {what} cannot: leave it out", param_hint="'--json'")
    for word in words:
        if what == "recipes" and "=" in word:
            raise typer.BadParameter(f"{word!r} is for a recipe: kdscale show RECIPE {word}")
    lines = _recipes(words) if what == "recipes" else _methods(words) if what == "methods" else _recipe(what, words, json)
    for line in lines:
        typer.echo(line)


def _recipes(words: Sequence[str]) -> Iterator[str]:
    """A block a file and a line a recipe, in columns that no narrow terminal or pipe cuts.

    ``words``: only names that hold all of them. Raises RecipeError where none does.
    """
    from ..errors import RecipeError
    from ..recipe.load import shipped

    blocks = [(short, _rows(short, path)) for short, path in shipped()]
    kept = [(short, found) for short, rows in blocks if (found := [row for row in rows if all(w in row[0] for w in words)])]
    if not kept:
        asked = " and ".join(map(repr, words))
        raise RecipeError(f"no recipe has {asked} in its name; there are {', '.join(short for short, _ in blocks)}")
    for number, (short, rows) in enumerate(kept):
        yield from [""] * (number > 0)
        yield from _aligned([(short, *COLUMNS), *rows])


def _rows(short: str, path: Path) -> list[tuple[str, ...]]:
    """A row a recipe of one file; its error is told in place of one that does not run."""
    from ..errors import RecipeError
    from ..recipe.load import meant, recipes_of

    try:
        return [_row(f"{short}:{name}", recipe) for name, recipe in meant(recipes_of(path)).items()]
    except RecipeError as error:
        return [(short, str(error))]


def _aligned(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    widths = [max((len(row[n]) for row in rows if len(row) > 2), default=0) for n in range(1 + len(COLUMNS))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip()


def _row(name: str, recipe: Recipe) -> tuple[str, ...]:
    from ..recipe.method import kind_of

    phases = " > ".join(
        f"{kind_of(p.method)} {p.epochs or p.steps:g} {'epochs' if p.epochs else 'steps'}" for p in recipe.phases
    )
    printed = "; ".join(f"{top1:.2f} {where}" for where, top1 in recipe.published.items())
    return name, phases, recipe.data.source, _networks(recipe), printed


def _networks(recipe: Recipe) -> str:
    """Who plays the roles that the methods ask for, at last. Teachers that are the first one from other seeds are counted."""
    from ..recipe import FromPhase

    sources: dict[str, Source] = {}
    for phase in recipe.phases:
        needs, played = phase.method.needs(), {**recipe.networks, **phase.networks}
        asked = (*needs.trained, *needs.frozen, *needs.drawn)
        sources |= {role: played[role] for role in asked if role in played}
    sources = dict(sorted(sources.items(), key=lambda item: item[0] != "student"))
    named: Counter[tuple[str, str]] = Counter()
    for role, source in sources.items():
        name = f"of phase {source.phase}" if isinstance(source, FromPhase) else source.name
        first = next((known for known in named if role.startswith(known[0]) and name.startswith(known[1])), (role, name))
        named[first] += 1
    return ", ".join(
        f"{role} {name}" + (f" and {count - 1} more" if count > 1 else "") for (role, name), count in named.items()
    )


def _methods(kinds: Sequence[str]) -> Iterator[str]:
    register_methods()
    from ..recipe.method import method_of_kind
    from ..report.methods import described, roll

    found = [method_of_kind(kind) for kind in kinds]
    yield from itertools.chain.from_iterable(map(described, found)) if found else roll()


def _recipe(reference: str, assignments: Sequence[str], as_json: bool) -> Iterator[str]:
    from ..recipe import resolve, to_json

    recipe = recipe_of(reference, assignments)
    if as_json:
        yield to_json(resolve(recipe)).rstrip("\n")
        return
    from ..engine.describe import describe

    yield from describe(recipe, ranks=1)
