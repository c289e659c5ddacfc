"""Which file a method's class was written in: what tells two classes of one kind apart, and how a run finds its method again."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path

RECIPE_MODULE = "kdscale_recipe_"  # how the names of recipe files begin, as modules


@dataclass(frozen=True)
class Origin:
    """``file`` is '' where there is none to run again: in a notebook, or in the program that trains."""

    module: str
    file: str = ""

    @property
    def ours(self) -> bool:
        return self.module.partition(".")[0] == "kdscale"

    @property
    def told(self) -> str:
        return self.file if self.module.startswith(RECIPE_MODULE) else self.module

    def same(self, other: Origin) -> bool:
        """One file is one origin, whether it was run as a recipe or imported."""
        return (self.file or self.module) == (other.file or other.module)


def origin_of(module: str) -> Origin:
    """Where the classes of a module come from, while it is being run or imported."""
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None or module == "__main__":
        return Origin(module)
    return Origin(module, str(Path(file).resolve()))


def digest_of(file: str) -> str:
    """sha256 of a file's bytes."""
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()
