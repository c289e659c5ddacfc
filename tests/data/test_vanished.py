"""Shards that vanish, are replaced or cut while they are read: one line that names the shard and the cure, and never other pixels."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from kdscale.data import evaluation_batches, open_split, open_stream, plan
from kdscale.data.stream import TrainStream
from kdscale.errors import DataError
from kdscale.recipe import Augment, Data

SETTINGS = {"rank": 0, "ranks": 1, "accumulate": 1, "device": torch.device("cpu")}


@pytest.fixture
def source(packed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(packed, tmp_path / "packed"))


def recipe(source: Path) -> Data:
    return Data(str(source), batch=8, train=Augment(size=16), workers=0, read="stream", verify="always")


def opened(source: Path) -> TrainStream:
    data = recipe(source)
    split = open_split(data, "train")
    return open_stream(split, data, plan(data, len(split), 2.0, None), seed=1, classes=3, workers=0, **SETTINGS)  # type: ignore[arg-type]


def shard_of(source: Path, split: str = "train") -> Path:
    return next((source / split).glob("*.tar"))


def vanish(shard: Path) -> None:
    shard.rename(shard.with_suffix(".away"))


def cut(shard: Path) -> None:
    """In place, so that a reader that has it open sees it."""
    shutil.copyfile(shard, shard.with_suffix(".away"))
    os.truncate(shard, shard.stat().st_size // 2)


def replace(shard: Path, whole: bool = False) -> None:
    """By a file of the same size and other bytes: all of them, or those between its ends, which no start looks at."""
    vanish(shard)
    content = bytearray(shard.with_suffix(".away").read_bytes())
    part = slice(None) if whole else slice(len(content) // 4, 3 * len(content) // 4)
    content[part] = bytes(byte ^ 0xFF for byte in content[part])
    shard.write_bytes(bytes(content))


def put_back(shard: Path) -> None:
    shard.with_suffix(".away").replace(shard)


def images(stream: TrainStream, start: int) -> list[torch.Tensor]:
    return [batch.images.clone() for batch in stream.batches(start)]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (vanish, "is missing"),
        (cut, "truncated or replaced"),
        (partial(replace, whole=True), "the right size but other content"),
    ],
    ids=["vanished", "cut", "replaced"],
)
def test_a_shard_damaged_between_two_starts(damage: Callable[[Path], None], said: str, source: Path) -> None:
    shard = shard_of(source)
    damage(shard)
    with pytest.raises(DataError, match=said) as told:
        opened(source)
    assert shard.name in str(told.value)
    assert "\n" not in str(told.value)


def test_an_open_shard_that_vanishes_or_is_replaced_is_read_to_the_end(source: Path) -> None:
    """The file that was opened is still there for its reader, whatever its name says by now."""
    whole = images(opened(source), 0)
    for damage in (vanish, replace):
        stream, shard = opened(source), shard_of(source)
        batches = stream.batches(0)
        first = next(batches).images.clone()
        damage(shard)
        rest = [batch.images.clone() for batch in batches]
        assert all(torch.equal(a, b) for a, b in zip([first, *rest], whole, strict=True))
        put_back(shard)


@pytest.mark.parametrize(("damage", "said"), [(vanish, "cannot be opened"), (cut, "truncated; restore it"), (replace, "crc")])
def test_a_shard_damaged_before_it_is_opened_again(damage: Callable[[Path], None], said: str, source: Path) -> None:
    """Between two epochs a worker may open it anew. When it is put back, what follows is what would have followed."""
    whole = images(opened(source), 0)
    stream = opened(source)
    before = [batch.images.clone() for _, batch in zip(range(12), stream.batches(0), strict=False)]
    stream.close()
    shard = shard_of(source)
    damage(shard)
    with pytest.raises(DataError) as told:
        images(stream, 12)
    text = str(told.value)
    assert said in text
    assert shard.name in text
    assert "\n" not in text
    put_back(shard)
    after = images(stream, 12)
    assert all(torch.equal(a, b) for a, b in zip([*before, *after], whole, strict=True))


def test_a_shard_cut_under_its_reader(source: Path) -> None:
    stream = opened(source)
    batches = stream.batches(0)
    next(batches)
    cut(shard_of(source))
    with pytest.raises(DataError, match=rf"sample .* in {shard_of(source).name} at \d+: read \d+ of \d+ bytes .* restore it"):
        list(batches)


def test_a_shard_of_the_evaluation_that_vanishes_between_two(source: Path) -> None:
    data = recipe(source)
    split = open_split(data, "eval")

    def evaluated() -> int:
        return sum(
            len(b.images) for b in evaluation_batches(split, data, rank=0, ranks=1, device=torch.device("cpu"), workers=0)
        )

    assert evaluated() >= len(split)
    vanish(shard_of(source, "val"))
    with pytest.raises(DataError, match=r"sample .* in small-val-000000.tar at \d+: .* cannot be opened"):
        evaluated()
