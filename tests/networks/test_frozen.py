"""A frozen network stays as it is."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.networks.making import build, images


def test_it_cannot_be_trained() -> None:
    network = build("resnet8", trained=False)
    holder = nn.Sequential(network).train()
    assert holder.training
    assert not any(module.training for module in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    said = network(images().requires_grad_(), network.tap_names())
    assert not said.logits.requires_grad
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize(
    ("name", "size"), [("resnet20", 32), ("wrn_16_1", 32), ("vit_tiny_patch16_224", 64), ("mobilenetv2_050", 64)]
)
def test_bf16_weights_give_float32_answers(name: str, size: int) -> None:
    exact, rough = (build(name, size=size, trained=False, precision=p) for p in ("fp32", "bf16"))
    said = [network(images(2, size), network.tap_names()) for network in (exact, rough)]
    assert rough.head.weight.dtype == torch.bfloat16
    assert all(module.weight.dtype == torch.float32 for module in rough.modules() if isinstance(module, nn.BatchNorm2d))
    assert said[1].logits.dtype == torch.float32
    assert all(tap.dtype == torch.float32 for tap in said[1].taps.values())
    scale = float(said[0].logits.abs().max())
    assert torch.allclose(*(s.logits for s in said), atol=0.05 * scale)


def test_autocast_outside_changes_nothing() -> None:
    network = build("resnet8", trained=False)
    plain = network(images()).logits
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(network(images()).logits, plain)
