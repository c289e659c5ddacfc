"""Several views of an image: the first is the plain stream's, the others differ, and who reads does not matter."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdscale.data import TrainStream, open_split, plan, reader
from kdscale.recipe.data import Augment, Data
from kdscale.types import Batch

from .conftest import CLASSES, IMAGES

RECIPES = {
    "cifar": Augment.cifar(),
    "everything": Augment.cifar(
        policy="autoaugment-cifar10", cutout=8, erase=0.5, mixup=1.0, cutmix=1.0, mix_groups=2, smoothing=0.1
    ),
    "deit": Augment.deit(32),
}


@pytest.fixture(scope="module", params=RECIPES)
def data(request: pytest.FixtureRequest, packed: Path) -> Data:
    return Data(str(packed), batch=16, train=RECIPES[request.param])


def batches(data: Data, views: int, ranks: int = 1, accumulate: int = 1, workers: int = 0, **more: Any) -> list[Batch]:
    split = open_split(data, "train")
    made = []
    for rank in range(ranks):
        stream = TrainStream(
            split, data, plan(data, len(split), None, 3), seed=5, rank=rank, ranks=ranks, accumulate=accumulate,
            device=torch.device("cpu"), classes=len(CLASSES), workers=workers, views=views, **more,
        )  # fmt: skip
        made += list(stream.batches(0))
    return made


def whole(parts: list[Batch]) -> dict[int, tuple[torch.Tensor, torch.Tensor | None]]:
    return {
        int(batch.position[row]): (batch.images[row], None if batch.targets is None else batch.targets[row])
        for batch in parts
        for row in range(len(batch.position))
    }


def same(one: list[Batch], two: list[Batch]) -> bool:
    first, second = whole(one), whole(two)
    return first.keys() == second.keys() and all(
        torch.equal(images, second[place][0]) and (targets is None or torch.equal(targets, second[place][1]))  # type: ignore[arg-type]
        for place, (images, targets) in first.items()
    )


def test_the_first_view_is_the_plain_stream(data: Data) -> None:
    for one, three in zip(batches(data, 1), batches(data, 3), strict=True):
        assert three.images.shape == (16, 3, 3, 32, 32)
        assert torch.equal(three.images[:, 0], one.images)
        assert three.images.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
        for name in ("labels", "index", "position", "repeat", "valid", "targets"):
            ours, plain = getattr(three, name), getattr(one, name)
            assert (ours is plain is None) or torch.equal(ours, plain), name


def test_views_differ(data: Data) -> None:
    images = torch.cat([batch.images for batch in batches(data, 3)])
    for one, two in ((0, 1), (0, 2), (1, 2)):
        different = (images[:, one] != images[:, two]).flatten(1).any(1)
        assert different.float().mean() > 0.95


@pytest.mark.parametrize(("ranks", "accumulate", "workers"), [(2, 2, 0), (4, 1, 0), (1, 1, 2), (2, 1, 1)])
def test_who_reads_does_not_matter(data: Data, ranks: int, accumulate: int, workers: int) -> None:
    assert same(batches(data, 2), batches(data, 2, ranks, accumulate, workers))


def test_an_image_is_decoded_once(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded, original = [], reader.decode
    monkeypatch.setattr(reader, "decode", lambda data: (decoded.append(1), original(data))[1])
    batches(Data(str(packed), batch=16, train=Augment.cifar()), 4)
    assert len(decoded) == 3 * 16


def test_a_bad_image_is_masked_in_all_views(packed: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(packed, tmp_path / "copy"))
    data = Data(str(copy), batch=IMAGES, train=Augment.cifar(), on_bad="mask", max_bad=1.0)
    split = open_split(data, "train")
    raw = bytearray(split.shards[0].read_bytes())
    raw[int(split.records["offset"][3]) + 20] ^= 0x10
    split.shards[0].write_bytes(raw)
    stream = TrainStream(
        split, data, plan(data, IMAGES, None, 1), seed=5, rank=0, ranks=1, accumulate=1, device=torch.device("cpu"),
        classes=len(CLASSES), workers=0, views=2,
    )  # fmt: skip
    (batch,) = stream.batches(0)
    bad = batch.index == 3
    assert torch.equal(batch.valid, ~bad)
    assert torch.equal(batch.images[bad][0, 0], batch.images[bad][0, 1])
    assert stream.bad == 1


def test_epochs_are_seen_once_with_views(packed: Path) -> None:
    found = batches(Data(str(packed), batch=32, train=Augment.cifar()), 2)
    assert sorted(np.concatenate([batch.index for batch in found]).tolist()) == list(range(IMAGES))
