"""The points of a sweep's grid, and what their folders are called: no two words of a command line are one folder unnoticed."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterator, Sequence

from ..errors import RecipeError
from ..recipe.load import find, shipped


def points(grid: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """All combinations of 'path=v1,v2' (a value with commas of its own goes into brackets), each as path=value words."""
    axes = []
    for axis in grid:
        path, equals, values = axis.partition("=")
        if not equals or not values:
            raise RecipeError(f"{axis!r} is no axis of a grid: write path=v1,v2, as in seed=0,1,2")
        axes.append([f"{path}={value}" for value in apart(values)])
    return itertools.product(*axes)


def apart(values: str) -> list[str]:
    """'1,2' -> ['1', '2'], and '[1,2],{a: 3, b: 4}' -> ['[1,2]', '{a: 3, b: 4}']."""
    found, depth = [""], 0
    for letter in values:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and depth == 0:
            found.append("")
        else:
            found[-1] += letter
    return found


def recipe_name(reference: str) -> str:
    """A recipe as a folder's name: a shipped one as it is called, one's own by its file's stem and its name there."""
    text, _, name = reference.partition(":")
    path = find(text)
    known = next((short for short, place in shipped() if place == path.resolve()), None)
    words = [folder_name(word) for word in (known or path.stem, name)]
    return "-".join(filter(None, words)) or "recipe"


def former_name(words: Sequence[str]) -> str:
    """The folder of a run in sweeps that earlier versions began."""
    return "-".join(re.sub(r"[^A-Za-z0-9_.=-]+", "-", word).strip("-") for word in words)


def folder_name(text: str) -> str:
    """Letters of any script, digits, '_', '.', '=' and '+'; the rest is '-'. Neither hidden nor an option."""
    return re.sub(r"[^\w.=+-]+", "-", unicodedata.normalize("NFC", text)).strip("-").lstrip(".-")
