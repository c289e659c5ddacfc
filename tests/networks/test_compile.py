"""Compiled in place, a network gives the same answers, gradients and names, on every path."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kdscale.networks import Network
from tests.networks.making import build, images, key, tiny_deit

pytestmark = pytest.mark.slow


def made(name: str) -> Network:
    return tiny_deit(drop_path=0.2) if name == "deit" else build(name)


def step(network: Network, x: Tensor, number: int) -> tuple[Tensor, list[Tensor]]:
    network.zero_grad()
    network.set_noise(key(number), torch.arange(len(x)) + number)
    said = network(x, network.tap_names())
    (said.logits.square().mean() + sum(tap.abs().mean() for tap in said.taps.values())).backward()
    return said.logits.detach(), [parameter.grad.clone() for parameter in network.parameters()]


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("name", ["wrn_16_1", "deit", "resnet18"])
def test_a_compiled_network_is_the_same_network(name: str, backend: str) -> None:
    if backend == "inductor" and name == "resnet18":
        pytest.skip("minutes of compilation on a CPU")
    torch._dynamo.reset()
    plain, compiled = made(name), made(name)
    compiled.compile(backend=backend)
    assert list(compiled.state_dict()) == list(plain.state_dict())
    x = images(3, 28)
    for number in range(2):
        for mine, theirs in zip(*((a, *g) for a, g in (step(plain, x, number), step(compiled, x, number))), strict=True):
            assert torch.allclose(mine, theirs, rtol=1e-3, atol=1e-4)
    counters = torch._dynamo.utils.counters
    assert not counters["graph_break"]
    block = plain.cuts[0][-1]
    for network in (plain, compiled):
        network.eval()
    with torch.no_grad():
        expected = plain(x).logits
        assert torch.allclose(compiled.run(compiled.run(x, upto=block), after=block).logits, expected, rtol=1e-3, atol=1e-4)


def test_networks_do_not_use_up_one_anothers_recompilations() -> None:
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    for seed in range(10):
        network = build("cnn6", seed=seed, trained=False)
        network.compile(backend="eager")
        network(images())
    assert counters["stats"]["unique_graphs"] == 10


def test_a_frozen_network() -> None:
    torch._dynamo.reset()
    plain, compiled = (build("resnet8", trained=False, precision="bf16") for _ in range(2))
    compiled.compile(backend="aot_eager")
    taps = ("stage1", "stage2.pre", "pooled")
    assert torch.equal(plain(images(), taps).taps["stage2.pre"], compiled(images(), taps).taps["stage2.pre"])
