"""Saves are written while training goes on: the same saves, the same bits, and none lost by a kill, a signal or a full disk."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from kdscale.engine import upkeep
from kdscale.engine.checkpoint import saving
from kdscale.engine.checkpoint.folder import Folder
from kdscale.engine.checkpoint.saving import Save
from kdscale.engine.faults.ends import SaveFailed
from kdscale.engine.keeper import Memory, collect
from kdscale.engine.loop import Loop
from kdscale.engine.meter import Meter
from kdscale.engine.parallel import Session
from kdscale.engine.reporter import Silent
from kdscale.engine.stage import build_stage
from kdscale.engine.upkeep import Upkeep
from kdscale.engine.writer import Writer
from kdscale.recipe import resolve
from tests.engine import small
from tests.engine.mishaps import Patch, equal, killed, log, newest_whole, saved, short, train


class Said(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


class Gate:
    """The thread that writes stands before the save of ``step`` until the gate is open."""

    def __init__(self, patch: Patch, step: int) -> None:
        self.reached, self.open = threading.Event(), threading.Event()
        before = saving.write

        def instead(folder: Path, at: int, save: Save) -> Path:
            if at == step:
                self.reached.set()
                assert self.open.wait(30)
            return before(folder, at, save)

        patch.setattr(saving, "write", instead)

    def open_soon(self) -> None:
        threading.Timer(0.1, self.open.set).start()


def at_step(patch: Patch, step: int, do: Any) -> None:
    """Calls ``do`` before that step computes."""
    before = Loop.step

    def instead(loop: Loop, at: int, batches: Any) -> None:
        if at == step:
            do()
        before(loop, at, batches)

    patch.setattr(Loop, "step", instead)


def save_of(step: int, value: float = 1.0) -> Save:
    memory = Memory(step=step, global_step=step)
    return Save({"memory": memory.__dict__, "phase": 0}, {"param/a": torch.full((300, 400), value)})


# Behind training


def test_what_collect_gives_is_nobody_elses(data: Path, session: Session) -> None:
    """Training goes on writing to parameters, buffers, moments and averages while a save of them is written."""
    stage = build_stage(resolve(small.recipe(data)), 0, session, None)
    stage.distiller.train()
    batch = next(stage.stream().batches(0))
    stage.begin_step(stage.progress(0), [])
    stage.wrapped.accumulate(batch, stage.teach(batch, stage.progress(0)), 1.0, last=True)
    stage.wrapped.update(None)
    assert stage.ema is not None
    state = (kept for entries in stage.wrapped.optimizer.state.values() for kept in entries.values())
    live = (*stage.distiller.parameters(), *stage.distiller.buffers(), *stage.ema.average.values(), *state)
    places = {t.untyped_storage().data_ptr() for t in live if isinstance(t, torch.Tensor)}
    save = collect(stage, Memory(), Meter(session))
    held = save.trained | save.buffers | save.statistics
    assert any(name.startswith("exp_avg/") for name in held)
    assert [name for name, tensor in held.items() if tensor.untyped_storage().data_ptr() in places] == []


def test_training_goes_on_beside_a_write_and_the_saves_are_the_same(
    data: Path, session: Session, tmp_path: Path, monkeypatch: Patch
) -> None:
    recipe = short(data, steps=8, every=4)
    train(recipe, tmp_path / "whole", session)
    gate = Gate(monkeypatch, 4)
    at_step(monkeypatch, 6, lambda: (gate.reached.wait(30), gate.open.set()))
    assert train(recipe, tmp_path / "out", session) == 0
    assert gate.open.is_set(), "step 7 was taken while the save of step 4 was not written"
    for step in (4, 8):
        mine, theirs = (saving.read(tmp_path / n / "checkpoints" / saving.name_of(step)) for n in ("out", "whole"))
        equal(mine.trained | mine.buffers, theirs.trained | theirs.buffers)
        told = [{**save.facts["memory"], "seconds": 0, "history": 0} for save in (mine, theirs)]
        assert told[0] == told[1], "what a run remembers is that of the save's own step"


def test_no_save_is_left_out_where_the_one_before_takes_long(
    data: Path, session: Session, tmp_path: Path, monkeypatch: Patch
) -> None:
    gate, before = Gate(monkeypatch, 2), Upkeep.settle

    def settle(upkeep: Upkeep, wait: bool) -> None:
        if wait and upkeep.saving:
            gate.open_soon()
        before(upkeep, wait)

    monkeypatch.setattr(Upkeep, "settle", settle)
    monkeypatch.setattr(upkeep, "WORTH_TELLING", 0.05)
    assert train(short(data), tmp_path, session) == 0
    assert saved(tmp_path) == [2, 4, 6]
    assert "for the save of step 2: the disk is slower than the saves come" in log(tmp_path)


def test_whatever_ends_a_run_the_save_under_way_is_finished(
    data: Path, session: Session, tmp_path: Path, monkeypatch: Patch
) -> None:
    gate = Gate(monkeypatch, 4)

    def now(loop: Loop, step: int, batches: Any) -> bool:
        if step == 5:
            gate.open_soon()
        return step == 5

    killed(short(data), tmp_path, session, Loop, "step", now)
    assert saved(tmp_path) == [2, 4]
    assert not (tmp_path / "lock").exists()
    assert saving.unfinished(tmp_path / "checkpoints") == []


# Failures


@contextmanager
def disk(place: Path, size: str) -> Iterator[Path]:
    """A file system of its own with ``size`` of room."""
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("a file system can only be mounted by root: the limit on a file's size stands for it elsewhere")
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def fill(place: Path) -> Path:
    ballast = place / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    return ballast


def test_a_full_disk_costs_the_saves_that_did_not_fit_and_no_other(tmp_path: Path) -> None:
    with disk(tmp_path / "disk", "1m") as place:
        said = Said()
        writer = Writer(Folder(place), 3, said)
        writer.begin(save_of(1))
        _, last = writer.outcome(None, wait=True)
        assert last is not None
        ballast = fill(place)
        writer.begin(save_of(2))
        assert writer.outcome(last, wait=True) == (False, last)
        assert len(said.lines) == 1
        assert said.lines[0].startswith("could not save at step 2: ")
        assert "No space left" in said.lines[0]
        assert "\n" not in said.lines[0]
        assert [path.name for path in (place / "checkpoints").iterdir()] == [last.name]
        ballast.unlink()
        writer.begin(save_of(3))
        assert writer.outcome(last, wait=True) == (False, place / "checkpoints" / saving.name_of(3))
        assert saving.newest(place / "checkpoints", said.say) == place / "checkpoints" / saving.name_of(3)
        writer.close()


def test_a_run_goes_on_past_a_disk_that_is_full_for_a_while(
    data: Path, session: Session, tmp_path: Path, monkeypatch: Patch
) -> None:
    recipe = short(data, steps=8, keep=1)
    with disk(tmp_path / "disk", "12m") as place:
        at_step(monkeypatch, 3, lambda: fill(place))
        at_step(monkeypatch, 6, lambda: (place / "ballast").unlink())
        assert train(recipe, place / "out", session) == 0
        assert "could not save at step 4" in log(place / "out")
        assert saved(place / "out") == [8]
        shutil.copytree(place / "out", tmp_path / "out", symlinks=True)
    monkeypatch.undo()
    train(recipe, tmp_path / "whole", session)
    equal(small.weights(tmp_path / "out"), small.weights(tmp_path / "whole"))


def test_a_failure_is_told_at_the_next_line_and_the_third_ends_the_run(
    data: Path, session: Session, tmp_path: Path, monkeypatch: Patch
) -> None:
    """The limit on a file's size stands for a disk without room, as the system refuses the write in the same place."""
    train(short(data, steps=1, every=1), tmp_path, session)
    former, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, former[1]))
    try:
        with pytest.raises(
            SaveFailed, match=r"3 saves in a row failed .*File too large.* complete save is .*step-00000001: make"
        ):
            train(short(data, steps=20, every=1), tmp_path, session)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
        signal.signal(signal.SIGXFSZ, ignored)
    assert [f"could not save at step {step}: " in log(tmp_path) for step in (2, 3, 4, 5)] == [True, True, True, False]
    assert small.verdict(tmp_path)["code"] == 70
    assert saved(tmp_path) == [1]
    assert saving.unfinished(tmp_path / "checkpoints") == []


# Signals and kills


def test_a_signal_during_a_save_ends_the_run_with_a_save_of_its_last_step(
    data: Path, session: Session, tmp_path: Path, monkeypatch: Patch
) -> None:
    before = saving.write_json

    def instead(path: Path, plain: Any) -> None:
        if saving.name_of(2) in path.parent.name:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.2)
        before(path, plain)

    monkeypatch.setattr(saving, "write_json", instead)
    assert train(short(data, steps=40, every=2), tmp_path, session) == 75
    assert small.verdict(tmp_path)["code"] == 75
    stopped = small.lines(tmp_path)[-1]["step"]
    assert newest_whole(tmp_path) == stopped < 40
    assert 2 in saved(tmp_path)


def test_a_process_killed_in_the_middle_of_a_write(tmp_path: Path) -> None:
    """The thread has written the tensors and not yet what makes them a save; the process dies at once."""
    first = saving.write(tmp_path / "checkpoints", 1, save_of(1))
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        saving.write_json = lambda path, plain: (os.write(writing, b"here"), time.sleep(60))  # type: ignore[assignment,func-returns-value]
        Writer(Folder(tmp_path), 3, Silent()).begin(save_of(2, 2.0))
        time.sleep(60)
        os._exit(0)
    assert os.read(reading, 4) == b"here"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    left = saving.unfinished(tmp_path / "checkpoints")
    assert [path.name for folder in left for path in folder.iterdir()] == ["trained.safetensors"]
    assert saving.newest(tmp_path / "checkpoints", print) == first
    saving.sweep(tmp_path / "checkpoints")
    assert saving.unfinished(tmp_path / "checkpoints") == []
