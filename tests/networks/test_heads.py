"""Heads against the numbers of the released SHAKE head."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from kdscale.errors import NetworkError
from kdscale.networks import FusedHead, LinearHead
from tests.shared import shared


def test_the_fused_head_is_the_released_one() -> None:
    golden = load_file(shared("golden", "methods", "shake_code.safetensors"))
    head = FusedHead((3, 4, 6)).double()
    state = {name.removeprefix("in.head."): tensor for name, tensor in golden.items() if name.startswith("in.head.")}
    missing, unexpected = head.load_state_dict(state, strict=False)
    assert unexpected == []
    assert all(name.endswith("num_batches_tracked") for name in missing)
    features = head(*(golden[f"in.teacher_feat{i}"] for i in (1, 2, 3)))
    shadow = functional.linear(features, golden["in.fc_weight"], golden["in.fc_bias"])
    assert torch.allclose(shadow, golden["out.shadow_logits"], rtol=1e-9)


@pytest.mark.parametrize(
    ("channels", "parameters"),
    [((16, 32, 64), 65_536), ((32, 64, 128), 261_120), ((64, 128, 256), 1_042_432), ((128, 256, 512), 4_165_632)],
)
def test_parameters_of_the_published_heads(channels: tuple[int, int, int], parameters: int) -> None:
    assert sum(p.numel() for p in FusedHead(channels).parameters()) == parameters


@pytest.mark.parametrize("sizes", [(8, 4, 2), (8, 8, 8), (27, 14, 7), (16, 8, 8), (56, 28, 7), (9, 4, 3), (4, 8, 8)])
def test_any_three_sizes_fit(sizes: tuple[int, int, int]) -> None:
    maps = [torch.randn(2, c, s, s) for c, s in zip((3, 4, 6), sizes, strict=True)]
    assert FusedHead((3, 4, 6))(*maps).shape == (2, 6)


def test_a_wider_classifier_takes_one_more_convolution() -> None:
    maps = [torch.randn(2, c, s, s) for c, s in zip((3, 4, 6), (8, 4, 2), strict=True)]
    assert FusedHead((3, 4, 6), width=9)(*maps).shape == (2, 9)
    assert FusedHead((3, 4, 6), width=9).fuse6[0].weight.shape == (9, 6, 1, 1)
    assert FusedHead((3, 4, 6), width=6).fuse6 is None


def test_logits() -> None:
    maps = [torch.randn(2, c, s, s) for c, s in zip((3, 4, 6), (8, 4, 2), strict=True)]
    assert FusedHead((3, 4, 6), 10)(*maps).shape == (2, 10)
    assert sum(p.numel() for p in LinearHead(64, 100).parameters()) == 6_500


def test_another_number_of_stages() -> None:
    with pytest.raises(NetworkError, match="joins three stages and was given 2"):
        FusedHead((3, 4))
