"""How many floating-point operations an operation is, forward by torch's own formulas and backward by the table here.

The backward pass of torch's counter takes a grouped convolution's gradient of the weights for that of a full one, so it is not
asked: whatever the groups, each of the two gradients of a product costs what the product did, where it is wanted at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.utils.flop_counter import flop_registry

FACTORS = {  # operation -> places of the two factors of its product
    "mm": (0, 1), "bmm": (0, 1), "addmm": (1, 2), "baddbmm": (1, 2),
    "convolution": (0, 1), "_convolution": (0, 1), "cudnn_convolution": (0, 1),
}  # fmt: skip
ATTENTION = 2.5  # a fused attention's backward: the scores again, then four products, for the two of the forward
CONVOLUTIONS = ("convolution", "_convolution", "cudnn_convolution")


def name_of(operation: Any) -> str:
    return str(operation.__name__).partition(".")[0]


def kind_of_work(name: str) -> str:
    """'convolution' or 'matmul', which reach different shares of a peak."""
    return "convolution" if name in CONVOLUTIONS else "matmul"


def forward_flops(operation: Any, arguments: Sequence[Any], settings: dict[str, Any], result: Any) -> int:
    """Two for each multiplication and addition; 0 for what is no product, and for a backward operation."""
    if name_of(operation).endswith("_backward"):
        return 0
    formula: Callable[..., int] | None = flop_registry.get(operation._overloadpacket)
    return int(formula(*arguments, **settings, out_val=result)) if formula is not None else 0


def backward_flops(name: str, forward: int, arguments: Sequence[Any]) -> float:
    """Of the gradients that this operation's inputs ask for."""
    wanted = [isinstance(a, Tensor) and a.requires_grad for a in arguments]
    if "scaled_dot_product" in name:
        return ATTENTION * forward if any(wanted[:3]) else 0.0
    return float(forward * sum(wanted[place] for place in FACTORS.get(name, ())))
