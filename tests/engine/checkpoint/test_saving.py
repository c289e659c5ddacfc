"""A save is complete or does not exist, and a damaged one is told by name and passed over."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from kdscale.engine.checkpoint import saving
from kdscale.engine.checkpoint.files import sha256
from kdscale.engine.checkpoint.saving import Save
from kdscale.engine.checkpoint.slices import cut, joined, places, taken
from kdscale.engine.parallel import Session
from kdscale.errors import RunError
from tests.engine import small
from tests.engine.mishaps import Patch, equal, killed_at_save, saved, short, train


def save_of(value: float) -> Save:
    return Save(
        {"phase": 0, "x": 0.1 + 0.2},
        {"param/a": torch.full((50, 40), value), "exp_avg/a": torch.rand(50, 40)},
        {"buffer/b": torch.arange(3)},
    )


def test_there_and_back(tmp_path: Path) -> None:
    written = save_of(2.0)
    path = saving.write(tmp_path, 7, written)
    read = saving.read(path)
    assert read.facts["x"] == 0.1 + 0.2
    assert all(torch.equal(read.trained[name], t) for name, t in written.trained.items())
    assert torch.equal(read.buffers["buffer/b"], torch.arange(3))
    assert not list(tmp_path.glob(".*"))


def damage_nothing(path: Path) -> None:
    """A file is not there."""
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


def damage_number(path: Path) -> None:
    """A flipped bit that leaves good JSON: 0.3 has become another number."""
    text = (path / "save.json").read_text()
    (path / "save.json").write_text(text.replace("0.30000000000000004", "0.20000000000000004"))


DAMAGES = [damage_nothing, damage_short, damage_bit, damage_json, damage_manifest, damage_number]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_save_is_named_and_the_one_before_is_taken(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    good, bad = saving.write(tmp_path, 1, save_of(1.0)), saving.write(tmp_path, 2, save_of(2.0))
    damage(bad)
    told: list[str] = []
    assert saving.newest(tmp_path, told.append) == good
    assert len(told) == 1
    assert bad.name in told[0]
    assert "going back to the save before it" in told[0]
    with pytest.raises(RunError):
        saving.read(bad)


def test_a_full_disk_leaves_the_last_save(tmp_path: Path) -> None:
    """The limit on the size of a file stands for a disk without room: the system refuses the write in the same place."""
    first = saving.write(tmp_path, 1, save_of(1.0))

    def fill() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
        try:
            saving.write(tmp_path, 2, save_of(2.0))
        except OSError:
            os._exit(17)
        os._exit(1)

    process = multiprocessing.get_context("fork").Process(target=fill)
    process.start()
    process.join()
    assert process.exitcode == 17
    assert saving.all_saves(tmp_path) == [first]
    saving.read(first)
    assert [p.name for p in tmp_path.iterdir()] == [first.name]


def test_kill_during_a_save(tmp_path: Path) -> None:
    """Killed between the files of a save: the save before it is taken, and the half one is swept."""
    first = saving.write(tmp_path, 1, save_of(1.0))

    def die() -> None:
        original = saving.write_json
        saving.write_json = lambda *a: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
        saving.write(tmp_path, 2, save_of(2.0))
        original(tmp_path / "never", {})

    process = multiprocessing.get_context("fork").Process(target=die)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert list(tmp_path.glob(".tmp-*"))
    assert saving.newest(tmp_path, print) == first
    saving.sweep(tmp_path)
    assert not list(tmp_path.glob(".tmp-*"))


def test_a_step_that_is_saved_again_is_never_without_a_save(tmp_path: Path) -> None:
    """Killed between the two renames, where neither the old nor the new one has the name."""
    first = saving.write(tmp_path, 1, save_of(1.0))

    def die() -> None:
        rename = os.rename

        def instead(source: Path, target: Path) -> None:
            if target == first:
                os.kill(os.getpid(), signal.SIGKILL)
            rename(source, target)

        saving.os.rename = instead  # type: ignore[assignment]
        saving.write(tmp_path, 1, save_of(2.0))

    process = multiprocessing.get_context("fork").Process(target=die)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert saving.all_saves(tmp_path) == []
    saving.sweep(tmp_path)
    assert torch.equal(saving.read(first).trained["param/a"], save_of(1.0).trained["param/a"])
    saving.write(tmp_path, 1, save_of(2.0))
    assert torch.equal(saving.read(first).trained["param/a"], save_of(2.0).trained["param/a"])
    assert [p.name for p in tmp_path.iterdir()] == [first.name]


def test_a_machine_that_sees_a_save_late_waits_for_it(tmp_path: Path, monkeypatch: Patch) -> None:
    elsewhere = saving.write(tmp_path / "elsewhere", 7, save_of(2.0))
    seal, late = saving.read_facts(elsewhere)["sha256"], tmp_path / "here" / elsewhere.name
    shown = threading.Timer(0.3, lambda: shutil.copytree(elsewhere, late))
    shown.start()
    assert saving.read_on(late, seal).facts["x"] == 0.1 + 0.2
    monkeypatch.setattr(saving, "LATE", 0.2)
    with pytest.raises(RunError, match="another save here than on rank 0") as told:
        saving.read_on(late, "of another")
    assert told.value.code == 70
    with pytest.raises(RunError, match=r"no save\.json"):
        saving.read_on(tmp_path / "never", seal)


def test_keep_the_newest_and_the_named(tmp_path: Path) -> None:
    for step in range(1, 7):
        saving.write(tmp_path, step, save_of(step))
    saving.keep(tmp_path, 2, {1, 3}, 99)
    assert [saving.step_of(p) for p in saving.all_saves(tmp_path)] == [1, 3, 5, 6]


def test_no_file_of_a_save_is_a_pickle(tmp_path: Path) -> None:
    path = saving.write(tmp_path, 1, save_of(1.0))
    for file in path.iterdir():
        assert file.suffix in (".json", ".safetensors")
        assert file.read_bytes()[:2] not in (b"\x80\x04", b"PK")


# Large parts


SIZES = {
    "param/long": torch.rand(50, 40),
    "param/short": torch.rand(3, 40),
    "param/row": torch.rand(1, 2000),
    "step/a": torch.tensor(7.0),
    "param/none": torch.zeros(0, 5),
    "param/half": torch.rand(31).bfloat16(),
    "param/turned": torch.rand(8, 6, 3, 3).contiguous(memory_format=torch.channels_last),
}


def test_a_part_above_the_limit_is_cut_by_rows(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(saving, "FILE_LIMIT", 3000)
    path = saving.write(tmp_path, 7, Save({"x": 1}, dict(SIZES), {"buffer/b": torch.arange(3)}))
    facts = json.loads((path / "save.json").read_text())
    assert facts["format"] == 2
    files = sorted(path.glob("trained-*"))
    assert [file.name for file in files] == [f"trained-{n:05d}-of-{len(files):05d}.safetensors" for n in range(len(files))]
    for file in files:
        held = load_file(file)
        assert sum(t.nbytes for t in held.values()) <= 3000 or list(held) == ["param/row"], "a row is never cut"
    place = facts["rows"]["trained"]["param/long"]
    assert place["shape"] == [50, 40]
    assert list(place["rows"].values()) == [[0, 18], [18, 36], [36, 50]]
    assert (path / "buffers.safetensors").exists(), "a small part is one file as ever"
    monkeypatch.undo()
    read = saving.read(path)
    equal(read.trained, SIZES)
    assert torch.equal(read.buffers["buffer/b"], torch.arange(3))


SHAPES = st.lists(st.lists(st.integers(0, 7), max_size=3).map(tuple), min_size=1, max_size=6)


@given(SHAPES, st.integers(1, 200))
def test_whatever_is_cut_can_be_joined(shapes: list[tuple[int, ...]], limit: int) -> None:
    tensors = {f"t{n}": torch.rand(shape) for n, shape in enumerate(shapes)}
    held = {str(n): rows for n, rows in enumerate(cut(tensors, limit))}
    for rows in held.values():
        sizes = [taken(tensors[name], r).nbytes for name, r in rows.items()]
        assert sum(sizes) <= limit or sum(size > 0 for size in sizes) == 1, "a row is never cut"
    content = [(file, {name: taken(tensors[name], r) for name, r in rows.items()}) for file, rows in held.items()]
    equal(joined(content, places(tensors, held)), tensors)
    lost = [(file, pieces) for file, pieces in content if "t0" not in pieces]
    with pytest.raises(RunError, match="'t0'"):
        joined(lost, places(tensors, held))


@pytest.mark.parametrize("damage", [damage_short, damage_bit, damage_nothing])
def test_each_file_of_a_large_part_is_proved(tmp_path: Path, monkeypatch: Patch, damage: Callable[[Path], None]) -> None:
    monkeypatch.setattr(saving, "FILE_LIMIT", 3000)
    good, bad = saving.write(tmp_path, 1, save_of(1.0)), saving.write(tmp_path, 2, save_of(2.0))
    last = sorted(bad.glob("trained-*"))[-1]
    whole = bad / "trained.safetensors"
    last.rename(whole)
    damage(bad)
    if whole.exists():
        whole.rename(last)
    told: list[str] = []
    assert saving.newest(tmp_path, told.append) == good
    assert last.name in told[0]


def test_a_run_whose_saves_are_cut_goes_on_to_the_same_bits(
    data: Path, session: Session, tmp_path: Path, monkeypatch: Patch
) -> None:
    train(short(data), tmp_path / "whole", session)
    with Patch.context() as patch:
        patch.setattr(saving, "FILE_LIMIT", 1_000_000)
        killed_at_save(short(data), tmp_path / "out", session, 6)
    assert len(list((tmp_path / "out" / "checkpoints" / saving.name_of(4)).glob("trained-*"))) > 2
    train(short(data), tmp_path / "out", session)
    assert saved(tmp_path / "out") == [2, 4, 6]
    equal(small.weights(tmp_path / "out"), small.weights(tmp_path / "whole"))
    assert small.losses(tmp_path / "out") == small.losses(tmp_path / "whole")


def test_a_save_of_the_first_form_is_read_as_it_stands(tmp_path: Path) -> None:
    """Written by hand as version 0.1 did: one file a part, no seal on save.json."""
    path, tensors = tmp_path / saving.name_of(3), {"param/a": torch.rand(5, 4), "exp_avg/a": torch.rand(5, 4)}
    path.mkdir()
    save_file(tensors, path / "trained.safetensors")
    file = path / "trained.safetensors"
    described = {"size": file.stat().st_size, "sha256": sha256(file), "tensors": 2}
    (path / "save.json").write_text(json.dumps({"format": 1, "phase": 0, "files": {file.name: described}}, indent=1))
    assert saving.newest(tmp_path, print) == path
    read = saving.read(path)
    equal(read.trained, tensors)
    assert read.buffers == read.statistics == {}


def test_a_small_save_has_the_first_form(tmp_path: Path) -> None:
    """Any version reads it."""
    path = saving.write(tmp_path, 1, save_of(1.0))
    assert json.loads((path / "save.json").read_text())["format"] == 1
    assert {p.name for p in path.iterdir()} == {"save.json", "trained.safetensors", "buffers.safetensors"}
