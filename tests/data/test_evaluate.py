"""Evaluation: timm's pixels bit by bit, every sample once, padding that cannot be mistaken."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from kdscale.data import checksum, evaluation_batches, expected_checksum, open_split
from kdscale.data.evaluate import MODULUS
from kdscale.data.reader import Bytes
from kdscale.errors import DataError
from kdscale.keys import mix
from kdscale.recipe.data import Augment, Data
from kdscale.types import Batch

from .conftest import IMAGES

CPU = torch.device("cpu")


def batches(data: Data, rank: int = 0, ranks: int = 1, workers: int = 0, indices: np.ndarray | None = None) -> list[Batch]:
    split = open_split(data, "eval")
    return list(evaluation_batches(split, data, rank=rank, ranks=ranks, device=CPU, workers=workers, indices=indices))


@pytest.mark.parametrize(("crop", "interpolation"), [(0.875, "bicubic"), (1.0, "bilinear")])
def test_pixels_are_timms_bit_by_bit(photos: Path, crop: float, interpolation: str) -> None:
    data = Data(str(photos), eval_crop=crop, eval_interpolation=interpolation, train=Augment(size=160))  # type: ignore[arg-type]
    split = open_split(data, "eval")
    transform = create_transform(
        (3, 160, 160), is_training=False, crop_pct=crop, interpolation=interpolation, mean=split.info.mean, std=split.info.std
    )
    indices = np.arange(0, 1000, 67)
    (batch,) = batches(data, indices=indices)
    assert batch.index.tolist() == indices.tolist()
    for row, sample in enumerate(indices.tolist()):
        image = Image.open(io.BytesIO(Bytes(split, True).read(sample))).convert("RGB")
        assert torch.allclose(batch.images[row], transform(image), atol=2e-6)


@pytest.mark.parametrize(("ranks", "workers", "most"), [(1, 0, 256), (1, 2, 10), (2, 0, 7), (4, 0, 5), (5, 1, 100)])
def test_every_sample_once_and_the_same_number_of_batches_everywhere(packed: Path, ranks: int, workers: int, most: int) -> None:
    data = Data(str(packed), eval_batch=most, train=Augment(size=32))
    of_rank = [batches(data, rank, ranks, workers) for rank in range(ranks)]
    assert len({tuple(len(batch.index) for batch in part) for part in of_rank}) == 1
    index = torch.cat([batch.index for part in of_rank for batch in part])
    valid = torch.cat([batch.valid for part in of_rank for batch in part])
    assert sorted(index[valid].tolist()) == list(range(IMAGES))
    assert len(index) - IMAGES < ranks * len(of_rank[0])
    for batch in (batch for part in of_rank for batch in part):
        padding = ~batch.valid
        assert (batch.index[padding] == -1).all()
        assert (batch.labels[padding] == -100).all()
        assert batch.targets is None
    total = sum(int(checksum(batch.index)) for part in of_rank for batch in part)
    assert total & MODULUS == expected_checksum(IMAGES)


def test_a_subset_over_ranks(packed: Path) -> None:
    chosen = np.array([5, 3, 90, 41, 17])
    data = Data(str(packed), train=Augment(size=32), eval_batch=2)
    parts = [batches(data, rank, 2, indices=chosen) for rank in range(2)]
    index = torch.cat([batch.index for part in parts for batch in part])
    assert sorted(index[index >= 0].tolist()) == sorted(chosen.tolist())
    assert sum(int(checksum(batch.index)) for part in parts for batch in part) & MODULUS == expected_checksum(chosen)
    with pytest.raises(DataError, match="asked for no samples"):
        batches(data, indices=np.array([], int))


def test_checksums_see_what_counts_do_not() -> None:
    whole = torch.arange(100)
    assert int(checksum(whole)) == expected_checksum(100) == sum(mix(n) for n in range(100)) % 2**61
    doubled = whole.clone()
    doubled[7] = 8
    assert int(checksum(doubled)) != expected_checksum(100)
    assert int(checksum(torch.cat([whole, torch.full((9,), -1)]))) == expected_checksum(100)


def test_bad_samples_are_never_masked_in_evaluation(packed: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(packed, tmp_path / "copy"))
    data = Data(str(copy), on_bad="mask", max_bad=1.0, train=Augment(size=32))
    split = open_split(data, "eval")
    bytes_ = bytearray(split.shards[0].read_bytes())
    bytes_[int(split.records["offset"][0]) + 100] ^= 1
    split.shards[0].write_bytes(bytes_)
    with pytest.raises(DataError, match=r"^sample .* in small-val-000000.tar at \d+: crc"):
        list(evaluation_batches(split, data, rank=0, ranks=1, device=CPU, workers=0))


def test_cutting_the_centre_of_small_images_is_said(packed: Path, caplog: pytest.LogCaptureFixture) -> None:
    batches(Data(str(packed), train=Augment.cifar()))
    assert "evaluation cuts out the centre (eval_crop 0.875)" in caplog.text
