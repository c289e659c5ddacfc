"""Argument words that several commands share."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..recipe import Recipe

RecipeWord = Annotated[
    str, typer.Argument(metavar="RECIPE[:NAME]", help="A recipe file (.py, .json, .yaml) or a shipped recipe's name.")
]
Assignments = Annotated[
    list[str] | None, typer.Argument(metavar="path=value", help="Fields to change: epochs=10 data.batch=512.")
]
Out = Annotated[
    Path,
    typer.Option(
        "--out", "-o", metavar="DIR", file_okay=False, help="The run's folder; an interrupted run in it is continued."
    ),
]


def recipe_of(reference: str, assignments: Sequence[str] | None) -> Recipe:
    """The recipe of a command line, with its assignments applied."""
    from ..recipe import override
    from ..recipe.load import load

    register_methods()
    return override(load(reference), assignments or [])


def register_methods() -> None:
    """A recipe in JSON, and so every run's, names its methods by kind: ours, and those that KDSCALE_METHODS leads to."""
    from .. import methods  # noqa: F401
    from ..recipe import own

    own.register(filter(None, map(str.strip, os.environ.get(own.VARIABLE, "").split(","))))


def quiet_libraries() -> None:
    """Keeps other libraries' banners out of our lines, and a warning to one line; set before they are imported."""
    for name in ("TF_CPP_MIN_LOG_LEVEL", "TRANSFORMERS_NO_ADVISORY_WARNINGS"):
        os.environ.setdefault(name, "3" if "LOG" in name else "1")
    import warnings

    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.formatwarning = lambda message, *_: f"warning: {' '.join(str(message).splitlines())}\n"
