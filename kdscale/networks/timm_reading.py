"""Readers of timm's bodies: hierarchical ones as maps, ViT-like ones as tokens.

Stages of a hierarchical network are timm's ``feature_info``, whose first entry is the stem where it comes before a quarter
of the resolution. A network of one resolution throughout has its stages at a quarter, a half, three quarters and the end of
its blocks. ``forward_intermediates`` gives maps and the last features in one pass, so a tap costs no second forward.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from ..types import Outputs
from .noise import Dropout, Noise
from .reading import Taps, no_spans

if TYPE_CHECKING:
    from torch import Tensor, nn


class TimmReader:
    """What all of timm's bodies share: features, a head or two, and maps by number."""

    def __init__(self, body: Any, noise: Noise) -> None:
        self.maps = _map_numbers(body)  # tap -> index of forward_intermediates
        self.last = max(self.maps, key=lambda tap: self.maps[tap]) if self.maps else ""
        inputs = ("pooled", "distillation") if "distillation" in self.heads(body) else ("pooled",)
        self.taps: Taps = (*self.maps, *self.pre_activations(body), *inputs)
        self.drop = _functional_dropout(body, noise)

    def pre_activations(self, body: Any) -> Taps:
        return ()

    def heads(self, body: Any) -> dict[str, nn.Module]:
        head = body.get_classifier()
        if not isinstance(head, tuple):
            return {"class": head}
        return {"class": head[0], "distillation": head[1]} if head[1] is not None else {"class": head[0]}

    def cuts(self, body: Any) -> tuple[Taps, ...]:
        return ()

    def run(self, body: Any, x: Tensor, span: tuple[int, int | None], taps: Taps) -> tuple[Tensor | None, Outputs]:
        raise no_spans(type(body).__name__)

    def read(self, body: Any, images: Tensor, taps: Taps) -> Outputs:
        features, taken = self.features(body, images, taps)
        return self.answer(body, features, taken, taps)

    def features(self, body: Any, images: Tensor, taps: Taps) -> tuple[Tensor, dict[str, Tensor]]:
        """What the head reads, and the maps among ``taps``."""
        wanted = {tap: self.maps[tap] for tap in taps if tap in self.maps}
        if not wanted:
            return body.forward_features(images), {}
        numbers = sorted(set(wanted.values()))
        features, maps = body.forward_intermediates(images, indices=numbers, output_fmt="NCHW")
        return features, {tap: maps[numbers.index(number)] for tap, number in wanted.items()}

    def answer(self, body: Any, features: Tensor, taken: dict[str, Tensor], taps: Taps) -> Outputs:
        """Logits, heads and ``pooled`` from the last features."""
        heads = self.heads(body)
        if "distillation" in heads:
            return _two_answers(body, heads, features, taken, taps)
        if "pooled" in taps or self.drop:
            pooled = body.forward_head(features, pre_logits=True)
            if self.drop and body.training:
                pooled = self.drop.drop(pooled)
            if "pooled" in taps:
                taken["pooled"] = pooled
            if self.drop:
                return Outputs(heads["class"](pooled), taken)
        return Outputs(body.forward_head(features), taken)


class TokenReader(TimmReader):
    """ViT and its kin: prefix tokens, then patch tokens [B,N,D]; the last stage is read after the final norm."""

    def __init__(self, body: Any, noise: Noise) -> None:
        super().__init__(body, noise)
        self.taps = (*self.taps, "tokens")

    def features(self, body: Any, images: Tensor, taps: Taps) -> tuple[Tensor, dict[str, Tensor]]:
        features, taken = super().features(body, images, tuple(tap for tap in taps if tap != self.last))
        tokens = features[:, body.num_prefix_tokens :]
        if "tokens" in taps:
            taken["tokens"] = tokens
        if self.last in taps:
            size = body.patch_embed.dynamic_feat_size(images.shape[-2:])
            taken[self.last] = as_map(tokens, size)
        return features, taken


def as_map(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """Patch tokens [B,N,D] as a map [B,D,H,W]."""
    return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], *size)


def reader(body: Any, noise: Noise) -> TimmReader:
    """The reader that fits ``body``."""
    from . import timm_spans as spans

    if spans.is_vision_transformer(body):
        return spans.VisionTransformerReader(body, noise)
    if spans.is_resnet(body):
        return spans.ResNetReader(body, noise)
    if spans.is_regnet(body):
        return spans.ListeningReader(body, noise)
    if hasattr(body, "num_prefix_tokens") and "return_prefix_tokens" in _parameters(body, "forward_intermediates"):
        return TokenReader(body, noise)
    return TimmReader(body, noise)


def _map_numbers(body: Any) -> dict[str, int]:
    if not hasattr(body, "forward_intermediates"):
        return {}
    reductions = [entry["reduction"] for entry in body.feature_info]
    depth = len(reductions)
    if depth > 1 and len(set(reductions)) == 1:
        stages = min(4, depth)
        return {f"stage{i}": -(-i * depth // stages) - 1 for i in range(1, stages + 1)}
    names = (["stem"] if reductions[0] <= 2 else []) + [f"stage{i}" for i in range(1, depth + 1)]
    return dict(zip(names, range(depth), strict=False))


def _functional_dropout(body: Any, noise: Noise) -> Dropout | None:
    """The dropout that a body's own ``forward_head`` would draw from the generator, drawn from keys and switched off there."""
    rate = float(getattr(body, "drop_rate", 0.0) or 0.0)
    if not rate or "drop_rate" not in type(body).forward_head.__code__.co_names:
        return None
    body.drop_rate = 0.0
    return Dropout(rate, noise)


def _two_answers(body: Any, heads: dict[str, nn.Module], features: Tensor, taken: dict[str, Tensor], taps: Taps) -> Outputs:
    """Each head its own logits, and the mean as the network's answer, in train mode as in eval mode."""
    if getattr(body, "global_pool", "") == "token":
        drop = getattr(body, "head_drop", None)
        inputs = [features[:, number] if drop is None else drop(features[:, number]) for number in (0, 1)]
        pooled = (inputs[0] + inputs[1]) / 2
    else:
        pooled = body.forward_head(features, pre_logits=True)
        inputs = [pooled, pooled]
    found = {"pooled": pooled, "distillation": inputs[1]}
    taken |= {tap: found[tap] for tap in found if tap in taps}
    said = {name: head(x) for (name, head), x in zip(heads.items(), inputs, strict=True)}
    return Outputs((said["class"] + said["distillation"]) / 2, taken, said)


def _parameters(body: Any, method: str) -> tuple[str, ...]:
    return tuple(inspect.signature(getattr(body, method)).parameters) if hasattr(body, method) else ()
