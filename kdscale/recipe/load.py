"""``RECIPE[:NAME]``: a Python file and a recipe in it, or the JSON or YAML of one recipe; found here or among the shipped ones."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from pathlib import Path

from ..errors import KdscaleError, RecipeError
from .core import Recipe
from .paths import nearest
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
        try:
            recipe = from_json(content) if path.suffix == ".json" else from_yaml(content)
        except RecipeError as error:
            raise RecipeError(f"{path}: {error}") from None
    else:
        recipe = pick(recipes_of(path), name, path)
    return recipe if recipe.name else dataclasses.replace(recipe, name=called(path, name, reference))


def called(path: Path, name: str, reference: str) -> str:
    """What a recipe without a name of its own is called: a shipped one the same, however it was asked for."""
    short = next((short for short, place in shipped() if place == path.resolve()), None)
    return reference if short is None else f"{short}:{name}" if name else short


def pick(recipes: dict[str, Recipe], name: str, path: Path) -> Recipe:
    if name in recipes:
        return recipes[name]
    if name:
        raise RecipeError(f"{path} has no recipe {name!r}; {nearest(name, list(recipes))}")
    distinct = meant(recipes)
    if len(distinct) == 1 or "recipe" in distinct:
        return distinct.get("recipe") or next(iter(distinct.values()))
    raise RecipeError(f"{path} has several recipes, name one: {', '.join(f'{path.stem}:{n}' for n in distinct)}")


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
    """All recipes that a Python file defines at its top, or in its mapping ``recipes``, by name. Raises RecipeError for a file that does not run."""
    name = f"kdscale_recipe_{path.stem}_{abs(hash(str(path.resolve())))}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise RecipeError(f"{path} is no Python file, JSON or YAML: give one of these")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except KdscaleError:
        raise
    except Exception as error:
        line = " ".join(str(error).split())
        raise RecipeError(f"{path} does not run: {type(error).__name__}: {line}") from None
    finally:
        del sys.modules[name]
    recipes = {name: thing for name, thing in vars(module).items() if isinstance(thing, Recipe)}
    table = getattr(module, "recipes", None)
    if isinstance(table, dict):
        recipes |= table
    if not recipes:
        raise RecipeError(f"{path} defines no Recipe at its top level, and no mapping 'recipes' of them")
    return recipes
