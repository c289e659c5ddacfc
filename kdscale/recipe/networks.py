"""Which network plays a role, and where its weights come from."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from .frozen import FrozenDict, FrozenMapping, value


@value
class Model:
    """A network by name, folder or file.

    ``name``: an architecture of timm (fresh weights); ``timm/NAME.TAG`` (the weights of that tag); a network of the CIFAR
    families (``wrn_16_2``); or a folder, here or among the shipped recipes, with ``config.json`` and ``model.safetensors`` (timm's form, a transformers
    image classifier, or a CIFAR family's). ``weights``: ``None`` (what the name implies), ``"pretrained"``,
    ``"random"`` (the architecture alone), or the path of a safetensors file.
    """

    name: str
    weights: str | None = None
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0
    drop: Annotated[float, Field(ge=0, lt=1)] = 0.0
    size: Annotated[int, Field(gt=0)] | None = None  # pixels of its input; None: its weights', else the data's
    floor: Annotated[float, Field(ge=0, le=1)] | Literal["auto"] = "auto"  # accuracy under which a teacher is refused
    made_by: str | None = None  # RECIPE[:NAME] that trains it, where the folder ``name`` is not there
    args: FrozenMapping[Any] = FrozenDict()  # further constructor arguments
    kind: Literal["model"] = "model"


@value
class FromPhase:
    """A network that an earlier phase of the same run trained."""

    phase: str
    role: str = "student"
    at: Literal["end", "best"] | Annotated[int, Field(gt=0)] = "end"  # an epoch's number: as it was after that epoch
    floor: Annotated[float, Field(ge=0, le=1)] | Literal["auto"] = "auto"
    kind: Literal["from_phase"] = "from_phase"


@value
class Stored:
    """What a frozen network said, in the folder ``name`` that ``kdscale teach`` wrote; the network itself is not there.

    As ``path=value``: ``networks.teacher=stored:DIR``.
    """

    name: str
    kind: Literal["stored"] = "stored"


def _with_kind(given: Any) -> Any:
    """Text may leave the kind of a network out: what has a phase is that phase's."""
    if isinstance(given, str):
        raise ValueError(f"{given!r} is a word: write Model({given!r}) in Python, {{name: {given}}} in text")
    if isinstance(given, dict) and "kind" not in given:
        return given | {"kind": "from_phase" if "phase" in given else "model"}
    return given


Source = Annotated[Model | FromPhase | Stored, Field(discriminator="kind"), BeforeValidator(_with_kind)]
STORED = "stored:"


def named(text: str, old: Source) -> Source:
    """What a bare word means in the place of ``old``: a store, or a network, which keeps the role's other settings."""
    if text.startswith(STORED):
        return Stored(text.removeprefix(STORED))
    return dataclasses.replace(old, name=text) if isinstance(old, Model) else Model(text)
