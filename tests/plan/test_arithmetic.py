"""FLOPs against hand calculations, against the literature, and torch's own backward count, which is wrong for groups."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from kdscale.plan.trace import Trace

from .shapes import forward_macs


def ours(run: nn.Module, images: Tensor) -> float:
    trace = Trace(run.parameters())
    with trace.of("it"):
        run(images)
    return sum(flops for (_, what), flops in trace.totals.items() if what in ("convolution", "matmul"))


def torchs(run: nn.Module, images: Tensor) -> tuple[int, int]:
    """(forward, backward) by torch's counter."""
    with FlopCounterMode(display=False) as forward:
        out = run(images)
    with FlopCounterMode(display=False) as backward:
        out.sum().backward()
    return forward.get_total_flops(), backward.get_total_flops()


@pytest.mark.parametrize("groups", [1, 2, 8, 32])
def test_a_grouped_convolution_costs_three_times_its_forward(groups: int) -> None:
    conv = nn.Conv2d(32, 64, 3, padding=1, groups=groups)
    images = torch.randn(2, 32, 8, 8, requires_grad=True)
    true = 2 * 2 * 64 * 8 * 8 * 9 * 32 // groups
    forward, backward = torchs(conv, images)
    assert forward == true
    assert ours(conv, images) == 3 * true
    # torch's: right for the gradient of the images, and a full convolution's for that of the weights
    assert backward == true + groups * true


def test_without_groups_the_counter_agrees() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8 * 16, 10))
    images = torch.randn(2, 3, 8, 8)
    assert ours(net, images) == sum(torchs(net, images))


def test_the_gradient_of_the_images_is_not_counted_where_nobody_wants_it() -> None:
    conv, images = nn.Conv2d(3, 8, 3), torch.randn(1, 3, 8, 8)
    forward = 2 * 8 * 6 * 6 * 9 * 3
    assert ours(conv, images) == 2 * forward
    assert ours(conv, images.clone().requires_grad_()) == 3 * forward
    for parameter in conv.parameters():
        parameter.requires_grad_(False)
    assert ours(conv, images) == forward


def test_fused_attention_is_two_products_and_five_more() -> None:
    class Attention(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return functional.scaled_dot_product_attention(x, x, x)

    rows = torch.randn(2, 3, 10, 16, requires_grad=True)
    product = 2 * 2 * 3 * 10 * 10 * 16
    assert ours(Attention(), rows) == 7 * product
    assert sum(torchs(Attention(), rows)) == 7 * product


@pytest.mark.parametrize(
    ("name", "side", "classes", "macs"),
    [
        ("deit_tiny_distilled_patch16_224", 224, 1000, 1.26e9),  # 1.27 G with two heads and the second token
        ("timm/regnety_160.deit_in1k", 224, 1000, 15.9e9),
        ("resnet18", 224, 1000, 1.82e9),
        ("wrn_40_2", 32, 100, 328e6),  # hand calculation below
        ("wrn_16_2", 32, 100, 101e6),
    ],
)
def test_networks_cost_what_the_literature_says(name: str, side: int, classes: int, macs: float) -> None:
    assert forward_macs(name, side, classes) == pytest.approx(macs, rel=0.02)


def test_a_wide_resnet_costs_what_a_hand_calculation_says() -> None:
    """WRN-16-2: a stem, three groups of two blocks with 32, 64 and 128 channels, each group with one shortcut, a classifier."""
    places = {32: 32 * 32, 64: 16 * 16, 128: 8 * 8}
    total, before = places[32] * 9 * 3 * 16, 16
    for width, place in places.items():
        total += place * (9 * before * width + 9 * width * width + before * width)  # first block with its shortcut
        total += place * 2 * 9 * width * width
        before = width
    assert forward_macs("wrn_16_2", 32, 100) == total + 128 * 100


@pytest.mark.parametrize("batch", [1, 4])
def test_memory_of_a_forward_pass_is_what_autograd_keeps(batch: int) -> None:
    """On real tensors: a linear layer keeps its input, which stands already; a ReLU its output."""
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))
    images = torch.randn(batch, 16)
    trace = Trace([*net.parameters(), images])
    with trace.of("it"):
        out = net(images)
    assert trace.live == 4 * batch * (32 + 8)  # the ReLU's output, and what the net returns
    assert out.shape == (batch, 8)
    assert trace.peak >= trace.live
