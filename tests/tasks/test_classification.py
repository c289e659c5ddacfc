from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kdscale.errors import RunError
from kdscale.losses.logits import cross_entropy
from kdscale.tasks import Classification
from kdscale.types import Batch, DatasetInfo, Outputs, World

TASK = Classification()
ALONE = World(rank=0, size=1, gather=lambda t: t, total=lambda t: t)


def info(classes: int) -> DatasetInfo:
    return DatasetInfo("drawn", 40, classes, None, (0.5,) * 3, (0.2,) * 3, 8)


def batch_of(labels: Tensor, start: int = 0, **changed: Any) -> Batch:
    n = len(labels)
    numbers = torch.arange(start, start + n)
    fields: dict[str, Any] = {
        "images": torch.zeros(n, 3, 8, 8), "normalisation": ((0.5,) * 3, (0.2,) * 3), "labels": labels, "targets": None,
        "index": numbers, "position": numbers, "repeat": torch.zeros_like(numbers), "valid": labels >= 0,
    }  # fmt: skip
    return Batch(**(fields | changed))


def drawn(n: int = 8, classes: int = 10, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, classes, generator=generator), torch.randint(classes, (n,), generator=generator)


def test_without_a_bad_sample_the_loss_is_the_plain_mean() -> None:
    logits, labels = drawn()
    losses = TASK.supervised(Outputs(logits), batch_of(labels), ALONE)
    assert torch.equal(losses["ce"], cross_entropy(logits, labels).mean())


def test_soft_targets_replace_labels() -> None:
    logits, labels = drawn()
    targets = torch.full((8, 10), 0.1)
    loss = TASK.supervised(Outputs(logits), batch_of(labels, targets=targets), ALONE)["ce"]
    torch.testing.assert_close(loss, -(0.1 * logits.log_softmax(-1)).sum(-1).mean())


def test_a_bad_sample_is_as_if_it_had_not_been_there() -> None:
    logits, labels = drawn()
    logits.requires_grad_()
    spoilt = labels.clone()
    spoilt[3] = -100
    for targets in (None, torch.full((8, 10), 0.1)):
        loss = TASK.supervised(Outputs(logits), batch_of(spoilt, targets=targets), ALONE)["ce"]
        keep = torch.arange(8) != 3
        kept = batch_of(labels[keep], targets=None if targets is None else targets[keep])
        torch.testing.assert_close(loss, TASK.supervised(Outputs(logits[keep]), kept, ALONE)["ce"])
        (gradient,) = torch.autograd.grad(loss, logits)
        assert gradient[3].abs().sum() == 0


def test_a_batch_of_bad_samples_alone_has_no_loss_and_no_gradient() -> None:
    logits = drawn()[0].requires_grad_()
    loss = TASK.supervised(Outputs(logits), batch_of(torch.full((8,), -100)), ALONE)["ce"]
    (gradient,) = torch.autograd.grad(loss, logits)
    assert float(loss.detach()) == 0
    assert gradient.abs().sum() == 0


def test_ranks_with_unequal_bad_samples_average_to_one_process() -> None:
    logits, labels = drawn()
    labels[[0, 1, 5]] = -100
    whole = TASK.supervised(Outputs(logits), batch_of(labels), ALONE)["ce"]
    ranks = [
        TASK.supervised(Outputs(logits[part]), batch_of(labels[part]), World(i, 2, lambda t: t, lambda t: t * 0 + 5))["ce"]
        for i, part in enumerate((slice(0, 4), slice(4, 8)))
    ]
    torch.testing.assert_close(sum(ranks) / 2, whole)


def test_rows_hold_what_each_teacher_said() -> None:
    logits, labels = drawn()
    taught = {"teacher": Outputs(logits + 1), "assistant": Outputs(None)}
    rows = TASK.rows(Outputs(logits), batch_of(labels), taught, ALONE)
    assert list(rows.teacher) == ["teacher"]
    assert torch.equal(rows.teacher["teacher"], logits + 1)
    with pytest.raises(RunError, match="cut before its head"):
        TASK.rows(Outputs(None), batch_of(labels), {}, ALONE)


def scores(batches: list[tuple[Tensor, Tensor]], classes: int, samples: int | None = None) -> dict[str, float]:
    metric, start = TASK.metric(info(classes)), 0
    for logits, labels in batches:
        metric.update({"student": logits}, batch_of(labels, start))
        start += len(labels)
    return metric.result(lambda t: t, samples)["student"]


def test_scores_are_those_of_a_plain_count() -> None:
    logits, labels = drawn(64, 20)
    order = logits.argsort(-1, descending=True)
    expected = {
        "top1": (order[:, 0] == labels).double().mean().item(),
        "top5": (order[:, :5] == labels[:, None]).any(-1).double().mean().item(),
        "loss": cross_entropy(logits, labels).double().mean().item(),
        "count": 64,
    }
    assert scores([(logits[:40], labels[:40]), (logits[40:], labels[40:])], 20, samples=64) == pytest.approx(expected)


def test_with_fewer_than_five_classes_the_top_five_are_all() -> None:
    assert scores([drawn(8, 3)], 3)["top5"] == 1.0


def test_a_network_that_has_diverged_is_never_right() -> None:
    logits, labels = drawn()
    logits[:] = torch.nan
    broken = scores([(logits, labels)], 10)
    assert broken["top1"] == broken["top5"] == 0
    assert broken["loss"] != broken["loss"]


def test_padding_counts_nowhere() -> None:
    logits, labels = drawn()
    labels[6:] = -100
    logits[6:] = torch.nan
    metric = TASK.metric(info(10))
    metric.update({"student": logits}, batch_of(labels, index=torch.tensor([0, 1, 2, 3, 4, 5, -1, -1])))
    padded = metric.result(lambda t: t, samples=6)["student"]
    assert padded == scores([(logits[:6], labels[:6])], 10)


def test_a_sample_counted_twice_in_the_place_of_another_is_found() -> None:
    logits, labels = drawn()
    metric = TASK.metric(info(10))
    metric.update({"student": logits}, batch_of(labels, index=torch.tensor([0, 1, 2, 3, 4, 5, 6, 6])))
    with pytest.raises(RunError, match="not each once"):
        metric.result(lambda t: t, samples=8)
    with pytest.raises(RunError, match="8 samples of 9"):
        metric.result(lambda t: t, samples=9)


def test_one_sum_over_ranks_gives_the_score_of_one_process() -> None:
    logits, labels = drawn(4000, 10)
    metrics = []
    for rank in range(4):
        part = torch.arange(rank, 4000, 4)
        metrics.append(TASK.metric(info(10)))
        metrics[-1].update({"student": logits[part], "ema": -logits[part]}, batch_of(labels[part], index=part))
    packed: list[Tensor] = []
    for metric in metrics:
        metric.result(lambda t: packed.append(t) or t)  # type: ignore[func-returns-value]
    assert len(packed) == 4
    together = metrics[0].result(lambda t: torch.stack(packed).sum(0), samples=4000)
    alone = scores([(logits, labels)], 10)
    assert together["student"]["loss"] == pytest.approx(alone["loss"], rel=1e-12)
    assert {k: v for k, v in together["student"].items() if k != "loss"} == {k: v for k, v in alone.items() if k != "loss"}
    assert together["ema"]["top1"] < together["student"]["top1"] or alone["top1"] < 0.2


def test_an_empty_evaluation_is_an_error() -> None:
    with pytest.raises(RunError, match="no batch"):
        TASK.metric(info(10)).result(lambda t: t)
