"""A save is complete or does not exist, and a damaged one is told by name and passed over."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
from pathlib import Path

import pytest
import torch

from kdscale.engine import checkpoint
from kdscale.engine.checkpoint import Save
from kdscale.errors import RunError


def save_of(value: float) -> Save:
    return Save(
        {"phase": 0, "x": 0.1 + 0.2},
        {"param/a": torch.full((50, 40), value), "exp_avg/a": torch.rand(50, 40)},
        {"buffer/b": torch.arange(3)},
    )


def test_there_and_back(tmp_path: Path) -> None:
    written = save_of(2.0)
    path = checkpoint.write(tmp_path, 7, written)
    read = checkpoint.read(path)
    assert read.facts["x"] == 0.1 + 0.2
    assert all(torch.equal(read.trained[name], t) for name, t in written.trained.items())
    assert torch.equal(read.buffers["buffer/b"], torch.arange(3))
    assert not list(tmp_path.glob(".*"))


def damage_nothing(path: Path) -> None:
    (path / "trained.safetensors").unlink()


def damage_short(path: Path) -> None:
    file = path / "trained.safetensors"
    os.truncate(file, file.stat().st_size - 10)


def damage_bit(path: Path) -> None:
    file = path / "trained.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(bytes(content))


def damage_json(path: Path) -> None:
    (path / "save.json").write_text('{"format": 1, "phase"')


def damage_manifest(path: Path) -> None:
    (path / "save.json").unlink()


@pytest.mark.parametrize("damage", [damage_nothing, damage_short, damage_bit, damage_json, damage_manifest])
def test_a_damaged_save_is_named_and_the_one_before_is_taken(tmp_path: Path, damage) -> None:  # type: ignore[no-untyped-def]
    good, bad = checkpoint.write(tmp_path, 1, save_of(1.0)), checkpoint.write(tmp_path, 2, save_of(2.0))
    damage(bad)
    told: list[str] = []
    assert checkpoint.newest(tmp_path, told.append) == good
    assert len(told) == 1
    assert bad.name in told[0]
    assert "going back to the save before it" in told[0]
    with pytest.raises(RunError):
        checkpoint.read(bad)


def test_a_full_disk_leaves_the_last_save(tmp_path: Path) -> None:
    """The limit on the size of a file stands for a disk without room: the system refuses the write in the same place."""
    first = checkpoint.write(tmp_path, 1, save_of(1.0))

    def fill() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
        try:
            checkpoint.write(tmp_path, 2, save_of(2.0))
        except OSError:
            os._exit(17)
        os._exit(1)

    process = multiprocessing.get_context("fork").Process(target=fill)
    process.start()
    process.join()
    assert process.exitcode == 17
    assert checkpoint.all_saves(tmp_path) == [first]
    checkpoint.read(first)
    assert [p.name for p in tmp_path.iterdir()] == [first.name]


def test_kill_during_a_save(tmp_path: Path) -> None:
    """Killed between the files of a save: the save before it is taken, and the half one is swept."""
    first = checkpoint.write(tmp_path, 1, save_of(1.0))

    def die() -> None:
        original = checkpoint.write_json
        checkpoint.write_json = lambda *a: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
        checkpoint.write(tmp_path, 2, save_of(2.0))
        original(tmp_path / "never", {})

    process = multiprocessing.get_context("fork").Process(target=die)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert list(tmp_path.glob(".tmp-*"))
    assert checkpoint.newest(tmp_path, print) == first
    checkpoint.sweep(tmp_path)
    assert not list(tmp_path.glob(".tmp-*"))


def test_keep_the_newest_and_the_named(tmp_path: Path) -> None:
    for step in range(1, 7):
        checkpoint.write(tmp_path, step, save_of(step))
    checkpoint.keep(tmp_path, 2, {1, 3}, 99)
    assert [checkpoint.step_of(p) for p in checkpoint.all_saves(tmp_path)] == [1, 3, 5, 6]


def test_no_file_of_a_save_is_a_pickle(tmp_path: Path) -> None:
    path = checkpoint.write(tmp_path, 1, save_of(1.0))
    for file in path.iterdir():
        assert file.suffix in (".json", ".safetensors")
        assert file.read_bytes()[:2] not in (b"\x80\x04", b"PK")
