from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from kdscale.losses import kdcl
from kdscale.losses.logits import cross_entropy, soft_cross_entropy

M, N, C = 3, 6, 5


def drawn(networks: int = M, rows: int = N, classes: int = C, scale: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits [M,N,C] and labels [N]."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(networks, rows, classes, generator=generator) * scale
    return logits, torch.randint(classes, (rows,), generator=generator)


def everyone(rows: int) -> Tensor:
    return torch.ones(rows, dtype=torch.bool)


def test_a_row_without_a_label_has_no_probability() -> None:
    assert kdcl.one_hot(torch.tensor([1, -100]), torch.zeros(2, 3)).tolist() == [[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]


def test_naive_takes_the_best_network_of_each_row() -> None:
    logits, labels = drawn()
    target = kdcl.naive(logits, kdcl.one_hot(labels, logits))
    losses = torch.stack([cross_entropy(z, labels) for z in logits])
    torch.testing.assert_close(cross_entropy(target, labels), losses.amin(0))


def test_min_logit_has_the_smallest_loss_of_all_ways_to_take_each_class_from_some_network() -> None:
    logits, labels = drawn(rows=1, classes=4)
    truth = kdcl.one_hot(labels, logits)
    target = kdcl.min_logit(logits, truth)
    assert float(target[0, labels[0]]) == 0
    own = logits - logits.gather(2, labels.expand(M, 1)[..., None])
    ways = (own[list(way), 0, range(4)][None] for way in itertools.product(range(M), repeat=4))
    best = min(float(cross_entropy(way, labels)) for way in ways)
    assert float(cross_entropy(target, labels)) == pytest.approx(best, abs=1e-6)


def test_mixed_targets_are_taken_as_probabilities() -> None:
    logits, labels = drawn()
    soft = 0.7 * kdcl.one_hot(labels, logits) + 0.3 / C
    rows = soft_cross_entropy(kdcl.naive(logits, soft), soft)
    torch.testing.assert_close(rows, torch.stack([soft_cross_entropy(z, soft) for z in logits]).amin(0))
    least = kdcl.min_logit(logits, soft)
    assert (torch.einsum("nc,nc->n", soft, least) <= 1e-6).all()
    assert (least[None] <= logits - (logits * soft).sum(-1, keepdim=True)).all()


@pytest.mark.parametrize("scale", [0.01, 1.0, 20.0, 300.0])
@pytest.mark.parametrize("networks", [2, 3, 4])
def test_linear_weights_come_within_a_millionth_of_the_least_loss(networks: int, scale: float) -> None:
    """By the duality gap of a convex problem on the simplex, x . gradient - min gradient."""
    for seed, (rows, classes) in enumerate([(1, 3), (8, 10), (64, 100)]):
        logits, labels = drawn(networks, rows, classes, scale, seed)
        logits[0, torch.arange(rows), labels] += seed * scale  # now inside, now on the border
        logits, truth = logits.double(), kdcl.one_hot(labels, logits).double()
        weights = kdcl.linear_weights(logits, truth, everyone(rows)).requires_grad_()
        assert float(weights.detach().sum()) == pytest.approx(1, abs=1e-9)
        assert (weights > 0).all()
        (gradient,) = torch.autograd.grad(soft_cross_entropy(torch.einsum("m,mnc->nc", weights, logits), truth).mean(), weights)
        assert float(weights.detach() @ gradient - gradient.amin()) < 1e-6


def test_networks_that_agree_say_together_what_each_says() -> None:
    """Any weights that sum to 1 would do, so that the problem has no single answer."""
    logits, labels = drawn(1, 8, 10, 50.0)
    same, truth = logits.expand(3, -1, -1), kdcl.one_hot(labels, logits)
    errors = kdcl.error_products(same, truth, everyone(8)) / 8
    for weights in (kdcl.linear_weights(same, truth, everyone(8)), kdcl.general_weights(errors)):
        torch.testing.assert_close(kdcl.combined(same, weights), logits[0])


def test_rows_that_do_not_count_do_not_count() -> None:
    logits, labels = drawn()
    kept = torch.tensor([True, True, False, True, False, True])
    truth = kdcl.one_hot(labels, logits)
    some = logits[:, kept], truth[kept], everyone(int(kept.sum()))
    torch.testing.assert_close(kdcl.linear_weights(logits, truth, kept), kdcl.linear_weights(*some))
    torch.testing.assert_close(kdcl.error_products(logits, truth, kept), kdcl.error_products(*some))


def test_general_weights_make_the_squared_error_least() -> None:
    errors = kdcl.error_products(*(lambda z, y: (z, kdcl.one_hot(y, z)))(*drawn(3, 40, 6)), everyone(40)) / 40
    weights = kdcl.general_weights(errors, ridge=0.0)
    assert float(weights.sum()) == pytest.approx(1)
    for step in (torch.tensor([0.01, -0.01, 0.0]), torch.tensor([0.0, 0.01, -0.01])):
        other = weights + step
        assert float(other @ errors @ other) > float(weights @ errors @ weights)


def test_no_target_learns_and_none_waits_for_the_device() -> None:
    logits, labels = drawn()
    logits.requires_grad_()
    with FakeTensorMode(allow_non_fake_inputs=True):
        truth = kdcl.one_hot(labels, logits)
        weights = kdcl.linear_weights(logits, truth, everyone(N))
        targets = [kdcl.combined(logits, weights), *(make(logits, truth) for make in (kdcl.naive, kdcl.min_logit, kdcl.mean))]
        assert kdcl.general_weights(kdcl.error_products(logits, truth, everyone(N))).shape == (M,)
    assert all(target.shape == (N, C) and not target.requires_grad for target in targets)


def test_autocast_does_not_round_the_combined_target() -> None:
    (logits, _), weights = drawn(), torch.tensor([0.2, 0.3, 0.5])
    with torch.autocast("cpu", torch.bfloat16):
        found = kdcl.combined(logits, weights)
    torch.testing.assert_close(found, kdcl.combined(logits, weights), rtol=0, atol=0)
