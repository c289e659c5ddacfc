"""The stream's promises: the same global batches for any ranks, accumulation, workers and start; every error one line."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from webdataset import TarWriter

from kdscale.data import Split, TrainStream, index, open_split, plan
from kdscale.data.loading import usable_cores, worker_count
from kdscale.data.order import Sequence
from kdscale.data.records import RECORD, open_records, write_records
from kdscale.errors import DataError
from kdscale.recipe.data import Augment, Data

from .conftest import CLASSES, IMAGES, picture

CPU = torch.device("cpu")
STEPS = 7
DEIT = Augment.deit(32)


def stream(data: Data, rank: int = 0, ranks: int = 1, accumulate: int = 1, workers: int = 0, **more: Any) -> TrainStream:
    split = more.pop("split", None) or open_split(data, "train")
    steps = plan(data, len(split), None, more.pop("steps", STEPS))
    return TrainStream(
        split, data, steps, seed=more.pop("seed", 5), rank=rank, ranks=ranks, accumulate=accumulate, device=CPU,
        classes=more.pop("classes", len(CLASSES)), workers=workers,
    )  # fmt: skip


def seen(made: TrainStream, start: int = 0, stop: int | None = None) -> dict[int, tuple[int, ...]]:
    """position -> all that was made of it, pixels and targets by checksum."""
    found = {}
    per_step = made.accumulate
    for number, batch in enumerate(made.batches(start)):
        if stop is not None and number >= (stop - start) * per_step:
            break
        targets = batch.targets if batch.targets is not None else batch.labels
        for row in range(len(batch.position)):
            pixels = zlib.crc32(batch.images[row].contiguous().numpy())
            whole = (batch.index[row], batch.repeat[row], batch.labels[row], pixels, zlib.crc32(targets[row].numpy()))
            found[int(batch.position[row])] = tuple(map(int, whole))
    made.close()
    return found


def of_all_ranks(
    data: Data, ranks: int, accumulate: int, workers: int, start: int = 0, stop: int | None = None
) -> dict[int, Any]:
    whole: dict[int, Any] = {}
    for rank in range(ranks):
        part = seen(stream(data, rank, ranks, accumulate, workers), start, stop)
        assert not whole.keys() & part.keys()
        whole |= part
    return whole


@pytest.fixture(scope="module")
def deit(packed: Path) -> Data:
    return Data(str(packed), batch=16, train=DEIT, repeats=3)


@pytest.fixture(scope="module")
def reference(deit: Data) -> dict[int, Any]:
    return of_all_ranks(deit, 1, 1, 0)


@pytest.mark.parametrize(("ranks", "accumulate", "workers"), [(1, 1, 2), (2, 1, 1), (4, 2, 1), (1, 4, 0), (2, 4, 0)])
def test_global_batches_do_not_depend_on_who_reads(
    deit: Data, reference: dict[int, Any], ranks: int, accumulate: int, workers: int
) -> None:
    assert sorted(reference) == list(range(STEPS * 16))
    assert of_all_ranks(deit, ranks, accumulate, workers) == reference


def test_stop_and_start_in_the_middle_with_other_ranks_and_workers(deit: Data, reference: dict[int, Any]) -> None:
    parts = of_all_ranks(deit, 2, 2, 0, 0, 3) | of_all_ranks(deit, 1, 1, 1, 3, 5) | of_all_ranks(deit, 4, 1, 0, 5)
    assert parts == reference


@pytest.mark.parametrize("workers", [0, 2])
def test_every_epoch_holds_every_sample_once(packed: Path, workers: int) -> None:
    data = Data(str(packed), batch=10, train=Augment.cifar())
    samples = [sample for _, (sample, *_) in sorted(seen(stream(data, workers=workers, steps=29)).items())]
    assert len(samples) == 290
    for epoch in range(3):
        assert sorted(samples[epoch * IMAGES : (epoch + 1) * IMAGES]) == list(range(IMAGES))


def test_partial_tails_end_each_epoch(packed: Path) -> None:
    data = Data(str(packed), batch=64, epoch_tail="partial", train=Augment.cifar())
    sizes = [len(batch.index) for batch in stream(data, steps=4).batches(0)]
    assert sizes == [64, 32, 64, 32]


def test_epochs_and_seeds_change_pixels_and_repeats_differ(packed: Path) -> None:
    data = Data(str(packed), batch=16, train=Augment(size=32, flip=0.5), repeats=3)
    found = seen(stream(data, steps=18))
    by_sample: dict[int, set[int]] = {}
    for sample, _, _, pixels, _ in found.values():
        by_sample.setdefault(sample, set()).add(pixels)
    assert all(len(pixels) == 3 for pixels in by_sample.values())
    assert seen(stream(data, steps=1, seed=6)) != {k: v for k, v in found.items() if k < 16}


def test_in_place_reading_leaves_no_trace_in_the_global_generators(deit: Data) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    next(iter(stream(deit).batches(0)))
    assert torch.equal(torch.rand(1), expected)


def test_targets_are_none_without_mixing_and_smoothing(packed: Path) -> None:
    batch = next(iter(stream(Data(str(packed), batch=4, train=Augment.plain(32))).batches(0)))
    assert batch.targets is None
    assert batch.images.dtype == torch.float32
    assert batch.images.shape == (4, 3, 32, 32)
    assert batch.valid.all()


def large(packed: Path, tmp_path: Path, samples: int = 1_281_167) -> Split:
    """An index of ImageNet's size that points at the images of the small set again and again."""
    split = open_split(Data(str(packed), train=Augment.cifar()), "train")
    records = np.resize(np.asarray(split.records), samples).astype(RECORD)
    write_records(tmp_path / "large.index", np.array([0, samples]), records)
    counts, mapped = open_records(tmp_path / "large.index")
    from dataclasses import replace

    info = replace(split.info, samples=samples, labels=mapped["label"])
    return replace(split, index_path=tmp_path / "large.index", counts=counts, records=mapped, info=info)


def test_the_first_batch_asks_for_no_more_positions_in_the_middle_of_imagenet(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start anywhere replays nothing: as many positions are looked up as at the start, and only those from there on."""
    asked: list[Any] = []
    original = Sequence.at
    monkeypatch.setattr(
        Sequence, "at", lambda self, positions: (asked.append(np.asarray(positions)), original(self, positions))[1]
    )
    data, split = Data(str(packed), batch=8, train=Augment.cifar()), large(packed, tmp_path)
    made = stream(data, split=split, steps=10**9)

    def first(start: int) -> list[int]:
        asked.clear()
        next(iter(made.batches(start)))
        return sorted(int(p) for positions in asked for p in positions)

    early, late = first(0), first(10**8 + 17)
    assert len(early) == len(late) <= 1024, "a few steps are looked up at once, whatever the start"
    assert [p - 8 * (10**8 + 17) for p in late] == early


@pytest.fixture
def copy(packed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(packed, tmp_path / "copy"))


def damage(folder: Path, change: str) -> tuple[Split, str]:
    """Damages one image after the split was opened; (the split, the sample's key)."""
    split = open_split(Data(str(folder), train=Augment.cifar()), "train")
    offset, size = int(split.records["offset"][3]), int(split.records["size"][3])
    data = bytearray(split.shards[0].read_bytes())
    if change == "flip":
        data[offset + size // 2] ^= 0x10
    split.shards[0].write_bytes(data if change != "short" else data[: offset + 10])
    return split, split.describe(3).split()[1]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_flipped_bit_is_noticed_by_its_checksum(copy: Path, workers: int) -> None:
    split, key = damage(copy, "flip")
    data = Data(str(copy), batch=IMAGES, train=Augment.cifar())
    with pytest.raises(
        DataError, match=rf"^sample {key} in small-train-000000.tar at \d+: crc \w+, the index says \w+: the file is damaged"
    ):
        seen(stream(data, split=split, workers=workers, steps=1))


@pytest.mark.parametrize(
    ("change", "reason"), [("cut", "cannot decode"), ("text", r"cannot decode \(cannot identify image file")]
)
def test_images_that_do_not_decode_are_named(tmp_path: Path, change: str, reason: str) -> None:
    """A JPEG that was truncated before it was packed, and a text file: their checksums are right."""
    out = io.BytesIO()
    picture(1).save(out, "JPEG")
    data = out.getvalue()[:500] if change == "cut" else b"not an image"
    with TarWriter(str(tmp_path / "x-0.tar"), encoder=False) as tar:
        tar.write({"__key__": "one", "jpg": data, "cls": b"0"})
    index(str(tmp_path), split="train")
    with pytest.raises(DataError, match=rf"^sample one in x-0.tar at \d+: {reason}.*; on_bad=mask goes on without it"):
        seen(stream(Data(str(tmp_path), batch=1, train=Augment.cifar()), steps=1, classes=1))


def test_a_shard_that_is_cut_while_it_is_read(copy: Path) -> None:
    split, _ = damage(copy, "short")
    with pytest.raises(DataError, match=r"read \d+ of \d+ bytes of .*small-train-000000.tar"):
        seen(stream(Data(str(copy), batch=IMAGES, train=Augment.cifar()), split=split, steps=1))


@pytest.mark.parametrize("workers", [0, 2])
def test_masked_samples_keep_their_place_and_are_counted(copy: Path, workers: int, caplog: pytest.LogCaptureFixture) -> None:
    split, key = damage(copy, "flip")
    data = Data(str(copy), batch=32, train=Augment(size=32, mixup=1.0), on_bad="mask", max_bad=0.05)
    made = stream(data, split=split, workers=workers, steps=3)
    bad = [
        (int(batch.labels[row]), batch.images[row]) for batch in made.batches(0) for row in range(32) if not batch.valid[row]
    ]
    assert len(bad) == made.bad == 1
    assert bad[0][0] == -100
    assert f"left out: sample {key}" in caplog.text
    with pytest.raises(DataError, match=r"1 bad samples are more than max_bad 0.001 allows; the last: sample"):
        seen(stream(Data(str(copy), batch=32, on_bad="mask", max_bad=1e-3, train=Augment.cifar()), split=split, steps=3))


def test_labels_out_of_range_of_the_model(packed: Path) -> None:
    with pytest.raises(
        DataError, match=r"label 2 of sample \S+ in small-train-000000.tar at \d+ is outside 0..1 \(2 classes of the model\)"
    ):
        stream(Data(str(packed), batch=4), classes=2)


def test_a_batch_that_does_not_divide(packed: Path) -> None:
    with pytest.raises(
        DataError, match="global batch 100 is not divisible by ranks 3 x accumulation 2; nearest that fit: 96, 102"
    ):
        stream(Data(str(packed), batch=100), ranks=3, accumulate=2)


def test_a_killed_worker_is_an_error_and_no_hang(packed: Path) -> None:
    made = stream(Data(str(packed), batch=8, train=Augment(size=64, policy="rand-m9")), workers=2, steps=10**6)
    batches = made.batches(0)
    next(batches)
    assert made._loading is not None
    victim = made._loading._iterator._workers[1].pid
    threading.Timer(0.2, os.kill, (victim, signal.SIGKILL)).start()
    began = time.monotonic()
    with pytest.raises(DataError, match=r"data worker 1 of rank 0 died \(signal 9; 9 = probably out of memory\)"):
        for _ in batches:
            pass
    made.close()
    assert time.monotonic() - began < 30


def test_workers_outlive_the_signals_that_end_a_run(packed: Path) -> None:
    made = stream(Data(str(packed), batch=8, train=Augment.cifar()), workers=2, steps=200)
    batches = made.batches(0)
    next(batches)
    assert made._loading is not None
    processes = made._loading._iterator._workers
    for process in processes:
        os.kill(process.pid, signal.SIGTERM)
        os.kill(process.pid, signal.SIGINT)
    assert sum(1 for _ in batches) == 199
    assert not any(process.is_alive() for process in processes)


def test_a_stream_that_is_closed_in_the_middle_ends_its_workers(packed: Path) -> None:
    made = stream(Data(str(packed), batch=8, train=Augment.cifar()), workers=2, steps=10**6)
    batches = made.batches(0)
    next(batches)
    assert made._loading is not None
    processes = made._loading._iterator._workers
    began = time.monotonic()
    made.close()
    assert time.monotonic() - began < 10
    assert not any(process.is_alive() for process in processes)


SCRIPT = """
import os, signal, sys, torch
from kdscale.data import TrainStream, open_split, plan
from kdscale.recipe.data import Augment, Data
sys.stderr.write("main ran\\n")
data = Data(sys.argv[1], batch=8, train=Augment.cifar())
split = open_split(data, "train")
stream = TrainStream(split, data, plan(data, len(split), None, 4), seed=1, rank=0, ranks=1, accumulate=1,
                     device=torch.device("cpu"), classes=3, workers=2)
batches = stream.batches(0)
next(batches)
print([process.pid for process in stream._loading._iterator._workers], flush=True)
if sys.argv[2] == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[2] == "raise":
    raise RuntimeError("trainer failed")
"""


@pytest.mark.slow
@pytest.mark.parametrize("end", ["return", "raise", "kill"])
def test_an_unguarded_script_runs_once_and_its_workers_end_with_it(packed: Path, tmp_path: Path, end: str) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py"), str(packed), end],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stderr.count("main ran") == 1
    assert done.returncode == {"return": 0, "raise": 1, "kill": -signal.SIGKILL}[end]
    workers = [int(word) for word in done.stdout.splitlines()[0].strip("[]").split(",")]
    began = time.monotonic()
    while any(Path(f"/proc/{worker}").exists() for worker in workers) and time.monotonic() - began < 10:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)


def test_automatic_workers() -> None:
    assert worker_count("auto", local_ranks=usable_cores(), micro_batch=256) == 0
    assert worker_count(8, 1, 256) == 8
    assert worker_count(8, 1, 10) == 2
    assert worker_count(0, 1, 256) == 0


def test_small_shared_memory_is_said_at_the_start(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1 << 10}))
    with pytest.raises(DataError, match=r"/dev/shm has 0 MB free, .* give docker --shm-size"):
        next(iter(stream(Data(str(packed), batch=8), workers=1).batches(0)))


def test_real_photographs_through_the_whole_recipe(photos: Path) -> None:
    data = Data(str(photos), batch=8, train=Augment.deit(), repeats=3)
    made = stream(data, classes=1000, steps=2)
    for batch in made.batches(0):
        assert batch.images.shape == (8, 3, 224, 224)
        assert torch.isfinite(batch.images).all()
        assert 0.5 < batch.images.std() < 2
        assert batch.targets is not None
        assert torch.allclose(batch.targets.sum(1), torch.ones(8))
