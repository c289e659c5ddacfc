"""One answer out of two heads.

timm and transformers answer with the mean of a distilled DeiT's two heads (Touvron et al. 2021, section 4) and have no
switch for the class head alone, with which SHAKE (Li & Jin 2022, supplement) says its students answer. Doubling the class
head and clearing the other makes their mean equal to the class head: exactly, for a power of two scales without rounding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch

from ..errors import ExportError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..networks import Network

Fold = Literal["average", "class"]
CLASS, DISTILLATION = "head", "head_dist"


def check_fold(network: Network, fold: Fold) -> None:
    """Raises ExportError where there are not two heads to fold, or the fold is none that exists."""
    if fold not in ("average", "class"):
        raise ExportError(f"there is no fold {fold!r}; known: average, class")
    if fold == "class" and not network.has_distillation_head:
        raise ExportError(
            f"fold='class' is for a network with a distillation head, and {network.architecture.name!r} has one head: use 'average'"
        )


def fold_class_head(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights, answering with the class head alone: class head times two, distillation head zero."""
    folded = dict(state)
    for part in ("weight", "bias"):
        folded[f"{CLASS}.{part}"] = state[f"{CLASS}.{part}"] * 2
        folded[f"{DISTILLATION}.{part}"] = torch.zeros_like(state[f"{DISTILLATION}.{part}"])
    return folded


@torch.no_grad()
def answer(body: nn.Module, images: Tensor, fold: Fold) -> Tensor:
    """Logits ``[N,C]`` that ``body`` (in eval mode) gives now, before any fold; 'class' listens at the class head itself."""
    if fold == "average":
        logits: Tensor = body(images)
        return logits
    heard: list[Tensor] = []

    def listen(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        heard.append(output)

    handle = body.get_submodule(CLASS).register_forward_hook(listen)
    try:
        body(images)
    finally:
        handle.remove()
    return heard[0]
