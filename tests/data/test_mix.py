"""Mixing: pairs, locality, and timm's arithmetic when it is fed the same draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kdscale.data import Plan, plan
from kdscale.data.mix import Draw, Mixer, cut, draw, mixed, soft_targets
from kdscale.data.plans import mix_span
from kdscale.data.table import Column
from kdscale.keys import key
from kdscale.recipe.data import Augment, Data

CLASSES = 10


def table_of(positions: np.ndarray) -> torch.Tensor:
    table = torch.zeros(len(positions), Column.BOXES, dtype=torch.int64)
    table[:, Column.POSITION] = torch.from_numpy(positions)
    table[:, Column.LABEL] = torch.from_numpy(positions * 7 % CLASSES)
    table[:, Column.VALID] = 1
    return table


def steps(batch: int, augment: Augment) -> Plan:
    return plan(Data("x", batch=batch, train=augment), 1000, None, 50)


def filled(augment: Augment, batch: int, start: int, rank: int = 0, share: int = 1, size: int = 16) -> torch.Tensor:
    first = start + (rank - start) % share
    table = table_of(np.arange(first, start + batch, share))
    Mixer(augment, steps(batch, augment), 3, size).fill(table, start, batch, share)
    return table


def test_no_sample_is_its_own_partner_and_pairs_are_mutual() -> None:
    for batch in range(2, 4097, 2):
        span = mix_span(batch)
        slots = np.arange(batch)
        partner = (batch // span - 1 - slots // span) * span + slots % span
        assert (partner != slots).all()
        assert (partner[partner] == slots).all()
        assert batch // span % 2 == 0


@pytest.mark.parametrize("share", [1, 2, 8])
def test_ranks_and_accumulation_do_not_change_what_is_mixed(share: int) -> None:
    augment = Augment(mixup=0.8, cutmix=1.0)
    whole = filled(augment, 32, 96)
    places = whole[:, Column.POSITION]
    for rank in range(share):
        mine = filled(augment, 32, 96, rank, share)
        rows = (mine[:, Column.POSITION] - places[0]).contiguous()
        assert torch.equal(mine[:, Column.WEIGHT : Column.BOXES], whole[rows, Column.WEIGHT : Column.BOXES])
        assert torch.equal(mine[mine[:, Column.PARTNER], Column.POSITION], whole[whole[rows, Column.PARTNER], Column.POSITION])


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_one_group_is_timms_batch_mode(mixup: float, cutmix: float, smoothing: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of 6 is odd, so all slots are of one class, and the partner is timm's: the mirrored sample."""
    from timm.data.mixup import Mixup

    batch, size = 6, 16
    augment = Augment(mixup=mixup, cutmix=cutmix, mix_groups=1)
    pasted = []
    for start in range(0, 240, batch):
        table = filled(augment, batch, start)
        images = torch.randn(batch, 3, size, size)
        random = np.random.Generator(np.random.Philox(key=key(3, 5, start, 0)))
        monkeypatch.setattr(np.random, "rand", random.random)
        monkeypatch.setattr(np.random, "beta", random.beta)
        monkeypatch.setattr(np.random, "randint", lambda low, high, size=None, g=random: g.integers(low, high, size))
        x, y = Mixup(mixup, cutmix, label_smoothing=smoothing, num_classes=CLASSES)(images.clone(), table[:, Column.LABEL])
        assert torch.allclose(mixed(images, table), x, atol=1e-6)
        assert torch.allclose(soft_targets(table, CLASSES, smoothing, True), y, atol=1e-6)
        pasted.append(bool(table[0, Column.BOTTOM] > table[0, Column.TOP]))
    expected = 0.5 if mixup and cutmix else float(cutmix > 0)
    assert abs(np.mean(pasted) - expected) < 0.2


def test_eight_groups_draw_eight_times() -> None:
    table = filled(Augment(mixup=0.8), 64, 0)
    weights = table[:, Column.WEIGHT].view(torch.float64)
    assert len(weights.unique()) == 8
    assert torch.equal(weights[:8], weights[8:16])


def test_weight_is_the_area_that_stays() -> None:
    assert cut(0.75, 8, 8, 16) == Draw(1 - 64 / 256, (4, 12, 4, 12))
    assert cut(0.75, 0, 15, 16) == Draw(1 - 20 / 256, (0, 4, 11, 16))


def test_probabilities() -> None:
    draws = [draw(Augment(mixup=1.0, cutmix=1.0, mix_prob=0.5, mix_switch=0.25), k, 32) for k in range(2000)]
    assert abs(np.mean([one.weight < 1 for one in draws]) - 0.5) < 0.05
    boxed = np.mean([one.box[1] > one.box[0] for one in draws if one.weight < 1])
    assert abs(boxed - 0.25) < 0.05


def test_mixing_ends_at_its_epoch() -> None:
    augment = Augment(mixup=1.0, mix_off_epoch=1)
    mixer = Mixer(augment, steps(10, augment), 3, 16)
    assert [mixer.on(start) for start in (0, 999, 1000, 1500)] == [True, True, False, False]


def test_masked_samples_are_mixed_into_nothing() -> None:
    augment = Augment(mixup=1.0)
    table = table_of(np.arange(8))
    table[2, Column.VALID], table[2, Column.LABEL] = 0, -100
    Mixer(augment, steps(8, augment), 3, 16).fill(table, 0, 8, 1)
    images, partner = torch.randn(8, 3, 16, 16), int(table[2, Column.PARTNER])
    assert torch.equal(mixed(images, table)[partner], images[partner])
    targets = soft_targets(table, CLASSES, 0.1, True)
    assert targets[2].abs().sum() == 0
    assert math.isclose(targets[partner].max().item(), 0.91, abs_tol=1e-6)
