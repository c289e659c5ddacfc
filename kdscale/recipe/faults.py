"""What pydantic found wrong, told in one line: the place, what was given there, what is allowed.

Of several faults the first place's are told; the others show up when it is mended.
"""

from __future__ import annotations

import dataclasses
import difflib
import traceback
import types
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

LONGEST = 80  # characters of a value that a message repeats


def misfit(error: ValidationError, given: Any, where: str = "", hint: Any = None) -> str:
    """``where``: the path of ``given``; ``hint``: its annotation, which tells the kinds of a union and whether it may be null."""
    faults = sorted(error.errors(include_url=False), key=lambda fault: fault["type"] != "unexpected_keyword_argument")
    place = _place(faults[0]["loc"], given)
    here = [fault for fault in faults if _place(fault["loc"], given) == place]
    path = ".".join([*([where] if where else []), *map(str, place)])
    start = f"{path}: " if path else ""
    for fault in here:
        if told := _sentence(fault, class_at(hint, fault["loc"])):
            return start + told
    for part in place:
        given = given[part]
    allowed = [_allowed(fault, () if place else kinds(hint)) for fault in here]
    if not place and takes_null(hint):
        allowed.append("null")
    return f"{start}{_shown(given)} does not fit; allowed: {' or '.join(dict.fromkeys(allowed))}"


def misfit_of_call(error: ValidationError) -> str:
    """What is wrong with the words that Python code gave to a value's class, which is named first."""
    frames = [frame.f_locals for frame, _ in traceback.walk_tb(error.__traceback__)]
    call = next((held for held in reversed(frames) if "__dataclass_self__" in held), None)
    if call is None:
        return misfit(error, {}, error.title)
    owner = type(call["__dataclass_self__"])
    known = field_names(owner)
    if len(call["args"]) > len(known):
        return f"{owner.__name__} has {len(known)} fields, and {len(call['args'])} values are given: {', '.join(known)}"
    given = dict(zip(known, call["args"], strict=False)) | call["kwargs"]
    strange = next((name for name in given if name not in known), None)
    if strange in vars(owner).get("__annotations__", {}):
        return f"{owner.__name__}: write @value above the class, so that its fields can be given"
    if strange is not None:
        return f"{owner.__name__} has no field {strange!r}; {nearest(strange, known)}"
    hints = get_type_hints(owner, include_extras=True)
    for name, each in given.items():
        try:
            TypeAdapter(hints[name]).validate_python(each)
        except ValidationError as fault:
            return _misfit_of_field(fault, each, f"{owner.__name__}.{name}", hints[name])
    return misfit(error, given, owner.__name__)


def _misfit_of_field(error: ValidationError, given: Any, where: str, hint: Any) -> str:
    makers = [member.__name__ for member in _members(hint) if is_value(member)]
    if isinstance(given, str) and makers and error.errors()[0]["type"] != "value_error":
        return f"{where}: {_shown(given)} does not fit; write {' or '.join(f'{name}(...)' for name in makers)}"
    return misfit(error, given, where, hint)


def field_names(owner: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(owner)]


def class_at(hint: Any, location: Sequence[int | str]) -> type | None:
    """The class of values whose field the last step of ``location`` names, from an annotation down."""
    for step in location[:-1]:
        found = [inner for member in _members(hint) for inner in _inside(member, step)]
        if not found:
            return None
        hint = found[0]
    return next(filter(is_value, _members(hint)), None)


def is_value(member: Any) -> bool:
    return dataclasses.is_dataclass(member)


def _members(hint: Any) -> list[Any]:
    """The annotation without its notes; of a union, each of its sorts."""
    if get_origin(hint) is Annotated:
        return _members(get_args(hint)[0])
    if get_origin(hint) in (Union, types.UnionType):
        return [inner for member in get_args(hint) for inner in _members(member)]
    return [hint]


def _inside(member: Any, step: int | str) -> list[Any]:
    """What ``step`` leads to: a field, an entry, or the member itself where the step is its kind."""
    if is_value(member):
        hints = get_type_hints(member, include_extras=True)
        return [member] if getattr(member, "kind", None) == step else [hints[step]] if step in hints else []
    inner = get_args(member)
    return [inner[-1] if issubclass(get_origin(member) or object, Mapping) else inner[0]] if inner else []


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


def _sentence(fault: Any, owner: type | None) -> str | None:
    """A fault that no list of what is allowed would cure. ``owner``: the class whose field it is, where that is known."""
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
            return f"there is no field {last!r}" + (f"; {nearest(str(last), field_names(owner))}" if owner else "")
    return None


def _allowed(fault: Any, known: tuple[str, ...]) -> str:
    message = str(fault["msg"]).removeprefix("Input should be ")
    match fault["type"]:
        case "union_tag_not_found" | "model_attributes_type":
            return "{kind: NAME, ...}" + (f" of the kinds {', '.join(known)}" if known else "")
        case "dataclass_type":
            return f"the fields of {fault['ctx']['class_name']}, as {{NAME: VALUE}}"
        case "tuple_type":
            return "a list, [...]"
        case "dict_type" | "mapping_type":
            return "{NAME: VALUE}"
    return message.partition(", ")[0] if message.startswith("a valid ") else message


def _shown(given: Any) -> str:
    text = repr(given)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def nearest(name: str, known: Sequence[str]) -> str:
    """'nearest: a, b' of the known names, or the whole list where it is short."""
    known = list(dict.fromkeys(known))
    near = difflib.get_close_matches(name, known, 3, 0.5)
    if near:
        return f"nearest: {', '.join(near)}"
    return f"known: {', '.join(known)}" if known else "none are known"
