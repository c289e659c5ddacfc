"""VGG with batch norm: Simonyan and Zisserman 2015 (arXiv:1409.1556), the only family here whose convolutions have biases.

Taps come *before* a pooling, which belongs to the group that follows it; a group is one block, the first is the stem. The
benchmark's networks end in one linear map; ``okd_vgg16``, of OKDDip (arXiv:1912.00350), pools after every group and ends in
three, and takes images from 32 pixels on.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from .walk import CifarNetwork, kaiming_fan_out, narrow_linears

CONVOLUTIONS = {
    "vgg8": (1, 1, 1, 1, 1),
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}
WIDTHS = (64, 128, 256, 512, 512)
NAMES = (*CONVOLUTIONS, "okd_vgg16")


def build(name: str, classes: int) -> CifarNetwork:
    return OkdVGG(classes) if name == "okd_vgg16" else VGG(CONVOLUTIONS[name], classes)


class Group(nn.Sequential):
    """Convolution, norm, ReLU, as often as it takes; answers (output, the map before the last ReLU)."""

    def __init__(self, inside: int, width: int, convolutions: int) -> None:
        layers: list[nn.Module] = []
        for number in range(convolutions):
            layers += [nn.Conv2d(width if number else inside, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        super().__init__(*layers[:-1])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for layer in self:
            x = layer(x)
        return functional.relu(x), x


class VGG(CifarNetwork):
    """Five groups under the names ``block0`` to ``block4``."""

    stages = (("block1",), ("block2",), ("block3",), ("block4",))
    head_name = "classifier"

    def __init__(self, convolutions: tuple[int, ...], classes: int) -> None:
        super().__init__()
        for number, (inside, width, count) in enumerate(zip((3, *WIDTHS), WIDTHS, convolutions, strict=False)):
            self.add_module(f"block{number}", Group(inside, width, count))
        self.classifier = self.classify(WIDTHS[-1], classes)
        kaiming_fan_out(self)
        narrow_linears(self)

    def classify(self, width: int, classes: int) -> nn.Module:
        return nn.Linear(width, classes)

    def cuts(self) -> tuple[tuple[str, ...], ...]:
        """The groups themselves: their layers have no names of their own in the benchmark's files."""
        return self.stages

    def stem(self, images: Tensor) -> Tensor:
        out: Tensor = self.get_submodule("block0")(images)[0]
        return out

    def enter(self, stage: int, x: Tensor) -> Tensor:
        """The last group is entered without pooling, unless the image had 64 pixels or more."""
        return functional.max_pool2d(x, 2) if stage < 4 or x.shape[-1] >= 8 else x


class OkdVGG(VGG):
    def __init__(self, classes: int) -> None:
        super().__init__(CONVOLUTIONS["vgg16"], classes)

    def classify(self, width: int, classes: int) -> nn.Module:
        hidden = (nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        return nn.Sequential(*hidden, nn.Linear(width, classes))

    def enter(self, stage: int, x: Tensor) -> Tensor:
        return functional.max_pool2d(x, 2)

    def tail(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return functional.max_pool2d(x, 2), {}
