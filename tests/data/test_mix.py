"""Mixing: pairs, locality, and timm's arithmetic when it is fed the same draws."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from kdscale.data import Plan, check_batch, plan
from kdscale.data.mix import Draw, Mixer, cut, draw, mix_views, mixed, soft_targets
from kdscale.data.plans import mix_span
from kdscale.data.table import Column
from kdscale.errors import DataError
from kdscale.keys import key
from kdscale.recipe.data import Augment, Data
from tests.shared import shared

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


def test_cutmix_of_the_published_cifar_code() -> None:
    """Half a side, rounded down, to either side of the middle: a box of an odd side loses a pixel."""
    assert cut(0.75, 20, 3, 32, even=True) == Draw(0.828125, (12, 28, 0, 11))
    cases = load_file(shared("golden", "baselines", "techniques.safetensors"))
    of = {name.rsplit("/", 1)[1]: values for name, values in cases.items() if name.startswith("cutmix/boxes")}
    for lam, x, y, box, realised in zip(of["lam"], of["cx"], of["cy"], of["box_x1y1x2y2"], of["realised_lambda"]):
        left, top, right, bottom = map(int, box)
        assert cut(float(lam), int(y), int(x), 32, even=True) == Draw(float(realised), (top, bottom, left, right))
    for lam, x, y in itertools.product(np.linspace(0, 1, 41), range(32), (0, 5, 31)):
        half = int(32 * math.sqrt(1 - lam)) // 2
        left, right, top, bottom = (min(max(place, 0), 32) for place in (x - half, x + half, y - half, y + half))
        weight = 1 - (right - left) * (bottom - top) / 1024
        assert cut(lam, y, x, 32, even=True) == Draw(weight, (top, bottom, left, right))


def test_mixup_of_the_published_cifar_code() -> None:
    """One share a batch, always, evenly spread; also in the last batch of 16."""
    augment, shares = Augment.cifar(mixup=1.0, mix_groups=1), []
    for start in range(0, 64 * 1000, 64):
        weights = filled(augment, 16 if start % 1280 == 0 else 64, start)[:, Column.WEIGHT].view(torch.float64)
        assert len(weights.unique()) == 1
        shares.append(float(weights[0]))
    assert max(shares) < 1
    assert np.allclose(np.quantile(shares, [0.1, 0.25, 0.5, 0.75, 0.9]), [0.1, 0.25, 0.5, 0.75, 0.9], atol=0.06)


def test_cutmix_in_half_of_the_batches() -> None:
    augment = Augment.cifar(cutmix=1.0, mix_prob=0.5, mix_groups=1)
    assert augment.cutmix_side == "even"
    draws = [draw(augment, k, 32) for k in range(4000)]
    off = np.mean([one == Draw(1.0) for one in draws])
    assert abs(off - 0.5) < 0.03
    sides = [one.box[1] - one.box[0] for one in draws if one.box[0] > 0 and one.box[1] < 32]
    assert {side % 2 for side in sides} == {0}


def test_odd_batches_are_one_error() -> None:
    data = Data("x", batch=64, epoch_tail="partial", train=Augment.cifar(mixup=1.0))
    check_batch(plan(data, 50_000, 1, None), 1, 1)
    with pytest.raises(DataError, match="the last batch of an epoch, 15, is odd, and mixup and cutmix pair its images"):
        check_batch(plan(data, 49_999, 1, None), 1, 1)


def test_views_are_mixed_alike() -> None:
    one = filled(Augment(mixup=0.8, cutmix=1.0), 16, 32)
    table = one.repeat_interleave(3, 0)
    table[:, Column.PARTNER : Column.ERASED] = 0
    Mixer(Augment(mixup=0.8, cutmix=1.0), steps(16, Augment(mixup=0.8, cutmix=1.0)), 3, 16).fill(table[::3], 32, 16, 1)
    mix_views(table, 3)
    images = torch.randn(16, 3, 3, 16, 16)
    both = mixed(images.flatten(0, 1), table).view_as(images)
    for view in range(3):
        assert torch.equal(both[:, view], mixed(images[:, view], one))
    assert torch.equal(soft_targets(table, CLASSES, 0.1, True)[::3], soft_targets(one, CLASSES, 0.1, True))


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
