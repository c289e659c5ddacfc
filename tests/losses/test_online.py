from __future__ import annotations

import pytest
import torch

from kdscale.losses import online
from kdscale.losses.logits import kd_kl


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def test_what_others_say_is_not_taught_back() -> None:
    learner, others = drawn(5, 7).requires_grad_(), [drawn(5, 7, seed=i).requires_grad_() for i in (1, 2)]
    online.mutual(learner, others, 2.0).sum().backward()
    assert learner.grad is not None
    assert [other.grad for other in others] == [None, None]


def test_the_mutual_term_is_a_mean_over_the_others() -> None:
    learner, others = drawn(5, 7), [drawn(5, 7, seed=i) for i in (1, 2, 3)]
    expected = sum(kd_kl(learner, other, 3.0) for other in others) / 3
    torch.testing.assert_close(online.mutual(learner, others, 3.0), expected)


def test_the_softened_target_is_not_normalised_again() -> None:
    """It costs about 1e-7 a class, and it learns."""
    learner, target = drawn(5, 7), drawn(5, 7, seed=1).requires_grad_()
    rows = online.softened_kl(learner, target, 3.0)
    torch.testing.assert_close(rows, kd_kl(learner, target, 3.0), rtol=0, atol=9e-7 * 7 * 20)
    assert not torch.equal(rows, kd_kl(learner, target, 3.0))
    rows.sum().backward()
    assert target.grad is not None


@pytest.mark.parametrize("lead", [(), (4,)], ids=["one mixture", "four mixtures"])
def test_a_mixture_of_equal_scores_is_the_mean(lead: tuple[int, ...]) -> None:
    logits = drawn(3, 5, 7)
    mixed = online.blended(torch.zeros(*lead, 5, 3).double(), logits)
    torch.testing.assert_close(mixed, logits.mean(0).expand(*lead, 5, 7))


def test_each_peer_listens_by_its_own_question() -> None:
    queries, keys = drawn(3, 5, 4), drawn(3, 5, 4, seed=1)
    scores = online.affinities(queries, keys)
    assert scores.shape == (3, 5, 3)
    torch.testing.assert_close(scores[2, 4, 1], queries[2, 4] @ keys[1, 4])
    alone = torch.full((5, 3), -1e9).index_fill(1, torch.tensor([1]), 0.0).double()
    torch.testing.assert_close(online.blended(alone, drawn(3, 5, 7)), drawn(3, 5, 7)[1])


def test_halves_are_widened() -> None:
    half = drawn(2, 5, 7).bfloat16()
    assert online.softened_kl(half[0], half[1], 3.0).dtype == torch.float32
    assert online.blended(torch.zeros(5, 2).bfloat16(), half).dtype == torch.float32


def test_autocast_rounds_neither_mixtures_nor_affinities() -> None:
    scores, logits, features = drawn(5, 3).float(), drawn(3, 5, 7).float(), drawn(3, 5, 4).float()
    wanted = online.blended(scores, logits), online.affinities(features, features)
    with torch.autocast("cpu", torch.bfloat16):
        found = online.blended(scores, logits), online.affinities(features, features)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
