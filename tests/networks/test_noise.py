"""Masks are a function of (key, position, layer): not of ranks, order of the batch, or generators."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kdscale import keys
from kdscale.errors import NetworkError
from kdscale.networks import Network
from kdscale.networks.noise import Dropout, DropPath, Noise
from tests.networks.making import build, images, key, tiny_deit


def layers(network: Network) -> list[nn.Module]:
    return [module for module in network.modules() if isinstance(module, DropPath | Dropout)]


def noisy(name: str) -> Network:
    if name == "deit":
        return tiny_deit(drop_path=0.5, drop=0.2)
    return build(name, drop_path=0.5, drop=0.3)


def test_draws_are_those_of_the_keys() -> None:
    noise = Noise()
    numbers = [noise.new_layer() for _ in range(3)]
    noise.set(key(11), torch.tensor([5, 900, 7]))
    for layer in numbers:
        words = [keys.fold(keys.fold(11, position), layer) for position in (5, 900, 7)]
        assert noise.per_row(layer, 3).tolist() == [keys.uniform(word, 0) for word in words]
        assert noise.per_element(layer, 6).tolist() == [[keys.uniform(word, draw) for draw in (0, 1)] for word in words]


def test_several_rows_of_a_sample_lie_side_by_side() -> None:
    noise = Noise()
    noise.new_layer()
    noise.set(key(), torch.arange(4))
    single, double = noise.per_row(0, 4), noise.per_row(0, 8)
    assert torch.equal(double[::2], single)
    assert not torch.equal(double[1::2], single)
    with pytest.raises(NetworkError, match="6 rows are no multiple of the 4 samples"):
        noise.per_row(0, 6)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_rates(rate: float) -> None:
    noise = Noise()
    path, drop = DropPath(rate, True, noise).train(), Dropout(rate, noise).train()
    noise.set(key(), torch.arange(4000))
    kept = path(torch.ones(4000, 2, 3))
    assert bool(((kept == 0) | (kept == 1 / (1 - rate))).all())
    assert torch.equal(kept[:, 0, 0], kept[:, 1, 2])
    assert float(kept.mean()) == pytest.approx(1, abs=0.06)
    assert float(drop(torch.ones(4000, 5)).mean()) == pytest.approx(1, abs=0.03)
    assert torch.equal(path.eval()(torch.ones(3, 2)), torch.ones(3, 2))


@pytest.mark.parametrize(
    ("name", "count"), [("deit", 3 * 2 + 1), ("resnet18", 7), ("mobilenetv2_050", 16), ("regnety_002", 12 + 1)]
)
def test_every_layer_that_drops_is_exchanged(name: str, count: int) -> None:
    from timm.layers import DropPath as TimmDropPath

    network = noisy(name)
    assert len(layers(network)) == count
    assert network._noise.layers == count + (name in ("resnet18", "mobilenetv2_050"))  # whose head drops by a function
    assert not any(isinstance(module, nn.Dropout) and module.p for module in network.modules())
    assert not any(isinstance(module, TimmDropPath) and module.drop_prob for module in network.modules())
    assert sorted({module.layer for module in layers(network)}) == list(range(count))


@pytest.mark.parametrize("name", ["deit", "resnet18", "mobilenetv2_050"])
@torch.no_grad()
def test_the_split_over_ranks_does_not_matter(name: str) -> None:
    network, x, position = noisy(name).train(), images(6, 28), torch.tensor([3, 1, 400, 17, 2, 9])
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()

    def said(rows: list[int]) -> Tensor:
        network.set_noise(key(), position[rows])
        return network(x[rows]).logits

    whole = said([0, 1, 2, 3, 4, 5])
    assert torch.allclose(torch.cat([said([0, 2, 4]), said([1, 3, 5])])[[0, 3, 1, 4, 2, 5]], whole, atol=1e-5)
    assert not torch.allclose(network.eval()(x).logits, whole, atol=1e-3)


@torch.no_grad()
def test_the_key_matters_and_generators_do_not() -> None:
    network, x = noisy("deit"), images(4, 28)

    def said(number: int) -> Tensor:
        network.set_noise(key(number), torch.arange(4))
        return network(x).logits

    first, state = said(1), torch.get_rng_state()
    torch.manual_seed(1234)
    assert torch.equal(said(1), first)
    assert not torch.equal(said(2), first)
    torch.set_rng_state(state)
    said(1)
    assert torch.equal(torch.get_rng_state(), state)


def test_positions_must_be_given_in_train_mode() -> None:
    network = noisy("deit")
    with pytest.raises(NetworkError, match=r"call set_noise\(key, position\) first"):
        network(images(2, 28))
    network.eval()(images(2, 28))
    build("resnet8").set_noise(key(), torch.arange(2))


@torch.no_grad()
def test_dropout_of_the_head_is_drawn_from_keys_with_and_without_taps() -> None:
    network, x = build("mobilenetv2_050", drop=0.5), images(4, 64)
    network.eval()
    network.body.train(False)
    full = network(x).logits
    network.body.training = True
    network.set_noise(key(), torch.arange(4))
    said = network(x, ("pooled", "stage2"))
    assert torch.equal(said.logits, network(x).logits)
    assert not torch.allclose(said.logits, full)
    assert torch.equal(network.head(said.taps["pooled"]), said.logits)
    assert 0.3 < float((said.taps["pooled"] == 0).float().mean()) < 0.8


def test_attention_does_not_drop_by_itself() -> None:
    network = build("vit_tiny_patch16_224", size=32, args={"attn_drop_rate": 0.3, "depth": 2})
    state = torch.get_rng_state()
    network.set_noise(key(), torch.arange(2))
    network(images())
    assert torch.equal(torch.get_rng_state(), state)


def test_numpy_and_torch_agree() -> None:
    noise = Noise()
    noise.new_layer()
    positions = np.arange(50, dtype=np.uint64)
    noise.set(torch.tensor(keys.signed(2**63 + 5)), torch.from_numpy(positions.astype(np.int64)))
    expected = keys.uniform(keys.fold(keys.fold(2**63 + 5, positions), 0), 0)
    assert np.array_equal(noise.per_row(0, 50).numpy(), expected)
