"""What pydantic found wrong, told in one line: the place, what was given there, what is allowed.

Of several faults the first place's are told; the others show up when it is mended.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import ValidationError

LONGEST = 80  # characters of a value that a message repeats


def misfit(error: ValidationError, given: Any, where: str = "", hint: Any = None) -> str:
    """``where``: the path of ``given``; ``hint``: its annotation, which tells the kinds of a union and whether it may be null."""
    faults = error.errors(include_url=False)
    place = _place(faults[0]["loc"], given)
    here = [fault for fault in faults if _place(fault["loc"], given) == place]
    path = ".".join([*([where] if where else []), *map(str, place)])
    start = f"{path}: " if path else ""
    for fault in here:
        if told := _sentence(fault):
            return start + told
    for part in place:
        given = given[part]
    allowed = [_allowed(fault, () if place else kinds(hint)) for fault in here]
    if not place and takes_null(hint):
        allowed.append("null")
    return f"{start}{_shown(given)} does not fit; allowed: {' or '.join(dict.fromkeys(allowed))}"


def kinds(hint: Any) -> tuple[str, ...]:
    """The kinds of a tagged union; () for any other annotation."""
    if get_origin(hint) is Annotated:
        return kinds(get_args(hint)[0])
    members = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else ()
    named = tuple(str(member.kind) for member in members if hasattr(member, "kind"))
    return named if len(named) == len(members) else ()


def takes_null(hint: Any) -> bool:
    if get_origin(hint) is Annotated:
        return takes_null(get_args(hint)[0])
    if get_origin(hint) in (Union, types.UnionType):
        return any(takes_null(member) for member in get_args(hint))
    return hint is type(None)


def _place(location: tuple[int | str, ...], given: Any) -> tuple[int | str, ...]:
    """The steps of ``location`` that lead into ``given``; the others name branches of unions, or what is not there."""
    place: list[int | str] = []
    for step in location:
        inside = step in given if isinstance(given, Mapping) else isinstance(given, (list, tuple)) and step in range(len(given))
        if inside:
            place.append(step)
            given = given[step]
    return tuple(place)


def _sentence(fault: Any) -> str | None:
    """A fault that no list of what is allowed would cure."""
    context, last = fault.get("ctx", {}), fault["loc"][-1] if fault["loc"] else ""
    match fault["type"]:
        case "value_error":
            return str(fault["msg"]).removeprefix("Value error, ")
        case "union_tag_invalid":
            return f"there is no kind {context['tag']!r}; kinds: {context['expected_tags'].replace(chr(39), '')}"
        case "missing":
            return "there are too few values" if isinstance(last, int) else f"{last!r} is missing: give a value to it"
        case "too_long":
            return f"there are {context['actual_length']} values; at most {context['max_length']} are taken"
        case "unexpected_keyword_argument":
            return f"there is no field {last!r}"
    return None


def _allowed(fault: Any, known: tuple[str, ...]) -> str:
    message = str(fault["msg"]).removeprefix("Input should be ")
    match fault["type"]:
        case "union_tag_not_found" | "model_attributes_type":
            return "{kind: NAME, ...}" + (f" of the kinds {', '.join(known)}" if known else "")
        case "dataclass_type":
            return f"the fields of {fault['ctx']['class_name']}, as {{NAME: VALUE}}"
        case "tuple_type":
            return "a list"
        case "dict_type" | "mapping_type":
            return "{NAME: VALUE}"
    return message.partition(", ")[0] if message.startswith("a valid ") else message


def _shown(given: Any) -> str:
    text = repr(given)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
