"""``path=value`` on the command line, typed by the field's own annotation.

A path walks fields, roles and phases (by name or number): ``phases.student.optimizer.lr=1e-3``. In a recipe of one phase
the words ``phases.0.`` may be left out. A number after ``+`` is added to what the recipe says (``epochs=+50``). A bare word
is a kind where there are kinds (``optimizer=sgd``), and a network's name where a network is wanted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from ..errors import RecipeError
from .copies import follow
from .core import Phase, Recipe
from .faults import kinds, misfit, nearest
from .method import Method
from .networks import Source, named


def override(recipe: Recipe, assignments: Sequence[str]) -> Recipe:
    """The recipe with each ``path=value`` applied in turn; with another method or setting of one nothing is published of it.

    Raises RecipeError naming the field, the value, what is allowed.
    """
    before = [phase.method for phase in recipe.phases]
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not path:
            raise RecipeError(f"{assignment!r} is not of the form path=value, as in epochs=100")
        recipe = follow(recipe, _set(recipe, _whole_path(recipe, path.split(".")), [], text))
    same = before == [phase.method for phase in recipe.phases]
    return recipe if same or not recipe.published else dataclasses.replace(recipe, published={})


def _whole_path(recipe: Recipe, parts: list[str]) -> list[str]:
    fields = {f.name for f in dataclasses.fields(Recipe)}
    phase_fields = {f.name for f in dataclasses.fields(Phase)}
    if parts[0] in fields or parts[0] not in phase_fields:
        return parts
    if len(recipe.phases) > 1:
        names = ", ".join(f"phases.{p.name or i}.{parts[0]}" for i, p in enumerate(recipe.phases))
        raise RecipeError(f"{parts[0]!r} belongs to a phase and this recipe has several: {names}")
    return ["phases", "0", *parts]


def _set(node: Any, parts: list[str], done: list[str], text: str) -> Any:
    """``node`` with the value at ``parts`` replaced; ``done`` is the path that led here."""
    head, rest = parts[0], parts[1:]
    if isinstance(node, tuple) and done == ["phases"]:
        place = _phase_place(node, head)
        if not rest:
            raise RecipeError(f"phases.{head} is a whole phase: set a field of it, as in phases.{head}.epochs=100")
        return (*node[:place], _set(node[place], rest, [*done, head], text), *node[place + 1 :])
    if isinstance(node, Mapping):
        return _set_in_mapping(node, head, rest, done, text)
    if not dataclasses.is_dataclass(node) or isinstance(node, type):
        where = ".".join(done)
        raise RecipeError(f"{where} is {node!r} and has no field {head!r}; set it whole: {where}=...")
    known = [f.name for f in dataclasses.fields(node)]
    if head not in known:
        short = [f.name for f in dataclasses.fields(Phase)] if isinstance(node, Recipe) and len(node.phases) == 1 else []
        raise RecipeError(f"there is no field {'.'.join([*done, head])!r}; {nearest(head, [*known, *short])}")
    old = getattr(node, head)
    if rest and old is not None:
        new = _set(old, rest, [*done, head], text)
    elif rest:
        raise RecipeError(f"{'.'.join([*done, head])} is not set, so {'.'.join(parts)!r} has no place; give it whole")
    else:
        new = _parse(node, head, text, ".".join([*done, head]))
    return _replaced(node, {head: new} | _other_length(node, head), ".".join([*done, head]))


def _other_length(node: Any, head: str) -> dict[str, None]:
    """A phase has one length: giving it in steps takes the epochs away, and the other way round."""
    lengths = {"epochs": "steps", "steps": "epochs"}
    return {lengths[head]: None} if isinstance(node, Phase) and head in lengths else {}


def _phase_place(phases: tuple[Any, ...], head: str) -> int:
    names = [p.name for p in phases]
    if head in names:
        return names.index(head)
    if head.isdigit() and int(head) < len(phases):
        return int(head)
    raise RecipeError(f"there is no phase {head!r}; {nearest(head, [n or str(i) for i, n in enumerate(names)])}")


def _set_in_mapping(node: Mapping[str, Any], head: str, rest: list[str], done: list[str], text: str) -> Any:
    where = ".".join([*done, head])
    if rest:
        if head not in node:
            what = "role" if done[-1] == "networks" else "name"
            raise RecipeError(f"there is no {what} {head!r} in {'.'.join(done)}; {nearest(head, list(node))}")
        return {**node, head: _set(node[head], rest, [*done, head], text)}
    if done[-1] == "networks" and head not in node:
        raise RecipeError(f"there is no role {head!r} in {'.'.join(done)}; {nearest(head, list(node))}")
    given = _literal(text)
    if done[-1] == "networks":
        if isinstance(given, str):
            return {**node, head: named(given, node[head])}
        return {**node, head: _validated(Source, given, where)}
    return {**node, head: given}


def _parse(node: Any, name: str, text: str, where: str) -> Any:
    old = getattr(node, name)
    hint = get_type_hints(type(node), include_extras=True)[name]
    step = _literal(text[1:]) if text.startswith("+") else None
    if isinstance(step, (int, float)):
        if isinstance(old, (int, float)) and not isinstance(old, bool):
            return _validated(hint, old + step, where)
        if old is None:
            raise RecipeError(f"{where} is not set, so there is nothing to add {text} to: {_instead(node, name, where, text)}")
    given = _literal(text)
    if isinstance(given, str) and (name == "method" or kinds(hint)):
        given = {"kind": given}
    try:
        return _validated(hint, given, where)
    except RecipeError:
        if isinstance(given, str) or given is None:
            raise
        try:  # a name that reads as a number or a date stays a name where a name is wanted
            return TypeAdapter(hint).validate_python(text)
        except ValidationError:
            pass
        raise


def _instead(node: Any, name: str, where: str, text: str) -> str:
    """A phase is as long as its other length says, and that one can be added to."""
    other = next(iter(_other_length(node, name)), None)
    if other is None:
        return f"{where}={text[1:]} sets it"
    held = getattr(node, other)
    return f"the phase's length is {other}={held:g}, so write {where.removesuffix(name)}{other}=+N, or {where}=N for another length"


def _literal(text: str) -> Any:
    """The value that the text spells: YAML's scalars and flow lists, with ``1e-3`` a number as everywhere else."""
    try:
        return (
            float(text)
            if text.lower().strip("+-").replace(".", "").replace("e", "").replace("-", "").isdigit() and "e" in text.lower()
            else yaml.safe_load(text)
        )
    except (ValueError, yaml.YAMLError):
        return text


def _validated(hint: Any, given: Any, where: str) -> Any:
    try:
        return TypeAdapter(hint).validate_python(given)
    except ValidationError as error:
        raise RecipeError(misfit(error, given, where, hint)) from None


def _replaced(node: Any, changes: dict[str, Any], where: str) -> Any:
    try:
        return dataclasses.replace(node, **changes)
    except ValidationError as error:
        raise RecipeError(misfit(error, changes[where.rpartition(".")[2]], where)) from None


__all__ = ["Method", "nearest", "override"]
