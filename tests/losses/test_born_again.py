from __future__ import annotations

import torch
from torch import Tensor

from kdscale import keys
from kdscale.losses.born_again import confidence, permuted


def drawn(rows: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits, and words for them."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.arange(rows * classes).view(rows, classes)
    return torch.randn(rows, classes, generator=generator), keys.torch_mix(numbers + seed)


def test_confidence_is_the_largest_probability() -> None:
    logits = torch.tensor([[0.0, 1.0, 3.0], [2.0, 2.0, 2.0]])
    torch.testing.assert_close(confidence(logits), torch.tensor([logits[0].softmax(-1)[2].item(), 1 / 3]))
    torch.testing.assert_close(confidence(logits, 4.0)[0], (logits[0] / 4).softmax(-1)[2])
    assert confidence(logits.bfloat16()).dtype == torch.float32


def test_the_largest_stays_and_the_others_are_all_there() -> None:
    logits, words = drawn(200, 7)
    found = permuted(logits, words)
    top = logits.argmax(-1)
    assert torch.equal(found.argmax(-1), top)
    assert torch.equal(found.sort(-1).values, logits.sort(-1).values)
    assert (found != logits).any(-1).float().mean() > 0.99, "one of 720 permutations changes nothing"


def test_a_row_has_a_permutation_of_its_own() -> None:
    _, words = drawn(64, 6)
    logits = torch.arange(6.0).expand(64, 6)
    assert len({tuple(row) for row in permuted(logits, words).tolist()}) > 40  # of 120
    assert torch.equal(permuted(logits[5:9], words[5:9]), permuted(logits, words)[5:9])


def test_every_permutation_is_as_likely() -> None:
    rows = 60_000
    found = permuted(torch.tensor([0.0, 9.0, 1.0, 2.0]).expand(rows, 4), keys.torch_mix(torch.arange(rows * 4).view(rows, 4)))
    _, counts = found[:, [0, 2, 3]].unique(dim=0, return_counts=True)
    assert len(counts) == 6
    assert ((counts - rows / 6).abs() < 5 * (rows * 5 / 36) ** 0.5).all(), counts


def test_two_classes_leave_nothing_to_exchange_and_equal_ones_lose_none() -> None:
    logits, words = drawn(5, 2)
    assert torch.equal(permuted(logits, words), logits)
    level = torch.zeros(3, 5)
    assert torch.equal(permuted(level, drawn(3, 5)[1]), level)
