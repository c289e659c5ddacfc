"""The abstract ``Method`` value and the roll of kinds: what a recipe knows of a method without torch.

A method is a frozen value that subclasses :class:`Method` (through ``kdscale.methods.base``, which adds ``build``);
subclassing registers its ``kind``, by which JSON tells methods apart.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BeforeValidator, SerializeAsAny, TypeAdapter

from ..errors import RecipeError
from .frozen import value

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
    supports: ClassVar[frozenset[str]] = frozenset({"classification"})

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        kind = cls.__dict__.get("kind")
        if isinstance(kind, str):
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


def method_of_kind(kind: str) -> type[Method]:
    """The method registered as ``kind``. Raises RecipeError with the nearest names."""
    if kind in Method.registry:
        return Method.registry[kind]
    known = sorted(Method.registry)
    near = difflib.get_close_matches(kind, known, 3, 0.4) or known[:3]
    raise RecipeError(f"there is no method {kind!r}; nearest: {', '.join(near)}")


def _by_kind(given: Any) -> Any:
    if not isinstance(given, dict):
        return given
    cls = Method.registry.get(given.get("kind", ""))
    if cls is None:
        known = sorted(Method.registry)
        near = difflib.get_close_matches(str(given.get("kind")), known, 3, 0.4) or known[:3]
        raise ValueError(f"there is no method {given.get('kind')!r}; nearest: {', '.join(near)}")
    return TypeAdapter(cls).validate_python(given)


AnyMethod = Annotated[SerializeAsAny[Method], BeforeValidator(_by_kind)]
