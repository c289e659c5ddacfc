"""What the data room does on a GPU, on an imagined one: it waits for nothing, and brings nothing of the host into it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from kdscale.data import Split, TrainStream, open_split, pack_arrays, plan, resident
from kdscale.data.autoaugment import NAME
from kdscale.data.device import Finish
from kdscale.data.reader import TrainReader
from kdscale.data.stream import Steps
from kdscale.recipe.data import Augment, Data
from kdscale.types import Batch
from tests.imagined_gpu import DEVICE, ImaginedGpu

SIDE, SAMPLES, CLASSES, BATCH = 12, 40, 4, 8
PAD = Augment(size=SIDE, crop="pad", pad=2)
MIXED = replace(PAD, mixup=0.8, cutmix=1.0, smoothing=0.1, erase=0.9)
AUGMENTATIONS = {
    "plain": PAD,
    "mixed": MIXED,
    "erased with the mean": replace(MIXED, erase_mode="mean"),
    "erased with a constant": replace(MIXED, erase_mode="const"),
    "cut out": replace(PAD, cutout=4),
    "by the policy": replace(PAD, policy=NAME),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out, random = tmp_path_factory.mktemp("packed"), np.random.default_rng(3)
    images = random.integers(0, 256, (SAMPLES, SIDE, SIDE, 3), dtype=np.uint8)
    pack_arrays(images, np.arange(SAMPLES) % CLASSES, out, split="train")
    return out


def opened(folder: Path, augment: Augment, views: int = 1) -> tuple[Split, TrainStream]:
    data = Data(str(folder), batch=BATCH, train=augment, eval_crop=1.0)
    split = open_split(data, "train")
    settings = {"seed": 5, "rank": 0, "ranks": 1, "accumulate": 1, "device": torch.device("cpu"), "classes": CLASSES}
    return split, TrainStream(split, data, plan(data, SAMPLES, None, 4), workers=0, views=views, **settings)  # type: ignore[arg-type]


class ToTheGpu(Finish):
    """Made on the host, where its tables have numbers; then all that it holds is on the GPU, and so is what it makes."""

    gpu: ImaginedGpu

    def move(self, gpu: ImaginedGpu) -> None:
        self.gpu, self.device = gpu, DEVICE
        for holder in (self, self.policy):
            for name, value in vars(holder).items() if holder is not None else ():
                if isinstance(value, Tensor):
                    setattr(holder, name, gpu.tensor(value))

    def __call__(self, images: Tensor, table: Tensor, mixing: bool, erased: int, largest: tuple[int, int]) -> Batch:
        images, table = (self.gpu.mode.from_tensor(tensor) for tensor in (images, table))
        with self.gpu.working():
            return super().__call__(images, table, mixing, erased, largest)


@pytest.mark.parametrize("augment", AUGMENTATIONS.values(), ids=AUGMENTATIONS.keys())
@pytest.mark.parametrize("views", [1, 2])
def test_batches_are_finished_on_the_device(folder: Path, augment: Augment, views: int) -> None:
    split, stream = opened(folder, augment, views)
    stream._finish = finish = ToTheGpu(split.info, torch.device("cpu"), augment, CLASSES, views)
    finish.move(ImaginedGpu())
    for batch, _ in zip(stream.batches(0), range(2), strict=False):
        on_device = {batch.images.device, batch.labels.device, batch.index.device, batch.position.device, batch.valid.device}
        assert on_device == {DEVICE}
        assert batch.images.shape == (BATCH, *([views] if views > 1 else []), 3, SIDE, SIDE)
        assert (batch.targets is not None) == bool(augment.smoothing)
        assert batch.targets is None or batch.targets.device == DEVICE
    stream.close()


def test_resident_images_are_cut_on_the_device(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Page-locked memory is the driver's, which is not there."""
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: tensor)
    split, stream = opened(folder, PAD)
    gpu, host = ImaginedGpu(), resident.load(split, stream.data, torch.device("cpu"), 0)
    look_up = TrainReader(split, stream.data, stream._sequence, 1, 1)
    rows = look_up.look_up(Steps(stream.plan, 0, 1, 1, 0).positions(0))
    pictures = replace(host, pixels=gpu.tensor(host.pixels))
    with gpu.working():
        part = resident.ResidentReader(pictures, look_up).read(rows)
    assert part.images.device == DEVICE
    assert part.images.shape == (BATCH, SIDE, SIDE, 3)
    assert part.table.device.type == "cpu"
