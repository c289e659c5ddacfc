"""DropBlock by the stored cases, and inside networks: what it may depend on, and what it leaves alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from kdscale.errors import NetworkError
from kdscale.networks import Network, foreign_noise
from kdscale.networks.dropblock import DropBlock, clear, drop_block, seed_rate
from tests.golden import baselines_case, near
from tests.networks.making import build, images, key

CASES = ("b3_8x8", "b5_16x16", "b4_8x8", "b7_clipped_4x4")


def dropping(name: str = "resnet14", rate: float = 0.5) -> Network:
    return build(name, args={"drop_block": rate})


def told(network: Network, share: float, number: int = 1, count: int = 4) -> Network:
    network.set_noise(key(number), torch.arange(count))
    network.set_clock(torch.tensor(share))
    return network


@pytest.mark.parametrize("name", CASES)
def test_stored_cases(name: str) -> None:
    case = baselines_case("techniques.safetensors", f"dropblock/{name}", torch.float64)
    x, block = case.given["x"], case.hyper["block_size"]
    rate = torch.tensor(case.hyper["drop_prob"], dtype=torch.float64)
    case.value("out/gamma", seed_rate(rate, block, *x.shape[2:], case.hyper["gamma_scale"]))
    out = clear(x, case.given["seeds"].detach(), block)
    near(out, case.stored["out/output"], 1e-6)
    (gradient,) = torch.autograd.grad(out.square().sum(), x)
    near(gradient, case.stored["grad/x"], 1e-6)


@pytest.mark.parametrize(("block", "scale", "share"), [(3, 1.0, 0.1), (5, 0.25, 0.1), (1, 1.0, 0.4)])
def test_as_much_is_cleared_as_seeds_on_all_pixels_clear_and_the_mean_stays(block: int, scale: float, share: float) -> None:
    draws = torch.rand(2000, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    rate = torch.tensor(share)
    out = drop_block(torch.ones(2000, 2, 16, 16), draws, rate, block=block, scale=scale)
    reaching = functional.avg_pool2d(torch.ones(1, 1, 16, 16), block, 1, block // 2) * block**2  # pixels whose seed would reach
    expected = 1 - (1 - seed_rate(rate, block, 16, 16, scale)) ** reaching
    assert float((out == 0).float().mean()) == pytest.approx(float(expected.mean()), rel=0.05)
    assert torch.equal(out[:, 0], out[:, 1])
    assert float(out.mean()) == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize(("name", "blocks"), [("resnet14", 4), ("wrn_16_1", 4), ("okd_wrn20_8", 4), ("ResNet18", 4)])
def test_it_stands_in_the_last_two_stages(name: str, blocks: int) -> None:
    network = dropping(name)
    placed = {n: (m.block, m.scale) for n, m in network.body.named_modules() if isinstance(m, DropBlock)}
    assert len(placed) == blocks
    final, before = ({f"{n}.drop_block" for n in network.cuts[stage]} for stage in (-1, -2))
    assert {n for n, form in placed.items() if form == (3, 1.0)} == final
    assert {n for n, form in placed.items() if form == (5, 0.25)} == before


def test_the_state_dict_is_the_plain_networks() -> None:
    plain, network = build("resnet14"), dropping()
    assert list(network.state_dict()) == list(plain.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(network.state_dict().values(), plain.state_dict().values(), strict=True))


@torch.no_grad()
def test_nothing_is_dropped_at_the_start_and_in_evaluation() -> None:
    plain, network, x = build("resnet14"), dropping(), images(4)
    assert torch.equal(told(network, 0.0)(x).logits, plain(x).logits)
    assert not torch.equal(told(network, 1.0)(x).logits, plain(x).logits)
    plain.load_state_dict(network.state_dict())
    assert torch.equal(network.eval()(x).logits, plain.eval()(x).logits)


@torch.no_grad()
def test_the_rate_rises_with_the_share_done() -> None:
    noise = (network := dropping("resnet8", 0.8))._noise
    layer = network.body.layer3[0].drop_block
    x = torch.ones(256, 8, 8, 8)
    cleared = []
    for share in (0.0, 0.5, 1.0):
        told(network, share, count=256)
        cleared.append(float((layer(x) == 0).float().mean()))
    assert cleared[0] == 0 < cleared[1] < cleared[2]
    assert noise.layers == 2


@torch.no_grad()
def test_squares_belong_to_samples_and_steps() -> None:
    """A rank's normaliser is its own; which pixels are cleared is not."""
    network, position = dropping("wrn_16_1"), torch.tensor([3, 1, 400, 17])
    layer = network.body.block2.layer[1].drop_block
    network.set_clock(torch.tensor(1.0))

    def cleared(rows: list[int], number: int = 1) -> Tensor:
        network.set_noise(key(number), position[rows])
        return layer(torch.ones(len(rows), 3, 16, 16)) == 0

    whole = cleared([0, 1, 2, 3])
    assert torch.equal(torch.cat([cleared([0, 2]), cleared([1, 3])])[[0, 2, 1, 3]], whole)
    assert torch.equal(cleared([0, 1, 2, 3]), whole)
    assert not torch.equal(cleared([0, 1, 2, 3], 2), whole)
    assert not torch.equal(whole[0], whole[1])


def test_it_draws_from_no_generator_and_its_gradient_flows() -> None:
    network = dropping()
    assert foreign_noise(network) == []
    told(network, 1.0)(images(4)).logits.sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in network.parameters())


def test_the_clock_must_be_told_in_train_mode() -> None:
    network = dropping()
    network.set_noise(key(), torch.arange(2))
    with pytest.raises(NetworkError, match=r"told no time: call set_clock"):
        network(images())
    network.eval()(images())
    build("resnet14").set_clock(torch.tensor(0.5))
    build("resnet14", trained=False, args={"drop_block": 0.1})(images())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vgg8", {"args": {"drop_block": 0.1}}, "DropBlock has no place in 'vgg8'"),
        ("resnet8", {"args": {"dropblock": 0.1}}, "leave dropblock out"),
        ("resnet8", {"args": {"drop_block": 0.1}, "drop": 0.2}, "leave drop out"),
        ("resnet8", {"args": {"drop_block": 1}}, "drop_block=1 is no rate"),
        ("resnet8", {"args": {"drop_block": "much"}}, "drop_block='much' is no rate"),
        ("resnet8", {"args": {"drop_block": True}}, "drop_block=True is no rate"),
    ],
)
def test_what_is_refused(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(NetworkError, match=message):
        build(name, **options)


@pytest.mark.slow
def test_compiled_it_is_the_same_and_a_new_share_compiles_nothing() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    plain, compiled, x = dropping("resnet8"), dropping("resnet8"), images(4)
    compiled.compile(backend="aot_eager")
    for number, share in enumerate((0.1, 0.5, 0.9)):
        expected, found = (told(network, share, number)(x).logits for network in (plain, compiled))
        assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4)
    counters = torch._dynamo.utils.counters
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 1
