"""``kdscale show``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from .arguments import Assignments, quiet_libraries, recipe_of, register_methods

if TYPE_CHECKING:
    from ..recipe import Recipe
    from ..recipe.method import Method

HELP = """Show recipes, methods, or one of them.

kdscale show recipes: what is shipped, and what the folder recipes/ holds.

kdscale show methods [NAME]...: papers; of a NAME also the loss and its hyper-parameters.

kdscale show RECIPE[:NAME] [path=value]...: steps, batch, rates, parameters, what is trained and what is frozen."""

What = Annotated[str, typer.Argument(metavar="WHAT", help="'recipes', 'methods', or RECIPE[:NAME].")]
Json = Annotated[bool, typer.Option("--json", help="Of a recipe: the resolved one as JSON, every default spelt out.")]


def run(what: What, assignments: Assignments = None, json: Json = False) -> None:
    quiet_libraries()
    words = assignments or []
    if what in ("recipes", "methods") and json:
        raise typer.BadParameter(f"a recipe can be shown so, and {what} cannot: leave it out", param_hint="'--json'")
    if what == "recipes" and words:
        raise typer.BadParameter(f"{words[0]!r} is for a recipe: kdscale show RECIPE {words[0]}")
    lines = _recipes() if what == "recipes" else _methods(words) if what == "methods" else _recipe(what, words, json)
    for line in lines:
        typer.echo(line)


def _recipes() -> Iterator[str]:
    """One line a recipe, in columns that no narrow terminal or pipe cuts."""
    from ..errors import RecipeError
    from ..recipe.load import meant, recipes_of, shipped

    rows = [("recipe", "phases", "data", "networks")]
    for short, path in shipped():
        try:
            rows += [_row(f"{short}:{name}", recipe) for name, recipe in meant(recipes_of(path)).items()]
        except RecipeError as error:
            rows.append((short, str(error), "", ""))
    widths = [max(len(row[column]) for row in rows if row[-1]) for column in range(4)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _row(name: str, recipe: Recipe) -> tuple[str, str, str, str]:
    from ..recipe import FromPhase
    from ..recipe.method import kind_of

    phases = " > ".join(
        f"{kind_of(p.method)} {p.epochs or p.steps:g} {'epochs' if p.epochs else 'steps'}" for p in recipe.phases
    )
    sources = {role: s for where in (recipe.networks, *(p.networks for p in recipe.phases)) for role, s in where.items()}
    roles = ", ".join(
        f"{role} of phase {s.phase}" if isinstance(s, FromPhase) else f"{role} {s.name}"
        for role, s in ({**sources, **recipe.networks}).items()
    )
    return name, phases, recipe.data.source, roles


def _methods(kinds: Sequence[str]) -> Iterator[str]:
    from ..recipe.method import Method, method_of_kind

    register_methods()
    for kind, method in sorted(Method.registry.items()) if not kinds else []:
        paper = method.paper
        yield f"{kind:<12} {paper.year}  {paper.title} ({paper.authors}, {paper.venue})"
    for method in [method_of_kind(kind) for kind in kinds]:
        yield from _method(method)


def _method(method: type[Method]) -> Iterator[str]:
    """Paper, loss, what the method needs, and every hyper-parameter with its default and, of a choice, the others."""
    import dataclasses
    import inspect
    from typing import Literal, get_args, get_origin, get_type_hints

    made, paper, hints = method(), method.paper, get_type_hints(method)
    needs = made.needs()
    yield f"{hints['kind'].__args__[0]}: {paper.title}"
    yield f"  paper    {paper.authors}, {paper.venue} {paper.year}" + (f", section {paper.section}" if paper.section else "")
    yield f"  formula  {paper.formula}"
    head = "; the student has a distillation token" if needs.distillation_head else ""
    yield f"  trained  {', '.join(needs.trained)}; frozen: {', '.join(needs.frozen) or 'none'}{head}"
    yield from (f"  {line}".rstrip() for line in (inspect.getdoc(method) or "").replace("``", "").splitlines())
    for field in dataclasses.fields(method):
        parts = [part for part in (hints[field.name], *get_args(hints[field.name])) if get_origin(part) is Literal]
        choice = ", ".join(repr(value) for part in parts for value in get_args(part))
        if field.name != "kind":
            yield f"  {field.name} = {getattr(made, field.name)!r}" + (f"  of {choice}" if choice else "")


def _recipe(reference: str, assignments: Sequence[str], as_json: bool) -> Iterator[str]:
    from ..recipe import resolve, to_json

    recipe = recipe_of(reference, assignments)
    if as_json:
        yield to_json(resolve(recipe)).rstrip("\n")
        return
    from ..engine.describe import describe

    yield from describe(recipe, ranks=1)
