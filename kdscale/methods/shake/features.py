"""The shadow as a second classifier on the student's own features, which it shares and trains (the paper's abstract)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from ...errors import NetworkError
from ...networks import Network
from ...networks.heads import FusedHead, LinearHead
from ...networks.slimmed import kept
from ...types import Batch, Context, Outputs
from .distiller import Logits, ShakeDistiller

if TYPE_CHECKING:
    from .value import Shake


class FeatureDistiller(ShakeDistiller):
    """Shadows that read the student's features: linearly from the pooled ones, or through a fused head from three stages.

    ``width`` of a head: it reads the leading channels, so all its own are as many fewer.
    """

    def __init__(self, method: Shake, context: Context) -> None:
        super().__init__(method, context)
        fused = method.head == "fused"
        self.taps = (method.fused_taps or last_stages(self.student)) if fused else ("pooled",)
        self.channels = tuple(kept(count, method.width) for count in channels(self.student, self.taps))
        for name in self.shadows:
            self.add_module(name, self.head())

    def head(self) -> nn.Module:
        classes = self.student.classes
        return FusedHead(self.channels, classes) if self.method.head == "fused" else LinearHead(self.channels[0], classes)

    def answers(self, batch: Batch) -> tuple[Outputs, Logits]:
        outputs = self.student(batch.images, taps=(*self.taps, *self.added_taps))
        features = [outputs.taps[tap][:, :count] for tap, count in zip(self.taps, self.channels, strict=True)]
        if self.method.detach_features:
            features = [feature.detach() for feature in features]
        return outputs, {name: self.get_submodule(name)(*features) for name in self.shadows}


def last_stages(network: Network) -> tuple[str, ...]:
    """The taps of the last three stages. Raises NetworkError where there are fewer."""
    stages = [tap for tap in network.tap_names() if tap.startswith("stage") and "." not in tap]
    if len(stages) < 3:
        raise NetworkError(f"head='fused' reads three stages, and {network.name!r} has {len(stages)}: take head='linear'")
    return tuple(stages[-3:])


def channels(network: Network, taps: tuple[str, ...]) -> tuple[int, ...]:
    return tuple(network.shape(tap)[0] for tap in taps)
