"""timm's ResNets, RegNets and vision transformers, of which more is read: maps before an activation, and spans of blocks.

``stageN.pre`` is the input of the last activation of the stage's last block. That activation is put behind a
:class:`Listening` stand-in when the network is built, because nothing smaller than the block is called from outside.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from ..types import Outputs
from .reading import Taps
from .timm_reading import TimmReader, TokenReader, as_map

if TYPE_CHECKING:
    from torch import Tensor


class Listening(nn.Module):
    """An activation that keeps its input when asked to. It has no parameter, so the state dict does not show it."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation
        self.wanted = False  # else every step's map would live until the next one
        self.heard: Tensor | None = None
        if getattr(activation, "inplace", False):
            activation.inplace = False  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        if self.wanted:
            self.heard = x
        out: Tensor = self.activation(x)
        return out

    def take(self) -> Tensor | None:
        """What was heard, once."""
        heard, self.heard, self.wanted = self.heard, None, False
        return heard


class ListeningReader(TimmReader):
    """ResNets and RegNets: maps before each stage's last ReLU."""

    ears: dict[str, str]  # tap -> path of its Listening

    def pre_activations(self, body: Any) -> Taps:
        self.ears = {}
        for number, (name, stage) in enumerate(_stages(body), 1):
            place, block = list(stage.named_children())[-1]
            activation = _last_activation(block)
            if activation and not list(getattr(block, activation).parameters()):
                setattr(block, activation, Listening(getattr(block, activation)))
                self.ears[f"stage{number}.pre"] = f"{name}.{place}.{activation}"
        return tuple(self.ears)

    def features(self, body: Any, images: Tensor, taps: Taps) -> tuple[Tensor, dict[str, Tensor]]:
        self.prick(body, taps)
        features, taken = super().features(body, images, taps)
        return features, taken | self.overheard(body, taps)

    def prick(self, body: Any, taps: Taps) -> None:
        for tap in taps:
            if tap in self.ears:
                body.get_submodule(self.ears[tap]).wanted = True

    def overheard(self, body: Any, taps: Taps) -> dict[str, Tensor]:
        """The taps before an activation; those of stages that were not run are left out."""
        heard = {tap: body.get_submodule(self.ears[tap]).take() for tap in taps if tap in self.ears}
        return {tap: tensor for tap, tensor in heard.items() if tensor is not None}


class ResNetReader(ListeningReader):
    """Spans of timm's ResNets: the stem goes with the first block."""

    def cuts(self, body: Any) -> tuple[Taps, ...]:
        return tuple(tuple(f"{name}.{place}" for place, _ in stage.named_children()) for name, stage in _stages(body))

    def run(self, body: Any, x: Tensor, span: tuple[int, int | None], taps: Taps) -> tuple[Tensor | None, Outputs]:
        first, stop = span
        taken: dict[str, Tensor] = {}
        self.prick(body, taps)
        if first == 0:
            x = body.act1(body.bn1(body.conv1(x)))
            if "stem" in taps:
                taken["stem"] = x
            x = body.maxpool(x)
        for stage, block in _closed(body)[first:stop]:
            x = block(x)
            if stage in taps:
                taken[stage] = x
        taken |= self.overheard(body, taps)
        return (None, self.answer(body, x, taken, taps)) if stop is None else (x, Outputs(None, taken))


class VisionTransformerReader(TokenReader):
    """Spans of a ViT: what passes between blocks is the whole token matrix [B,P+N,D]; the final norm goes with the last block."""

    def cuts(self, body: Any) -> tuple[Taps, ...]:
        ends = [self.maps[tap] + 1 for tap in self.maps]
        return tuple(tuple(f"blocks.{i}" for i in range(*span)) for span in zip([0, *ends], ends, strict=False))

    def run(self, body: Any, x: Tensor, span: tuple[int, int | None], taps: Taps) -> tuple[Tensor | None, Outputs]:
        first, stop = span
        taken: dict[str, Tensor] = {}
        blocks = list(body.blocks)
        if first == 0:
            x = body.norm_pre(body.patch_drop(body._pos_embed(body.patch_embed(x))))
        named = {number: tap for tap, number in self.maps.items()}
        for number, block in list(enumerate(blocks))[first:stop]:
            x = block(x)
            last = number == len(blocks) - 1
            x = body.norm(x) if last else x
            tokens = x[:, body.num_prefix_tokens :]
            if named.get(number) in taps:
                taken[named[number]] = as_map(tokens, body.patch_embed.grid_size)
            if last and "tokens" in taps:
                taken["tokens"] = tokens
        return (None, self.answer(body, x, taken, taps)) if stop is None else (x, Outputs(None, taken))


def is_resnet(body: nn.Module) -> bool:
    from timm.models.resnet import ResNet

    return isinstance(body, ResNet)


def is_regnet(body: nn.Module) -> bool:
    from timm.models.regnet import RegNet

    return isinstance(body, RegNet)


def is_vision_transformer(body: nn.Module) -> bool:
    from timm.models.vision_transformer import VisionTransformer

    return isinstance(body, VisionTransformer)


def _stages(body: Any) -> list[tuple[str, nn.Module]]:
    names = ("layer1", "layer2", "layer3", "layer4") if hasattr(body, "layer1") else ("s1", "s2", "s3", "s4")
    return [(name, getattr(body, name)) for name in names]


def _closed(body: Any) -> list[tuple[str, nn.Module]]:
    """All blocks in order, each with the stage that it closes, or ''."""
    stages = [list(stage.children()) for _, stage in _stages(body)]
    return [(f"stage{n}" if block is stage[-1] else "", block) for n, stage in enumerate(stages, 1) for block in stage]


def _last_activation(block: nn.Module) -> str | None:
    """The name of the activation that follows the sum with the shortcut; ``None`` for a block of another form."""
    from timm.models import regnet, resnet

    if isinstance(block, resnet.BasicBlock):
        return "act2"
    if isinstance(block, (resnet.Bottleneck, regnet.Bottleneck)) and not isinstance(block.act3, nn.Identity):
        return "act3"
    return None
