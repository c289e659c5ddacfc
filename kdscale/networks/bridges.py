"""From a student's features to the form of its teacher's, for methods that subtract one from the other.

Channels by a 1x1 map with bias where the two differ, then the places by resizing the student's; of token matrices the class
and distillation tokens are matched one to one and the patches resized as the map that they are.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, cat, nn

from ..errors import NetworkError
from .network import Network
from .places import shapes_at

Resizing = Callable[[Tensor, tuple[int, int]], Tensor]
"""A map [B,C,H,W] at another (H,W)."""
Grid = tuple[int, int]


class MapBridge(nn.Module):
    """Maps [B,C,H,W]. The adapter is there only where ``inside`` and ``outside`` channels differ."""

    def __init__(self, inside: int, outside: int, resize: Resizing) -> None:
        super().__init__()
        self.adapter = nn.Identity() if inside == outside else nn.Conv2d(inside, outside, 1)
        self.resize = resize

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        return self.resize(self.adapter(student), (teacher.shape[-2], teacher.shape[-1])), teacher


class TokenBridge(nn.Module):
    """Token matrices [B,P+N,D]: P tokens for classes and distillation, N patches. Gives [B,D,tokens] of both."""

    def __init__(self, inside: int, outside: int, resize: Resizing, student: Grid, teacher: Grid) -> None:
        """``student``, ``teacher``: rows and columns of the patches. A prefix token that the other has not is left out."""
        super().__init__()
        self.adapter = nn.Identity() if inside == outside else nn.Linear(inside, outside)
        self.resize, self.student, self.teacher = resize, student, teacher

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        (mine, patches), (theirs, others) = _split(self.adapter(student), self.student), _split(teacher, self.teacher)
        patches = self.resize(patches.reshape(*patches.shape[:2], *self.student), self.teacher).flatten(2)
        shared = min(mine.shape[2], theirs.shape[2])
        return cat([mine[..., :shared], patches], 2), cat([theirs[..., :shared], others], 2)


def _split(tokens: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """[B,D,P] and [B,D,N]."""
    turned = tokens.transpose(1, 2)
    prefix = turned.shape[2] - grid[0] * grid[1]
    return turned[..., :prefix], turned[..., prefix:]


def bridges(
    student: Network, teacher: Network, places: list[tuple[str, str]], resize: Resizing
) -> list[MapBridge | TokenBridge]:
    """One for each (student's place, teacher's place). Raises NetworkError where one is a map and the other a token matrix."""
    mine, theirs = shapes_at(student, [a for a, _ in places]), shapes_at(teacher, [b for _, b in places])
    made: list[MapBridge | TokenBridge] = []
    for own, other in places:
        a, b = mine[own], theirs[other]
        if len(a) != len(b):
            raise NetworkError(
                f"{student.name!r} has {_form(a)} at {own} and {teacher.name!r} {_form(b)} at {other}: take two networks of one form"
            )
        if len(a) == 3:
            made.append(MapBridge(a[0], b[0], resize))
        else:
            made.append(TokenBridge(a[1], b[1], resize, _grid(student), _grid(teacher)))
    return made


def _form(shape: tuple[int, ...]) -> str:
    return "a map" if len(shape) == 3 else "tokens"


def _grid(network: Network) -> Grid:
    """Rows and columns of a vision transformer's patches."""
    _, rows, columns = network.shape("stage1")
    return rows, columns
