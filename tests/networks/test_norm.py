"""Batch norm over ranks is batch norm over the whole batch, forward and backward."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kdscale.errors import NetworkError
from kdscale.networks import SynchronisedBatchNorm, synchronise
from kdscale.types import World
from tests.networks.making import build, images


def imagined(ranks: int = 2) -> World:
    """Ranks that all see the same batch."""
    return World(0, ranks, lambda t: t.repeat(ranks, *[1] * (t.ndim - 1)), lambda t: t * ranks)


def real(rank: int) -> World:
    from torch.distributed.nn.functional import all_gather

    def total(t: Tensor) -> Tensor:
        t = t.detach().clone()
        dist.all_reduce(t)
        return t

    return World(rank, 2, lambda t: torch.stack(all_gather(t), 1).flatten(0, 1), total)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("norm", [nn.BatchNorm1d(3), nn.BatchNorm2d(3), nn.BatchNorm2d(3, affine=False)])
def test_ranks_with_equal_batches_are_one(norm: nn.BatchNorm2d, momentum: float | None) -> None:
    plain = copy.deepcopy(norm)
    plain.momentum = momentum
    shared = SynchronisedBatchNorm(copy.deepcopy(plain), imagined())
    x = images(4)[..., 0] if isinstance(norm, nn.BatchNorm1d) else images(4)
    for _ in range(3):
        assert torch.allclose(plain(torch.cat([x, x]))[:4], shared(x), atol=1e-5)
    for (name, mine), (other, theirs) in zip(plain.state_dict().items(), shared.state_dict().items(), strict=True):
        assert name == other
        assert torch.allclose(mine.float(), theirs.float(), atol=1e-6), name
    assert torch.equal(plain.eval()(x), shared.eval()(x)) or torch.allclose(plain(x), shared(x), atol=1e-6)


@pytest.mark.parametrize("name", ["resnet8", "mobilenetv2_050"])
def test_a_network_keeps_its_keys_parameters_and_activations(name: str) -> None:
    network = build(name)
    keys, parameters = list(network.state_dict()), list(network.parameters())
    plain = copy.deepcopy(network)
    assert synchronise(network, imagined()) is network
    assert list(network.state_dict()) == keys
    assert all(a is b for a, b in zip(network.parameters(), parameters, strict=True))
    assert sum(isinstance(m, SynchronisedBatchNorm) for m in network.modules()) > 5
    x = images(4).double()
    with torch.no_grad():
        assert torch.allclose(plain.double()(torch.cat([x, x])).logits[:4], network.double()(x).logits)
    copy.deepcopy(network.body)


def test_one_process_has_nothing_to_synchronise() -> None:
    network = build("resnet8")
    synchronise(network, imagined(1))
    assert not any(isinstance(m, SynchronisedBatchNorm) for m in network.modules())


def test_a_norm_that_would_mean_something_else() -> None:
    class Odd(nn.BatchNorm2d):
        def __init__(self) -> None:
            super().__init__(3)
            self.extra = nn.Identity()

    with pytest.raises(NetworkError, match="Odd cannot be synchronised"):
        synchronise(nn.Sequential(Odd()), imagined())


def loss_of(network: nn.Module, x: Tensor) -> Tensor:
    return network(x).logits.square().mean()  # type: ignore[no-any-return]


def on_a_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1")
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    network = synchronise(build("wrn_16_1").double(), real(rank))
    loss_of(network, images(8).double()[rank::2]).backward()
    for parameter in network.parameters():
        dist.all_reduce(parameter.grad)
    if rank == 0:
        grads = {name: parameter.grad / 2 for name, parameter in network.named_parameters()}
        save_file(grads, f"{folder}/grads.safetensors")
        save_file(network.state_dict(), f"{folder}/state.safetensors")
    dist.destroy_process_group()


@pytest.mark.ranks
@pytest.mark.slow
def test_two_processes_are_one(tmp_path: Path) -> None:
    mp.spawn(on_a_rank, (str(tmp_path),), nprocs=2)
    grads, state = load_file(tmp_path / "grads.safetensors"), load_file(tmp_path / "state.safetensors")
    network = build("wrn_16_1").double()
    loss_of(network, images(8).double()).backward()
    for name, parameter in network.named_parameters():
        assert torch.allclose(parameter.grad, grads[name], rtol=1e-8, atol=1e-12), name
    for name, tensor in network.state_dict().items():
        assert torch.allclose(tensor, state[name], rtol=1e-10), name
