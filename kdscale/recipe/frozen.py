"""What every recipe value is made of: frozen pydantic dataclasses, and mappings that cannot change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, NoReturn, TypeVar, dataclass_transform

from pydantic import AfterValidator, ConfigDict, Field, PlainSerializer
from pydantic.dataclasses import dataclass as _dataclass

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(Field,))
def value(cls: type[T]) -> type[T]:
    """Makes ``cls`` a recipe value: frozen, compared by content, closed to fields that nobody declared."""
    made: Any = _dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))(cls)
    return made  # type: ignore[no-any-return]


class FrozenDict(dict[str, T]):
    """A mapping whose content is fixed when it is made; equal to a dict of the same content."""

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("a recipe is a value and does not change: make a new one with dataclasses.replace")

    __setitem__ = __delitem__ = update = pop = popitem = clear = setdefault = __ior__ = _refuse  # type: ignore[assignment]

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(sorted(self.items(), key=lambda item: item[0])))

    def __reduce__(self) -> tuple[Any, ...]:
        return (FrozenDict, (dict(self),))


FrozenMapping = Annotated[Mapping[str, T], AfterValidator(FrozenDict), PlainSerializer(dict)]
