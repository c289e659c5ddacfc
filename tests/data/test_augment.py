"""Pixels: as exact as the design says against Pillow, and a function of the key alone."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image

from kdscale.data import open_split
from kdscale.data.augment import DRAWS, Transform, crop_box, erasing_boxes, generators_kept, padded_crop, resized
from kdscale.data.decode import decode, pillow
from kdscale.data.reader import Bytes
from kdscale.errors import DataError
from kdscale.keys import key
from kdscale.recipe.data import Augment, Data
from kdscale.types import DatasetInfo

KEYS = key(7, np.arange(2000, dtype=np.uint64))


def info(size: int) -> DatasetInfo:
    return DatasetInfo("", 1, 2, None, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), size)


def draws(number: int = 0) -> np.ndarray:
    return Transform(Augment(), info(8)).draws(KEYS[number : number + 1])[0]


def test_fidelity_to_pillow_on_real_photographs(photos) -> None:  # type: ignore[no-untyped-def]
    split = open_split(Data(str(photos)), "train")
    worst, means = 0, []
    for sample in range(100):
        data = Bytes(split, True).read(sample)
        exact = pillow(data)
        image = decode(data)
        assert np.array_equal(image.numpy(), np.asarray(exact))
        for number in range(4):
            top, left, height, width = crop_box(*image.shape[:2], Augment(), draws(4 * sample + number))
            ours = resized(image[top : top + height, left : left + width], 224, "bicubic").numpy().astype(int)
            crop = exact.crop((left, top, left + width, top + height)).resize((224, 224), Image.Resampling.BICUBIC)
            difference = np.abs(ours - np.asarray(crop, int))
            worst, means = max(worst, difference.max()), [*means, difference.mean()]
    assert worst <= 3
    assert np.mean(means) <= 0.01


def test_crops_follow_timms_law() -> None:
    """Areas uniform in the scale, log-ratios symmetric; about one image in a hundred thousand falls back here."""
    boxes = np.array([crop_box(400, 500, Augment(), row) for row in Transform(Augment(), info(8)).draws(KEYS)])
    assert (boxes[:, 0] + boxes[:, 2] <= 400).all()
    assert (boxes[:, 1] + boxes[:, 3] <= 500).all()
    area = boxes[:, 2] * boxes[:, 3] / 200_000
    assert 0.079 < area.min() < 0.1
    random.seed(0)
    from timm.data.transforms import RandomResizedCropAndInterpolation as Reference

    picture = Image.new("RGB", (500, 400))
    reference = np.array([Reference.get_params(picture, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(2000)])
    for column in range(4):
        quantiles = np.quantile(boxes[:, column], [0.1, 0.5, 0.9]), np.quantile(reference[:, column], [0.1, 0.5, 0.9])
        assert np.allclose(*quantiles, atol=20)


def test_crop_falls_back_to_the_centre() -> None:
    top, left, height, width = crop_box(10, 1000, Augment(scale=(1.0, 1.0)), draws())
    assert (top, height, width) == (0, 10, 13)
    assert left == (1000 - 13) // 2


def test_pad_is_a_window_into_a_frame_of_zeros() -> None:
    image = torch.randint(1, 256, (32, 32, 3), dtype=torch.uint8)
    frame = torch.zeros(40, 40, 3, dtype=torch.uint8)
    frame[4:36, 4:36] = image
    places = set()
    for number in range(500):
        row = draws(number)
        top, left = int(row[20] * 9), int(row[21] * 9)
        places.add((top, left))
        assert torch.equal(padded_crop(image, 32, 4, row), frame[top : top + 32, left : left + 32])
    assert len(places) > 75  # of 81
    with pytest.raises(DataError, match="32 x 32, too small for a crop of 48 with 4 pixels"):
        padded_crop(image, 48, 4, draws())


@pytest.mark.parametrize(
    ("augment", "size"),
    [
        (Augment.deit(64), 64),
        (Augment(size=28, crop="pad", policy="rand-m9-mstd0.5-inc1"), 28),
        (Augment(size=32, jitter=0.4), 32),
        (Augment(size=32, policy="augmix-m3-w3"), 32),
        (Augment(size=32, policy="3a", jitter=0.3), 32),
        (Augment(size=32, interpolation="random"), 32),
        (Augment.plain(32), 32),
    ],
)
def test_the_key_decides_the_pixels(augment: Augment, size: int) -> None:
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (30, 30, 3), dtype=np.uint8))
    transform = Transform(augment, info(size))
    rows = transform.draws(KEYS[:40])
    first = [transform(image, rows[i], int(KEYS[i])) for i in range(40)]
    again = [transform(image, rows[i], int(KEYS[i])) for i in reversed(range(40))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    assert first[0].shape == (size, size, 3)
    assert first[0].dtype == torch.uint8
    different = len({one.numpy().tobytes() for one in first})
    assert different == 1 if augment == Augment.plain(32) else different > 15


def test_jitter_is_off_where_a_policy_is_on() -> None:
    image = torch.randint(0, 256, (32, 32, 3), dtype=torch.uint8)
    one, two = (Transform(Augment(size=32, policy="rand-m9-n2", jitter=j), info(32)) for j in (0.0, 0.9))
    row = one.draws(KEYS[:1])[0]
    assert torch.equal(one(image, row, int(KEYS[0])), two(image, row, int(KEYS[0])))


def test_an_unknown_policy_is_one_error() -> None:
    with pytest.raises(DataError, match="augmentation policy nonsense is none of timm's"):
        Transform(Augment(policy="nonsense"), info(32))


def test_foreign_draws_leave_no_trace() -> None:
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    expected = random.random(), np.random.rand(), torch.rand(1).item()
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    with generators_kept():
        Transform(Augment.deit(32), info(32))(torch.zeros(40, 40, 3, dtype=torch.uint8), draws(), 5)
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected


def test_crop_none_needs_the_size() -> None:
    transform = Transform(Augment(crop="none", flip=0), info(8))
    image = torch.randint(0, 256, (8, 8, 3), dtype=torch.uint8)
    assert torch.equal(transform(image, draws(), 1), image)
    with pytest.raises(DataError, match="9 x 8, and crop none needs 8 x 8"):
        transform(torch.zeros(9, 8, 3, dtype=torch.uint8), draws(), 1)


def test_flips_at_their_probability() -> None:
    assert abs((Transform(Augment(), info(8)).draws(KEYS)[:, 22] < 0.5).mean() - 0.5) < 0.05


@pytest.mark.parametrize("count", [1, 3])
def test_erasing_boxes_follow_the_law(count: int) -> None:
    rows = Transform(Augment(), info(8)).draws(KEYS)
    assert rows.shape == (2000, DRAWS)
    boxes = erasing_boxes(Augment(erase=0.25, erase_count=count), 224, KEYS, rows).reshape(2000, count, 4)
    on = boxes[:, 0, 2] > 0
    assert abs(on.mean() - 0.25) < 0.04
    area = boxes[on, :, 2] * boxes[on, :, 3] / 224**2 * count
    assert 0.015 < area.min() < area.max() < 0.36
    assert (boxes[..., 0] + boxes[..., 2] <= 224).all()
    assert (boxes[..., 1] + boxes[..., 3] <= 224).all()


def test_images_that_do_not_decode_say_why() -> None:
    with pytest.raises(DataError, match=r"cannot decode \(cannot identify image file"):
        decode(bytearray(b"no image at all"))
