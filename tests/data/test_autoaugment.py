"""Every move and every pair of the policy gives torchvision's pixels; batches, keys and probabilities."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import AutoAugment as Reference
from torchvision.transforms import AutoAugmentPolicy
from torchvision.transforms.autoaugment import _apply_op
from torchvision.transforms.functional import InterpolationMode

from kdscale.data.autoaugment import MOVES, NOTHING, POLICY, SIGNED, AutoAugment, Move
from kdscale.data.sample import sheets
from kdscale.keys import key
from tests.shared import shared

CPU = torch.device("cpu")


def garments() -> torch.Tensor:
    """Real pictures in colour: three garments as the three channels; with flat and two-valued ones among them."""
    grey = torch.from_numpy(sheets("test")[0][..., 0].copy())
    images = grey[torch.arange(0, 1950, 13)].view(50, 3, 28, 28).clone()
    images[0], images[1, 1], images[2] = 0, 77, (images[2] > 100) * 200
    images[3, :, :, 2:] = images[3, :, :1, :1]
    images[4] = images[4, :1]
    return images


def photographs() -> torch.Tensor:
    strip = np.asarray(Image.open(shared("data", "cifar100", "test", "23.webp")).convert("RGB"))
    return torch.from_numpy(strip.reshape(-1, 32, 32, 3).transpose(0, 3, 1, 2).copy())


@pytest.fixture(scope="module", params=["garments", "photographs"])
def images(request: pytest.FixtureRequest) -> torch.Tensor:
    return garments() if request.param == "garments" else photographs()


@pytest.fixture(scope="module")
def policy(images: torch.Tensor) -> AutoAugment:
    return AutoAugment(images.shape[-1], CPU)


@pytest.mark.parametrize("number", range(len(MOVES)), ids=[f"{move.name}{move.level}{move.sign:+}" for move in MOVES])
def test_every_move_is_torchvisions_bit_by_bit(images: torch.Tensor, policy: AutoAugment, number: int) -> None:
    name, level, sign = MOVES[number]
    levels, signed = Reference()._augmentation_space(10, images.shape[-2:])[name]
    assert signed == (name in SIGNED)
    size = float(levels[level] if levels.ndim else 0.0) * (sign if signed else 1)
    ours = policy(images, torch.tensor([[number, NOTHING]]).expand(len(images), 2))
    theirs = torch.stack([_apply_op(one, name, size, InterpolationMode.NEAREST, None) for one in images])
    assert torch.equal(ours, theirs)


def decisions() -> Iterator[tuple[int, tuple[float, float], tuple[int, int]]]:
    for pair in range(len(POLICY)):
        for first, second in ((0, 0), (0, 1), (1, 0), (1, 1)):
            yield pair, (0.0, 0.0), (first, second)


def test_every_pair_is_torchvisions_bit_by_bit(
    images: torch.Tensor, policy: AutoAugment, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference, some = Reference(AutoAugmentPolicy.CIFAR10), images[::4]
    for pair, chances, signs in decisions():
        params = (pair, torch.tensor(chances), torch.tensor(signs))
        monkeypatch.setattr(Reference, "get_params", staticmethod(lambda _, params=params: params))
        moves = policy.numbers[pair, torch.arange(2), torch.tensor(signs)].expand(len(some), 2)
        assert torch.equal(policy(some, moves), torch.stack([reference(one) for one in some])), (pair, signs)


def test_the_policy_is_torchvisions() -> None:
    theirs = [tuple((name, p, level or 0) for name, p, level in pair) for pair in Reference(AutoAugmentPolicy.CIFAR10).policies]
    assert list(POLICY) == theirs


def test_no_image_sees_another(images: torch.Tensor, policy: AutoAugment) -> None:
    some = images[:64]
    moves = policy.moves(torch.from_numpy(key(3, np.arange(len(some), dtype=np.uint64)).view(np.int64)))
    whole, before = policy(some, moves), some.clone()
    assert torch.equal(whole, torch.cat([policy(one[None], move[None]) for one, move in zip(some, moves)]))
    assert torch.equal(some, before)


def test_what_a_gpu_does_gives_the_same_pixels(images: torch.Tensor, policy: AutoAugment) -> None:
    """There every operation runs on every image, and the chosen results are kept."""
    moves = policy.moves(torch.arange(len(images)))
    kept = images
    for place in (0, 1):
        kind, move = policy.kind[moves[:, place]], moves[:, place].clamp(max=NOTHING - 1)
        for number, name in enumerate(policy.kinds):
            kept = torch.where((kind == number).view(-1, 1, 1, 1), getattr(policy, name)(kept, move), kept)
    assert torch.equal(kept, policy(images, moves))


def test_draws_have_the_policys_probabilities() -> None:
    policy = AutoAugment(8, CPU)
    moves = policy.moves(torch.from_numpy(key(1, np.arange(100_000, dtype=np.uint64)).view(np.int64)))
    expected = np.zeros(NOTHING + 1)
    for pair in POLICY:
        for place, (name, probability, level) in enumerate(pair):
            assert place < 2
            for sign in (-1, 1):
                expected[MOVES.index(Move(name, level, sign))] += probability / 2 / len(POLICY) / 2
    expected[NOTHING] = 1 - expected.sum()
    found = np.bincount(moves.flatten().numpy(), minlength=NOTHING + 1) / moves.numel()
    assert np.abs(found - expected).max() < 0.003


def test_layout_in_memory_does_not_matter(images: torch.Tensor, policy: AutoAugment) -> None:
    moves = policy.moves(torch.arange(len(images)))
    assert torch.equal(policy(images.contiguous(memory_format=torch.channels_last), moves), policy(images, moves))
