"""``kdscale show``."""

from __future__ import annotations

from typing import Annotated

import typer

from .arguments import Assignments, quiet_libraries, recipe_of, register_methods

HELP = """Show recipes, methods, or one of them.

kdscale show recipes | methods | RECIPE[:NAME] [path=value]... (steps, batch, rates, parameters, what is trained and frozen)"""

What = Annotated[str, typer.Argument(metavar="WHAT", help="'recipes', 'methods', or RECIPE[:NAME].")]
Json = Annotated[bool, typer.Option("--json", help="The resolved recipe as JSON, every default spelt out.")]


def run(what: What, assignments: Assignments = None, json: Json = False) -> None:
    quiet_libraries()
    if what == "recipes":
        _recipes()
    elif what == "methods":
        _methods(assignments[0] if assignments else None)
    else:
        _recipe(what, assignments, json)


def _recipes() -> None:
    from rich.console import Console
    from rich.table import Table

    from ..errors import RecipeError
    from ..recipe.load import recipes_of, shipped
    from ..recipe.method import kind_of

    table = Table("recipe", "phases", "networks", "data", box=None, pad_edge=False)
    for short, path in shipped():
        try:
            for name, recipe in recipes_of(path).items():
                phases = " > ".join(f"{kind_of(p.method)} {p.epochs or p.steps:g}" for p in recipe.phases)
                roles = ", ".join(f"{role} {getattr(source, 'name', source.kind)}" for role, source in recipe.networks.items())
                table.add_row(f"{short}:{name}", phases, roles, recipe.data.source)
        except RecipeError as error:
            table.add_row(short, str(error), "", "")
    Console(width=160 if not Console().is_terminal else None).print(table)


def _methods(kind: str | None) -> None:
    from ..recipe.method import Method, method_of_kind

    register_methods()

    if kind is None:
        for name, cls in sorted(Method.registry.items()):
            typer.echo(f"{name:<16} {cls.paper.year}  {cls.paper.title} ({cls.paper.authors}, {cls.paper.venue})")
        return
    cls = method_of_kind(kind)
    paper = cls.paper
    typer.echo(
        f"{kind}: {paper.title}, {paper.authors}, {paper.venue} {paper.year}" + (f", {paper.section}" if paper.section else "")
    )
    typer.echo(f"  {paper.formula}")
    import dataclasses

    for field in dataclasses.fields(cls):
        if field.name != "kind":
            typer.echo(f"  {field.name} = {getattr(cls(), field.name)!r}")


def _recipe(reference: str, assignments: list[str] | None, as_json: bool) -> None:
    from ..recipe import resolve, to_json

    recipe = recipe_of(reference, assignments)
    if as_json:
        typer.echo(to_json(resolve(recipe)), nl=False)
        return
    from ..engine.describe import describe

    for line in describe(resolve(recipe), ranks=1):
        typer.echo(line)
