"""Convolutions that bring a student's map to a teacher's size and width: FitNets' regressor, and what follows its example.

Which convolution is used depends on the sides of the two maps alone, in a fixed order, as in the program of the CRD
benchmark (Tian, Krishnan, Isola, ICLR 2020). Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, began it.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from ..errors import NetworkError


class Regressor(nn.Module):
    """Convolution with bias, batch norm and, unless ``relu`` is off, ReLU: [B,C,H,W] of the student to the teacher's shape.

    ``student`` and ``teacher``: (channels, height, width). A student of twice the teacher's side is brought down by a stride
    of 2, one of half the side up by a transposed convolution; a larger one loses its border. Raises NetworkError for any
    other pair.
    """

    def __init__(self, student: Sequence[int], teacher: Sequence[int], relu: bool = True) -> None:
        super().__init__()
        self.conv = fitting(student, teacher)
        self.bn = nn.BatchNorm2d(teacher[0])
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x))
        return functional.relu(x) if self.relu else x


def fitting(student: Sequence[int], teacher: Sequence[int]) -> nn.Module:
    """The convolution from (channels, height, width) ``student`` to ``teacher``. Raises NetworkError where there is none."""
    if len(student) != 3 or len(teacher) != 3:
        raise NetworkError(f"a regressor is between maps [C,H,W], not {tuple(student)} and {tuple(teacher)}: name other taps")
    (inside, height, wide), (width, target, target_wide) = student, teacher
    if height == 2 * target:
        return nn.Conv2d(inside, width, 3, stride=2, padding=1)
    if 2 * height == target:
        return nn.ConvTranspose2d(inside, width, 4, stride=2, padding=1)
    if height >= target and wide >= target_wide:
        return nn.Conv2d(inside, width, (1 + height - target, 1 + wide - target_wide))
    raise NetworkError(
        f"no regressor brings a map of {height}x{wide} to {target}x{target_wide}:"
        " name taps where the student's map is half as large as the teacher's, or at least as large"
    )
