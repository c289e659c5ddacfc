from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kdscale.losses import contrastive
from kdscale.losses.contrastive import contrast_loss, contrast_scores, embedding, remembered


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def contrast(samples: int, rows: int, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.stack([torch.randperm(samples, generator=generator)[:count] for _ in range(rows)])


def test_scores_are_exponentials_of_inner_products() -> None:
    queries, memory, chosen = drawn(3, 4), drawn(9, 4), contrast(9, 3, 6)
    expected = torch.einsum("bkd,bd->bk", memory[chosen], queries).div(0.07).exp()
    torch.testing.assert_close(contrast_scores(queries, memory, chosen, 0.07), expected)


@pytest.mark.parametrize("piece", [1, 24, 1 << 24])
def test_gathered_rows_give_the_same_scores_and_gradients(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    queries, memory, chosen = drawn(3, 4).requires_grad_(), drawn(9, 4), contrast(9, 3, 6)
    weights = drawn(3, 6, seed=5)
    found = []
    for whole in (9, 8):
        monkeypatch.setattr(contrastive, "WHOLE", whole)
        monkeypatch.setattr(contrastive, "PIECE", piece)
        scores = contrast_scores(queries, memory, chosen, 0.5)
        found.append((scores, torch.autograd.grad((weights * scores).sum(), queries)[0]))
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("whole", [0, 1000])
def test_nothing_as_large_as_all_rows_is_kept_for_the_gradient(whole: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contrastive, "WHOLE", whole)
    kept: list[int] = []
    queries, memory, chosen = drawn(8, 64).requires_grad_(), drawn(500, 64), contrast(500, 8, 200)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        contrast_loss(contrast_scores(queries, memory, chosen, 0.07), torch.ones(()), 500).sum().backward()
    assert max(kept) <= 500 * 64 < chosen.numel() * 64


def test_the_loss_in_plain_words() -> None:
    scores, normaliser, samples = drawn(4, 8).exp(), torch.tensor(3.0), 20
    share, noise = scores / normaliser, 7 / samples
    expected = -(share[:, 0] / (share[:, 0] + noise + 1e-7)).log() - (noise / (share[:, 1:] + noise + 1e-7)).log().sum(1)
    torch.testing.assert_close(contrast_loss(scores, normaliser, samples), expected)


def test_float32_keeps_the_digits_of_tiny_shares() -> None:
    """At CIFAR's size each of 16384 terms adds about 6e-5 to a logarithm's argument of 1."""
    scores = drawn(2, 16385).exp()
    exact = contrast_loss(scores, torch.tensor(8e4), 50_000)
    torch.testing.assert_close(contrast_loss(scores.float(), torch.tensor(8e4), 50_000).double(), exact, rtol=2e-6, atol=0)


def test_autocast_does_not_reach_the_scores() -> None:
    queries, memory, chosen = drawn(3, 4).float(), drawn(9, 4).float(), contrast(9, 3, 6)
    plain = contrast_scores(queries, memory, chosen, 0.07)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(contrast_scores(queries, memory, chosen, 0.07), plain)


def test_an_untrained_embedding_costs_what_it_should() -> None:
    """log(K + 1) + 1 + half the variance of a score's exponent for each network, where nothing is known yet."""
    samples, count = 5000, 1638
    memory = torch.empty(samples, 128).uniform_(-1, 1, generator=torch.Generator().manual_seed(0)) * (3 / 128) ** 0.5
    scores = contrast_scores(embedding(drawn(32, 128)).float(), memory, contrast(samples, 32, count + 1), 0.07)
    loss = contrast_loss(scores, samples * scores.mean(), samples).mean()
    expected = torch.tensor(count + 1.0).log() + 1 + scores.log().var() / 2
    assert float(loss) == pytest.approx(float(expected), abs=0.6)


def test_rows_move_towards_their_embeddings() -> None:
    memory, rows = drawn(6, 4), embedding(drawn(2, 4, seed=3))
    found = remembered(memory, torch.tensor([4, 1]), rows, 0.25)
    torch.testing.assert_close(found[0], embedding(0.25 * memory[4:5] + 0.75 * rows[:1])[0])
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2, dtype=torch.float64))


def test_of_a_sample_that_occurs_twice_the_last_valid_one_counts() -> None:
    memory, rows = drawn(6, 4), embedding(drawn(5, 4, seed=3))
    index = torch.tensor([2, 5, 2, 0, 2])
    found = remembered(memory, index, rows, 0.5)
    assert torch.equal(found[0], found[4])
    assert torch.equal(found[2], found[4])
    torch.testing.assert_close(found[4], embedding(0.5 * memory[2:3] + 0.5 * rows[4:5])[0])
    valid = torch.tensor([True, True, True, False, False])
    masked = remembered(memory, index, rows, 0.5, valid)
    torch.testing.assert_close(masked[4], embedding(0.5 * memory[2:3] + 0.5 * rows[2:3])[0])
    assert torch.equal(masked[3], memory[0])
