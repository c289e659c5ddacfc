"""A branch is the rest of its network: the same answer, from nothing but the tensors that the rest reads."""

from __future__ import annotations

import pytest
import torch

from kdscale.errors import NetworkError
from kdscale.networks import Network, SynchronisedBatchNorm, synchronise
from kdscale.networks.branch import Branch, before_last_stage
from kdscale.types import World
from tests.networks.making import build, images, key, tiny_deit

CIFAR = ("resnet8", "wrn_16_1", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2", "okd_densenet40_12")
NAMES = (*CIFAR, "resnet18", "deit")


def made(name: str, seed: int = 1) -> Network:
    return tiny_deit(seed=seed) if name == "deit" else build(name, seed=seed)


def pictures(name: str) -> torch.Tensor:
    return images(2, 28 if name == "deit" else 32)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_it_answers_as_the_rest_of_the_network(name: str) -> None:
    whole = made(name).eval()
    after = before_last_stage(whole)
    branch = Branch(made(name), after).eval()
    entering = whole.run(pictures(name), upto=after)
    assert branch.input_shape == tuple(entering.shape[1:])
    assert torch.equal(branch(entering).logits, whole(pictures(name)).logits)
    assert torch.equal(branch(entering, ("pooled",)).taps["pooled"], whole(pictures(name), ("pooled",)).taps["pooled"])
    assert branch.network.shape("stage1") == whole.shape("stage1")


@pytest.mark.parametrize("name", NAMES)
def test_it_holds_what_it_reads_and_no_more(name: str) -> None:
    """Each of its parameters learns, and none that the rest of the whole network would learn is missing."""
    whole = made(name)
    after = before_last_stage(whole)
    branch = Branch(made(name), after)
    with torch.no_grad():
        entering = whole.run(pictures(name), upto=after)
    for logits in (whole.run(entering, after).logits, branch(entering).logits):
        logits.square().sum().backward()
    learned = {n for n, p in whole.body.named_parameters() if p.grad is not None}
    assert {n for n, p in branch.network.body.named_parameters()} == learned
    assert all(p.grad is not None for p in branch.parameters())
    owners = {n.rpartition(".")[0] for n in learned}
    assert {n.rpartition(".")[0] for n, _ in branch.network.body.named_buffers()} <= owners
    state = branch.state_dict()
    assert set(state) < {f"network.{n}" for n in whole.state_dict()}
    assert branch.load_state_dict(dict(state), strict=True)


@pytest.mark.parametrize(
    ("name", "place", "count"),
    [
        ("resnet8x4", 0, 230_144 + 919_040 + 25_700),
        ("resnet8x4", 1, 919_040 + 25_700),
        ("wrn_16_2", 0, 131_520 + 525_184 + 256 + 12_900),
        ("wrn_16_2", 1, 525_184 + 256 + 12_900),
    ],
)
def test_its_size_is_that_of_the_published_branches(name: str, place: int, count: int) -> None:
    network = build(name, classes=100)
    assert sum(p.numel() for p in Branch(network, network.cuts[place][-1]).parameters()) == count


def test_a_block_in_mid_stage_will_do() -> None:
    whole = build("resnet20").eval()
    branch = Branch(build("resnet20"), "layer2.1").eval()
    with torch.no_grad():
        entering = whole.run(images(), upto="layer2.1")
        assert torch.equal(branch(entering).logits, whole(images()).logits)


def test_it_is_trained_from_the_start_and_draws_its_own_noise() -> None:
    branch = Branch(tiny_deit(drop_path=0.5), "blocks.2")
    assert all(module.training for module in branch.modules())
    x = torch.randn(8, *branch.input_shape)
    said = []
    for number in (1, 1, 2):
        branch.network.set_noise(key(number), torch.arange(8))
        said.append(branch(x).logits)
    assert torch.equal(said[0], said[1])
    assert not torch.equal(said[0], said[2])


def test_its_norms_can_be_synchronised() -> None:
    branch = Branch(build("wrn_16_1"), "block2.layer.1")
    names = list(branch.state_dict())
    synchronise(branch, World(0, 2, lambda t: torch.cat([t, t]), lambda t: 2 * t))
    assert any(isinstance(module, SynchronisedBatchNorm) for module in branch.modules())
    assert list(branch.state_dict()) == names
    assert branch(torch.randn(4, *branch.input_shape)).logits.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wrn_16_1", "deit"])
def test_it_can_be_compiled(name: str) -> None:
    torch._dynamo.reset()
    after = before_last_stage(made(name))
    plain, compiled = Branch(made(name), after), Branch(made(name), after)
    compiled.network.compile(backend="aot_eager")
    x = torch.randn(3, *plain.input_shape)
    torch.testing.assert_close(compiled(x).logits, plain(x).logits, rtol=1e-4, atol=1e-5)


def test_what_cannot_branch_says_so() -> None:
    with pytest.raises(NetworkError, match="cannot be run in spans"):
        Branch(build("mobilenetv2_050"), "blocks.0")
    with pytest.raises(NetworkError, match="no last stage"):
        before_last_stage(build("mobilenetv2_050"))
    with pytest.raises(NetworkError, match=r"no block 'layer9'"):
        Branch(build("resnet8"), "layer9")
