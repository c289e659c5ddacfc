"""The order against its normative vectors, and what makes it a shuffle: bijection, repeats, other order each epoch."""

from __future__ import annotations

import numpy as np
import pytest

from kdscale.data.order import Sequence

IMAGENET = 1_281_167


@pytest.mark.parametrize(
    ("sequence", "start", "expected"),
    [
        (Sequence(IMAGENET, 0), 0, [62984, 946718, 1071966, 64228, 895566, 717208, 730490, 656189]),
        (Sequence(IMAGENET, 0), IMAGENET, [660217, 522590, 79068, 559700]),
        (Sequence(IMAGENET, 0), 10**12, [367561]),
        (Sequence(1000, 42, 8, 4, 2), 0, [270, 324, 90, 566, 576, 975, 510, 207, 269, 597]),
        (Sequence(50_000, 0, 1, 1, 1), 0, [46291, 35550, 17922, 11618, 18938]),
    ],
)
def test_vectors(sequence: Sequence, start: int, expected: list[int]) -> None:
    assert sequence.sample(start + np.arange(len(expected))).tolist() == expected


@pytest.mark.parametrize("samples", [1, 2, 3, 7, 63, 64, 65, 255, 256, 257, 1000, 4099])
@pytest.mark.parametrize("shape", [(256, 32, 8), (64, 1, 1), (3, 5, 2), (256, 64, 4)])
def test_every_epoch_holds_every_sample_once(samples: int, shape: tuple[int, int, int]) -> None:
    sequence = Sequence(samples, 11, *shape)
    for epoch in (0, 1, 5):
        assert np.array_equal(np.sort(sequence.sample(epoch * samples + np.arange(samples))), np.arange(samples))


def test_bulk_equals_single_positions() -> None:
    sequence = Sequence(1000, 3, repeats=3, group=4)
    positions = np.arange(5990, 6020)
    bulk = np.stack(sequence.at(positions))
    single = np.concatenate([np.stack(sequence.at(positions[i : i + 1])) for i in range(len(positions))], axis=1)
    assert np.array_equal(bulk, single)


def test_epochs_and_seeds_differ() -> None:
    places = np.arange(4099)
    one, two = Sequence(4099, 1), Sequence(4099, 2)
    assert np.mean(one.sample(places) == one.sample(places + 4099)) < 0.01
    assert np.mean(one.sample(places) == two.sample(places)) < 0.01


def test_repeats_come_group_places_apart_and_each_sample_as_often_as_asked() -> None:
    sequence = Sequence(120, 5, repeats=3, group=4)
    samples, repeats, _ = sequence.at(np.arange(3 * 120))
    assert np.array_equal(np.bincount(samples), np.full(120, 3))
    assert samples[0] == samples[4] == samples[8]
    assert repeats[[0, 4, 8]].tolist() == [0, 1, 2]


def test_fresh_repeats_use_the_first_third_of_each_permutation() -> None:
    sequence = Sequence(120, 5, repeats=3, group=4, fresh=True)
    plain = Sequence(120, 5)
    for epoch in range(3):
        samples, _, epochs = sequence.at(epoch * 120 + np.arange(120))
        assert set(samples.tolist()) == set(plain.sample(epoch * 120 + np.arange(40)).tolist())
        assert set(epochs.tolist()) == {epoch}


def test_class_sorted_shards_are_mixed() -> None:
    """Variance of class counts in a batch over that of a uniform draw: 1.33 by the design's simulation; 48 for a buffer."""
    samples, classes, batch = 128_000, 100, 1024
    labels = np.arange(samples) * classes // samples
    order = labels[Sequence(samples, 0).sample(np.arange(samples // batch * batch))].reshape(-1, batch)
    counts = np.stack([np.bincount(row, minlength=classes) for row in order])
    assert counts.var() / (batch / classes * (1 - 1 / classes)) < 1.6
