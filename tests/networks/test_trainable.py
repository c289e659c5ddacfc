from __future__ import annotations

import pytest
import torch

from kdscale.networks import FrozenNetwork, Network
from kdscale.networks.trainable import trainable_copy
from tests.networks.making import build, images, tiny_deit


@pytest.mark.parametrize("make", [lambda: build("resnet8", trained=False), lambda: tiny_deit(trained=False)])
def test_a_copy_begins_where_the_frozen_network_is_and_leaves_it_alone(make: object) -> None:
    frozen: FrozenNetwork = make()  # type: ignore[operator]
    made, x = trainable_copy(frozen), images(2, frozen.architecture.input_size[1])
    before = frozen(x).logits
    assert type(made) is Network
    torch.testing.assert_close(made.eval()(x).logits, before)
    made.train()(x).logits.sum().backward()  # type: ignore[union-attr]
    assert all(p.requires_grad for p in made.parameters())
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(1.0)
    assert torch.equal(frozen(x).logits, before)  # type: ignore[arg-type]
    assert not any(p.requires_grad for p in frozen.parameters())


def test_it_keeps_the_normalisation_and_the_size_of_its_original() -> None:
    frozen = build("resnet18", trained=False, size=48, weights="random")
    frozen.scale, frozen.shift = torch.full((3, 1, 1), 2.0), torch.full((3, 1, 1), 0.5)
    frozen.size = 48
    made, x = trainable_copy(frozen).eval(), images(2, 40)
    assert made.size == 48
    torch.testing.assert_close(made(x).logits, frozen(x).logits)


def test_rounded_weights_are_trained_in_float32() -> None:
    made = trainable_copy(build("resnet8", trained=False, precision="bf16"))
    assert {p.dtype for p in made.parameters()} == {torch.float32}
    assert made(images()).logits.dtype == torch.float32  # type: ignore[union-attr]
