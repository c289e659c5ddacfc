"""Recipe <-> plain data <-> JSON or YAML; what comes back equals what went out."""

from __future__ import annotations

import json
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from ..errors import RecipeError
from .core import Recipe
from .faults import misfit

_ADAPTER: TypeAdapter[Recipe] = TypeAdapter(Recipe)


def to_plain(recipe: Recipe) -> dict[str, Any]:
    plain: dict[str, Any] = _ADAPTER.dump_python(recipe, mode="json")
    return plain


def from_plain(plain: Any) -> Recipe:
    """Raises RecipeError: one line that names the field, the value and what is allowed."""
    try:
        return _ADAPTER.validate_python(plain)
    except ValidationError as error:
        raise RecipeError(misfit(error, plain, hint=Recipe)) from None


def to_json(recipe: Recipe) -> str:
    return json.dumps(to_plain(recipe), indent=2) + "\n"


def from_json(text: str) -> Recipe:
    try:
        plain = json.loads(text)
    except json.JSONDecodeError as error:
        raise RecipeError(f"not JSON: {error}") from None
    return from_plain(plain)


def to_yaml(recipe: Recipe) -> str:
    return yaml.safe_dump(to_plain(recipe), sort_keys=False)


def from_yaml(text: str) -> Recipe:
    try:
        plain = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"not YAML: {' '.join(str(error).split())}") from None
    return from_plain(plain)
