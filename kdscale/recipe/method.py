"""The abstract ``Method`` value and the roll of kinds: what a recipe knows of a method without torch.

A method is a frozen value that subclasses :class:`Method` (through ``kdscale.methods.base``, which adds ``build``);
subclassing registers its ``kind``, by which JSON tells methods apart.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BeforeValidator, SerializeAsAny, TypeAdapter

from ..errors import RecipeError
from .faults import nearest
from .frozen import value
from .origin import Origin, origin_of

if TYPE_CHECKING:
    from ..types import Progress
    from .core import Phase


@dataclass(frozen=True)
class Paper:
    title: str
    authors: str
    year: int
    venue: str
    section: str = ""  # where the loss stands in it
    formula: str = ""  # the loss, in one line of plain text
    published: tuple[str, ...] = ()  # results as printed, a line each with its place


UNPUBLISHED = Paper("unpublished", "nobody named", 0, "unpublished")  # of a method of one's own that names none


@dataclass(frozen=True)
class Needs:
    """What a method asks of its networks; the preflight proves it before the first step."""

    trained: tuple[str, ...] = ("student",)  # roles
    frozen: tuple[str, ...] = ()
    drawn: tuple[str, ...] = ()  # roles of which the architecture alone is taken, with fresh weights
    taps: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # role -> taps; 'stages', 'stages.pre': all there are
    views: int = 1  # of each image, each with its own augmentation
    cuts: tuple[str, ...] = ()  # roles whose blocks it runs one by one
    distillation_head: bool = False  # the student must have a distillation token
    labels: bool = False  # of the whole set
    whole_weights: bool = False  # two modules share one parameter: no sharded back-end
    couples: str | None = None  # 'micro-batch': accumulation changes the curve


@value
class Method:
    """What a phase minimises."""

    registry: ClassVar[dict[str, type[Method]]] = {}
    paper: ClassVar[Paper]
    origin: ClassVar[Origin]
    supports: ClassVar[frozenset[str]] = frozenset({"classification"})

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Registers the class under its kind. Raises RecipeError where another class has this kind."""
        super().__init_subclass__(**kwargs)
        cls.origin = origin_of(cls.__module__)
        if not cls.origin.ours and not hasattr(cls, "paper"):
            cls.paper = UNPUBLISHED
        kind = getattr(cls, "kind", None)
        if isinstance(kind, str):
            _refuse_second(cls, kind)
            Method.registry[kind] = cls

    def needs(self) -> Needs:
        return Needs()

    def asks(self, progress: Progress) -> tuple[str, ...]:
        """The frozen roles that speak in the step at ``progress``; the others are not run."""
        return self.needs().frozen

    def reads(self, networks: Mapping[str, Any]) -> Mapping[str, tuple[str, ...]]:
        """role -> places between its blocks, of frozen networks that speak by these alone and run no further, without logits.

        ``networks``: all of the phase, by role, for where blocks lie is a network's own affair.
        """
        return {}

    def phases(self, phase: Phase) -> tuple[Phase, ...]:
        """The phases that a phase with this method stands for; a part that is expanded again is itself."""
        return (phase,)


def numbered(role: str, count: int) -> tuple[str, ...]:
    """``count`` roles of one sort: ('teacher', 'teacher2', 'teacher3')."""
    return tuple(role if number == 1 else f"{role}{number}" for number in range(1, count + 1))


def kind_of(method: Method) -> str:
    """The kind under which a method's class is registered."""
    return str(getattr(method, "kind", type(method).__name__))


def _refuse_second(cls: type[Method], kind: str) -> None:
    """A file may be run again, and then its classes take the places of their former selves."""
    other = Method.registry.get(kind)
    if other is None:
        return
    name, before = cls.__qualname__, other.__qualname__
    if not (cls.origin.same(other.origin) and (name == before or "<locals>" in name)):
        raise RecipeError(
            f"two methods have one kind, {kind!r}: {before} of {other.origin.told} and {name} of {cls.origin.told};"
            f" give {name} another one, kind: Literal['{kind}_mine'] = '{kind}_mine'"
        )


def method_of_kind(kind: str) -> type[Method]:
    """The method registered as ``kind``. Raises RecipeError with the nearest names."""
    if kind in Method.registry:
        return Method.registry[kind]
    raise RecipeError(_unknown(kind))


def _unknown(kind: Any) -> str:
    known = sorted(Method.registry)
    near = difflib.get_close_matches(str(kind), known, 3, 0.4) or known[:3]
    return f"there is no method {kind!r}; nearest: {', '.join(near)}; for one of your own set KDSCALE_METHODS to its module or file"


def _by_kind(given: Any) -> Any:
    if isinstance(given, str) and given in Method.registry:
        raise ValueError(
            f"{given!r} is a method's kind: write {Method.registry[given].__name__}() in Python, {{kind: {given}}} in text"
        )
    if isinstance(given, Method) and all(setting.name != "kind" for setting in dataclasses.fields(given)):
        raise ValueError(f"{type(given).__name__} has no field 'kind', by which text names it: is @value above the class?")
    if not isinstance(given, dict):
        return given
    cls = Method.registry.get(str(given.get("kind")))
    if cls is None:
        raise ValueError(_unknown(given.get("kind")))
    known = [setting.name for setting in dataclasses.fields(cls)]
    for name in given:
        if name not in known:
            raise ValueError(f"method {given['kind']!r} has no field {name!r}; {nearest(str(name), known)}")
    return TypeAdapter(cls).validate_python(given)


AnyMethod = Annotated[SerializeAsAny[Method], BeforeValidator(_by_kind)]
