"""A second path through a network's own convolutions, with batch norms and a classifier that are the path's.

The slimmable rule (Yu et al., "Slimmable Neural Networks", ICLR 2019): a path of width w reads the leading round(c w) input and
output channels of every weight; channels of images and classes are never cut. The gradients of both paths add up in the
shared weights. Leading channels mean the same in every layer only where no layer joins or shuffles channels, so DenseNets and
ShuffleNets have paths of the whole width alone.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import NetworkError
from .cifar import CifarNetwork, dense, shuffle
from .dropblock import remove_drop_blocks
from .network import Network
from .timm_spans import is_resnet

JOINING = (dense.DenseNet, shuffle.ShuffleV1, shuffle.ShuffleV2)


def kept(channels: int, width: float) -> int:
    """How many of ``channels`` a path of ``width`` has; at least one."""
    return max(1, round(channels * width))


class SharedConv2d(nn.Module):
    """The leading channels of another module's convolution, which stays that module's own."""

    def __init__(self, conv: nn.Conv2d, inside: int, outside: int) -> None:
        super().__init__()
        self.source = (conv,)  # a tuple hides it: its weights are in one state, one optimizer and one save
        self.inside, self.outside = inside, outside
        self.groups = inside if is_depthwise(conv) else conv.groups

    def forward(self, x: Tensor) -> Tensor:
        (conv,) = self.source
        weight = conv.weight[: self.outside, : self.inside // self.groups]
        bias = None if conv.bias is None else conv.bias[: self.outside]
        return functional.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, self.groups)  # type: ignore[arg-type]

    def extra_repr(self) -> str:
        return f"{self.inside}, {self.outside}, shared"


def slimmed(network: Network, width: float = 1.0) -> Network:
    """The path of ``width`` in (0, 1] through ``network``, whose logits are those of a newly drawn linear classifier.

    Its norms start from the network's leading channels. Without DropBlock, which is the network's own. Raises NetworkError for
    families other than the CIFAR ones and timm's ResNets.
    """
    _check(network, width)
    path = copy.deepcopy(network)
    path._shapes.clear()
    classifier, originals = path.head, dict(network.body.named_modules())
    remove_drop_blocks(path.body)
    for name, module in list(path.body.named_modules()):
        if module is classifier:
            _put(path.body, name, nn.Linear(kept(network.width, width), network.classes))
        elif isinstance(module, nn.Conv2d):
            _put(path.body, name, _shared(originals[name], network.architecture.input_size[0], width))
        elif isinstance(module, nn.BatchNorm2d):
            _put(path.body, name, _leading(module, width))
    return path


def _check(network: Network, width: float) -> None:
    body, head = network.body, set(network.head.modules())
    of_family = isinstance(body, CifarNetwork) or is_resnet(body)
    known = all(
        type(module) in (nn.Conv2d, nn.BatchNorm2d)
        for module in body.modules()
        if module not in head and any(True for _ in module.parameters(recurse=False))
    )
    if not of_family or not known:
        raise NetworkError(
            f"network {network.name!r} has no second path with batch norms of its own: take a CIFAR network or a timm ResNet"
        )
    grouped = any(isinstance(m, nn.Conv2d) and m.groups > 1 and not is_depthwise(m) for m in body.modules())
    if width < 1 and (isinstance(body, JOINING) or grouped):
        raise NetworkError(
            f"network {network.name!r} joins or groups its channels, so a part of them is no network: take width=1, or a resnet or wrn"
        )


def is_depthwise(conv: nn.Conv2d) -> bool:
    return conv.groups > 1 and conv.groups == conv.in_channels == conv.out_channels


def _shared(conv: Any, images: int, width: float) -> SharedConv2d:
    """``images``: channels of an image."""
    inside = images if conv.in_channels == images else kept(conv.in_channels, width)
    return SharedConv2d(conv, inside, kept(conv.out_channels, width))


@torch.no_grad()
def _leading(norm: nn.BatchNorm2d, width: float) -> nn.BatchNorm2d:
    """A norm of the leading channels, of the same state."""
    made = nn.BatchNorm2d(kept(norm.num_features, width), norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    state = {name: tensor[: made.num_features] if tensor.ndim else tensor for name, tensor in norm.state_dict().items()}
    made.load_state_dict(state)
    return made


def _put(body: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(body.get_submodule(parent), last, module)
