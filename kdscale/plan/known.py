"""A number and how it is known. A forecast is as good as the worst of what it is made from, so marks add up to the weakest.

``counted``: arithmetic on the recipe, exact; ``given``: on the command line; ``measured``: on this machine; ``vendor``: as the
maker of a device or of a data set states it; ``assumed``: a habit of such machines, to be replaced by what is known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Mark = Literal["counted", "given", "measured", "vendor", "assumed"]


@dataclass(frozen=True, slots=True)
class Known:
    value: float
    mark: Mark


def weakest(*marks: Mark) -> Mark:
    """The mark of what is computed from numbers with these marks."""
    return max(marks, key=get_args(Mark).index, default="counted")
