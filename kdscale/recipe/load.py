"""``RECIPE[:NAME]``: a Python file and a recipe in it, or the JSON or YAML of one recipe; found here or among the shipped ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import FunctionType
from typing import Any

from ..errors import RecipeError
from . import own
from .core import Recipe
from .faults import nearest
from .running import run_file
from .text import from_json, from_yaml


def load(reference: str) -> Recipe:
    """The recipe that a reference names. Raises RecipeError with the nearest names where there is none.

    >>> load("quickstart").phases[0].name
    'teacher'
    """
    text, _, name = reference.partition(":")
    path = find(text)
    if path.suffix in (".json", ".yaml", ".yml"):
        if name:
            raise RecipeError(f"{path} holds one recipe and has no {name!r} in it")
        try:
            content = path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"{path} cannot be read: {error}") from None
        changed = own.reopen(path.parent) if path.name == "recipe.json" else ""  # a run's
        try:
            recipe = from_json(content) if path.suffix == ".json" else from_yaml(content)
        except RecipeError as error:
            raise RecipeError(f"{path}: {error}{changed}") from None
    else:
        recipe = pick(recipes_of(path), name, text)
    return recipe if recipe.name else dataclasses.replace(recipe, name=called(path, name, reference))


def called(path: Path, name: str, reference: str) -> str:
    """What a recipe without a name of its own is called: a shipped one the same, however it was asked for."""
    short = next((short for short, place in shipped() if place == path.resolve()), None)
    return reference if short is None else f"{short}:{name}" if name else short


def pick(recipes: dict[str, Recipe], name: str, text: str) -> Recipe:
    """The recipe called ``name`` of a file that was asked for by ``text``; without a name, the only one or 'recipe'."""
    if name in recipes:
        return recipes[name]
    if name:
        raise RecipeError(f"{text} has no recipe {name!r}; {nearest(name, list(recipes))}")
    distinct = meant(recipes)
    if len(distinct) == 1 or "recipe" in distinct:
        return distinct.get("recipe") or next(iter(distinct.values()))
    raise RecipeError(f"{text} has several recipes, name one: {', '.join(f'{text}:{n}' for n in distinct)}")


def meant(recipes: dict[str, Recipe]) -> dict[str, Recipe]:
    """The recipes of a file without ``base``, which the others are made from, unless it is all there is."""
    return {name: recipe for name, recipe in recipes.items() if name != "base"} or recipes


def find(text: str) -> Path:
    """The file of a reference: as given, or among :func:`roots`, with or without its ending."""
    places = [Path(text), *(root / text for root in roots())]
    for place in places:
        for candidate in (place, Path(f"{place}.py")):
            if candidate.is_file():
                return candidate
    known = [name for name, _ in shipped()]
    raise RecipeError(f"there is no recipe {text!r}; {nearest(text, known)}")


def roots() -> list[Path]:
    """Folders of recipes: of the working folder, of the checkout, of the installed package."""
    package = Path(__file__).resolve().parents[1]
    return [
        root
        for root in dict.fromkeys([Path("recipes").resolve(), package.parent / "recipes", package / "recipes"])
        if root.is_dir()
    ]


def shipped() -> list[tuple[str, Path]]:
    """(short name, file) of every recipe file in the roots, the first root's where two have a name; ``_*.py`` are none."""
    found: dict[str, Path] = {}
    for root in roots():
        for path in sorted(root.rglob("*.py")):
            if not path.name.startswith("_"):
                found.setdefault(path.relative_to(root).with_suffix("").as_posix(), path)
    return sorted(found.items())


def recipes_of(path: Path) -> dict[str, Recipe]:
    """All recipes that a Python file defines at its top, or in its mapping ``recipes``, by name.

    Raises RecipeError for a file that does not run, or has none.
    """
    things = vars(run_file(path))
    recipes = {name: thing for name, thing in things.items() if isinstance(thing, Recipe)}
    table = things.get("recipes")
    for name, thing in table.items() if isinstance(table, Mapping) else ():
        if not isinstance(name, str) or not isinstance(thing, Recipe):
            raise RecipeError(f"{path}: recipes[{name!r}] is {_no_recipe(thing)}")
        recipes[name] = thing
    if not recipes:
        uncalled = _function(things)
        made = f"; {uncalled} is a function: call it, {uncalled} = {uncalled}()" if uncalled else ""
        raise RecipeError(f"{path} defines no Recipe at its top level, and no mapping 'recipes' of them{made}")
    return recipes


def _no_recipe(thing: Any) -> str:
    if callable(thing):
        return "a function: call it, so that it is a Recipe"
    return f"{thing!r} and no Recipe: write NAME: Recipe(...)"


def _function(things: Mapping[str, Any]) -> str | None:
    """The function of a file that was meant to make a recipe, as its name says, or else its last."""
    own = [thing for thing in things.values() if isinstance(thing, FunctionType) and thing.__module__ == things["__name__"]]
    names = [thing.__name__ for thing in own]
    return next((name for name in ("recipe", "recipes") if name in names), names[-1] if names else None)
