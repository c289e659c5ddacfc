"""A set that is resident gives the stream's batches, bit by bit; what cannot be is told in one line, or streamed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kdscale.data import (
    ResidentStream,
    Split,
    TrainStream,
    evaluation_batches,
    open_split,
    open_stream,
    pack_arrays,
    plan,
    resident,
)
from kdscale.errors import DataError
from kdscale.recipe.data import Augment, Data, Order
from kdscale.recipe.resolve import NOT_IDENTITY_DATA
from kdscale.types import Batch

CPU = torch.device("cpu")
SIDE, SAMPLES, CLASSES, STEPS = 12, 50, 3, 9
PAD = Augment(size=SIDE, crop="pad", pad=2)
MIXED = replace(PAD, mixup=0.8, cutmix=1.0, smoothing=0.1, erase=0.5)
Open = Callable[..., TrainStream]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out, random = tmp_path_factory.mktemp("small"), np.random.default_rng(3)
    pack_arrays(
        random.integers(0, 256, (SAMPLES, SIDE, SIDE, 3), dtype=np.uint8), np.arange(SAMPLES) % CLASSES, out, split="train"
    )
    return out


def made(kind: Open, data: Data, rank: int = 0, ranks: int = 1, accumulate: int = 1, **more: Any) -> TrainStream:
    split = more.pop("split", None) or open_split(data, "train")
    steps = plan(data, len(split), None, STEPS)
    who = {"rank": rank, "ranks": ranks, "accumulate": accumulate}
    return kind(split, data, steps, **({"seed": 5, "device": CPU, "classes": CLASSES, "workers": 0} | who | more))


def assert_same(one: Batch, other: Batch) -> None:
    for field in fields(Batch):
        mine, theirs = getattr(one, field.name), getattr(other, field.name)
        if isinstance(theirs, Tensor):
            assert mine.dtype == theirs.dtype, field.name
            assert mine.stride() == theirs.stride(), field.name
            assert torch.equal(mine, theirs), field.name
        else:
            assert mine == theirs, field.name


def compare(data: Data, start: int = 0, **who: int) -> int:
    """Batches compared."""
    streams = made(ResidentStream, data, **who), made(TrainStream, data, **who)
    batches = zip(*(stream.batches(start) for stream in streams), strict=True)
    return sum(1 for pair in batches if assert_same(*pair) is None)


@pytest.mark.parametrize(
    "data",
    [
        Data("", batch=16, train=PAD),
        Data("", batch=16, train=replace(PAD, size=10, pad=1, flip=1.0)),
        Data("", batch=16, train=replace(PAD, size=15, pad=3)),
        Data("", batch=16, train=Augment(size=SIDE, crop="none", flip=0.3)),
        Data("", batch=16, train=MIXED, repeats=3),
        Data("", batch=16, train=replace(MIXED, mix_off_epoch=1, erase_mode="const", erase_count=2), epoch_tail="partial"),
        Data("", batch=16, train=PAD, epoch_tail="drop", order=Order(1, 1, 1)),
        Data("", batch=16, train=replace(MIXED, policy="autoaugment-cifar10", jitter=0.3, cutout=4)),
    ],
    ids=["pad", "smaller", "larger", "none", "mixed", "partial", "drop", "autoaugment"],
)
def test_batches_are_the_streams(small: Path, data: Data) -> None:
    assert compare(replace(data, source=str(small))) == STEPS


def test_views(small: Path) -> None:
    assert compare(Data(str(small), batch=16, train=MIXED), views=3) == STEPS


@pytest.mark.parametrize(("ranks", "accumulate"), [(2, 1), (1, 2), (2, 2)])
def test_ranks_and_accumulation_from_the_middle_of_an_epoch(small: Path, ranks: int, accumulate: int) -> None:
    data = Data(str(small), batch=16, train=MIXED)
    for rank in range(ranks):
        assert compare(data, 4, rank=rank, ranks=ranks, accumulate=accumulate) == (STEPS - 4) * accumulate


def test_it_starts_again(small: Path) -> None:
    stream = made(ResidentStream, Data(str(small), batch=16, train=PAD))
    first = next(iter(stream.batches(3)))
    list(stream.batches(0))
    assert_same(next(iter(stream.batches(3))), first)
    assert not list(stream.batches(STEPS))


@pytest.mark.slow
def test_several_processes_decode_the_same(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = Data(str(small), train=PAD)
    split = open_split(data, "train")
    monkeypatch.setattr(resident, "PER_TASK", 16)
    monkeypatch.setattr(resident, "PER_PROCESS", 16)
    assert torch.equal(resident.load(split, data, CPU, 2).pixels, resident.load(split, data, CPU, 1).pixels)


def test_processes_are_started_where_they_pay() -> None:
    assert [resident.jobs(50_000, 8), resident.jobs(100_000, 8), resident.jobs(10**6, 8), resident.jobs(10**6, 0)] == [
        1,
        3,
        8,
        1,
    ]


def is_resident(stream: TrainStream) -> bool:
    """Once it has given a batch."""
    next(iter(stream.batches(0)))
    stream.close()
    return isinstance(stream, ResidentStream) and stream.pictures is not None


def damaged(data: Data, sample: int) -> Split:
    """The split with an index that does not know the bytes of one image."""
    split = open_split(data, "train")
    records = np.array(split.records)
    records["crc32"][sample] ^= 1
    return replace(split, records=records)


def test_a_damaged_image_stops_the_loading(small: Path) -> None:
    data = Data(str(small), batch=16, train=MIXED)
    with pytest.raises(DataError, match=r"sample 0\d+ in .*tar at \d+: crc .*; on_bad=mask goes on without it"):
        next(iter(made(open_stream, data, split=damaged(data, 7)).batches(0)))


@pytest.mark.parametrize(("sample", "views"), [(0, 1), (7, 1), (7, 2)])
def test_a_masked_image_counts_as_in_the_stream(small: Path, sample: int, views: int) -> None:
    data = Data(str(small), batch=16, train=MIXED, on_bad="mask", max_bad=0.5)
    split = damaged(data, sample)
    streams = [made(kind, data, split=split, views=views) for kind in (open_stream, TrainStream)]
    for mine, theirs in zip(*(stream.batches(0) for stream in streams), strict=True):
        assert_same(mine, theirs)
    assert streams[0].bad == streams[1].bad > 0
    assert is_resident(streams[0])
    with pytest.raises(DataError, match="bad samples are more than max_bad"):
        list(made(open_stream, replace(data, max_bad=0.0), split=split).batches(0))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"size": 20, "crop": "centre"}, "crop centre resizes each image by itself"),
        ({"policy": "rand-m9-mstd0.5-inc1"}, "policy rand-m9-mstd0.5-inc1 changes each image by itself"),
        ({"jitter": 0.3}, "colour jitter changes each image by itself"),
    ],
)
def test_augmentation_of_single_images_is_streamed(small: Path, changes: dict[str, Any], reason: str) -> None:
    data = Data(str(small), batch=16, train=replace(PAD, **changes))
    assert type(made(open_stream, data)) is TrainStream
    with pytest.raises(DataError, match=f"the set cannot be resident: {reason}; set data.read=stream"):
        made(open_stream, replace(data, read="resident"))


def test_several_sizes_are_streamed(packed: Path) -> None:
    data = Data(str(packed), batch=16, train=Augment(size=32, crop="pad", pad=2))
    assert not is_resident(made(open_stream, data))
    with pytest.raises(DataError, match=r"images are of several sizes \(sample .* is \d+ x \d+, others \d+ x \d+\)"):
        is_resident(made(open_stream, replace(data, read="resident")))


@pytest.mark.parametrize("train", [replace(PAD, size=20), replace(PAD, size=20, crop="none")])
def test_a_crop_larger_than_its_frame_is_an_error_either_way(small: Path, train: Augment) -> None:
    data = Data(str(small), batch=16, train=train)
    split = open_split(data, "train")
    split = replace(split, info=replace(split.info, size=20))
    for read, told in (("resident", "the set cannot be resident: images are 12 x 12"), ("auto", "the image is 12 x 12")):
        with pytest.raises(DataError, match=told):
            is_resident(made(open_stream, replace(data, read=read), split=split))


def test_a_set_that_is_too_large_is_streamed(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = Data(str(small), batch=16, train=PAD)
    split = open_split(data, "train")
    with pytest.raises(resident.Unfit, match="50 images of 90 x 3000 take 39 MB, more than resident_mb 30"):
        resident.check_size(split, replace(data, resident_mb=30, read="resident"), (90, 3000))
    monkeypatch.setattr(resident, "LARGEST_SIDE", SIDE - 1)
    assert not is_resident(made(open_stream, data))
    assert is_resident(made(open_stream, replace(data, read="resident")))


def test_the_stream_can_be_asked_for(small: Path) -> None:
    assert type(made(open_stream, Data(str(small), batch=16, train=PAD, read="stream"))) is TrainStream
    assert is_resident(made(open_stream, Data(str(small), batch=16, train=PAD)))


def test_how_data_are_read_is_no_part_of_a_runs_identity() -> None:
    assert {"read", "resident_mb"} <= set(NOT_IDENTITY_DATA)


def test_labels_and_batches_are_checked_as_in_the_stream(small: Path) -> None:
    data = Data(str(small), batch=16, train=PAD)
    with pytest.raises(DataError, match="not divisible by ranks 3"):
        made(open_stream, data, ranks=3)
    with pytest.raises(DataError, match=r"label 2 of sample .* is outside"):
        made(open_stream, data, classes=2)


def test_an_evaluation_reads_small_images_once(small: Path) -> None:
    data = Data(str(small), train=PAD, eval_split="train", eval_crop=1.0, eval_batch=16)
    split, held = open_split(data, "eval"), []
    settings = {"rank": 0, "ranks": 1, "device": CPU, "workers": 0}

    def batches(**more: Any) -> list[Batch]:
        return list(evaluation_batches(more.pop("split", split), more.pop("data", data), **settings, **more))

    plain = batches()
    next(iter(evaluation_batches(split, data, **settings, held=held)))
    assert not held, "what was not read to its end is not whole"
    for again in (batches(held=held), batches(held=held), batches(held=held, split=damaged(data, 7))):
        for mine, theirs in zip(again, plain, strict=True):
            assert_same(mine, theirs)
    assert len(batches(held=held, indices=np.arange(5))[0].index) == 5
    for changes in ({"read": "stream"}, {"train": replace(PAD, size=resident.LARGEST_SIDE + 1)}):
        empty: list[Any] = []
        changed = replace(data, **changes)
        batches(data=changed, split=open_split(changed, "eval"), held=empty)
        assert not empty


def test_held_images_are_no_longer_the_workers(small: Path) -> None:
    """Two open files a batch would reach a system's usual limit of 1024."""
    data = Data(str(small), train=PAD, eval_split="train", eval_crop=1.0, eval_batch=16)
    held: list[Any] = []
    for _ in evaluation_batches(open_split(data, "eval"), data, rank=0, ranks=1, device=CPU, workers=1, held=held):
        pass
    assert len(held) == 4
    assert not any(tensor.is_shared() for pair in held for tensor in pair)
