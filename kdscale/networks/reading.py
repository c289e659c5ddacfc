"""How a body is read: its answer, its taps and its cuts, for each family of bodies.

A reader holds no module: it is handed the body each time, so copies of a network read their own body. Submodules are called,
never hooked: a hook added after a first compiled call is silently left out, and back-ends gather weights at a submodule's call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from ..errors import NetworkError
from ..types import Outputs

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .cifar import CifarNetwork

Taps = tuple[str, ...]
Span = tuple[str | None, str | None]
"""(after, upto): names of blocks; ``None`` is the image, and the logits."""


class Reader(Protocol):
    taps: Taps

    def heads(self, body: Any) -> dict[str, nn.Module]:
        """'class' and, where there is one, 'distillation'."""

    def cuts(self, body: Any) -> tuple[Taps, ...]:
        """Names of the blocks, grouped by stage; () where the family has no spans."""

    def read(self, body: Any, images: Tensor, taps: Taps) -> Outputs:
        """The whole network."""

    def run(self, body: Any, x: Tensor, span: tuple[int, int | None], taps: Taps) -> tuple[Tensor | None, Outputs]:
        """Blocks ``span[0]`` to ``span[1]`` (not included; ``None``: on to the logits): (the map where cut short, outputs)."""


class CifarReader:
    """The families of ``cifar``, which know their own taps."""

    def __init__(self, taps: Taps) -> None:
        self.taps = taps

    def heads(self, body: CifarNetwork) -> dict[str, nn.Module]:
        return {"class": body.head}

    def cuts(self, body: CifarNetwork) -> tuple[Taps, ...]:
        return body.cuts()

    def read(self, body: CifarNetwork, images: Tensor, taps: Taps) -> Outputs:
        return Outputs(*body.walk(images, taps))

    def run(self, body: CifarNetwork, x: Tensor, span: tuple[int, int | None], taps: Taps) -> tuple[Tensor | None, Outputs]:
        x, taken = body.walk(x, taps, *span)
        return (None, Outputs(x, taken)) if span[1] is None else (x, Outputs(None, taken))


class LogitsReader:
    """A network of transformers: logits and nothing else."""

    taps: Taps = ()

    def heads(self, body: Any) -> dict[str, nn.Module]:
        raise NetworkError(
            "a network of transformers gives logits alone and shows no classifier: take a timm network to read its head"
        )

    def cuts(self, body: Any) -> tuple[Taps, ...]:
        return ()

    def read(self, body: Any, images: Tensor, taps: Taps) -> Outputs:
        return Outputs(body(pixel_values=images).logits)

    def run(self, body: Any, x: Tensor, span: tuple[int, int | None], taps: Taps) -> tuple[Tensor | None, Outputs]:
        raise no_spans("transformers")


def no_spans(family: str) -> NetworkError:
    return NetworkError(
        f"a network of the family {family!r} cannot be run in spans of blocks: take a CIFAR network, a timm ResNet or a timm ViT"
    )
