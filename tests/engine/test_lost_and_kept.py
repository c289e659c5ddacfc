"""What lies in a run's folder after rare orders of events: half lost, killed between two files, a save that fails."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from kdscale.engine import run
from kdscale.engine.checkpoint import saving
from kdscale.engine.checkpoint.folder import Folder, family
from kdscale.engine.checkpoint.phase_file import PhaseFile
from kdscale.engine.faults.agreement import Agreement
from kdscale.engine.faults.ends import SaveFailed
from kdscale.engine.loop import Loop
from kdscale.engine.parallel import Session
from kdscale.engine.trained import open_run, trained
from kdscale.engine.upkeep import Upkeep
from kdscale.errors import RunError
from kdscale.methods import KD
from kdscale.recipe import (
    Checkpointing,
    Evaluation,
    Model,
    Phase,
    override,
    resolve,
)
from tests.engine import small
from tests.engine.mishaps import (
    EPOCH,
    Patch,
    damage,
    equal,
    killed,
    killed_at_save,
    log,
    newest_whole,
    saved,
    short,
    taught,
    train,
)


def test_overwriting_leaves_the_shards_that_lie_in_the_folder(data: Path, session: Session, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(data, out / "shards")
    before = {path: path.read_bytes() for path in (out / "shards").rglob("*") if path.is_file()}
    train(short(out / "shards", steps=4), out, session)
    train(override(short(out / "shards", steps=2), ["optimizer.lr=0.01"]), out, session, overwrite=True)
    assert saved(out) == [2]
    assert before == {path: path.read_bytes() for path in (out / "shards").rglob("*") if path.is_file()}


def test_overwriting_removes_nothing_where_there_was_no_run(tmp_path: Path, data: Path) -> None:
    """Folders with names of ours, and no recipe: whose they are is not known."""
    for name in ("checkpoints/step-00000009/mine", "export/mine", "shards/mine", "phases/mine", "tracking/mine"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("years of work")
    recipe = resolve(short(data))
    folder = Folder(tmp_path)
    folder.open(recipe, run.run_identity(recipe), overwrite=True)
    folder.lock.release()
    assert len([path for path in tmp_path.rglob("mine") if path.read_text() == "years of work"]) == 5


def forget(out: Path) -> None:
    (out / "recipe.json").unlink()
    (out / "identity.json").unlink()


def test_saves_of_another_recipe_are_not_resumed_where_the_recipe_is_lost(data: Path, session: Session, tmp_path: Path) -> None:
    other = override(short(data), ["optimizer.lr=0.002"])
    train(short(data), tmp_path / "out", session)
    forget(tmp_path / "out")
    train(other, tmp_path / "out", session)
    assert "step-00000006 is a save of another recipe" in log(tmp_path / "out")
    assert "no save is whole: beginning anew" in log(tmp_path / "out")
    assert [line["step"] for line in small.lines(tmp_path / "out")] == list(range(1, 7))
    train(other, tmp_path / "alone", session)
    equal(small.weights(tmp_path / "out"), small.weights(tmp_path / "alone"))


def test_a_run_of_an_older_version_goes_on_without_the_fields_that_it_did_not_know(
    data: Path, session: Session, tmp_path: Path
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    train(short(data), whole, session)
    killed_at_save(short(data), out, session, 6)
    older, first = forget_field(out, "cutout"), (out / "checkpoints" / saving.name_of(2)).stat().st_mtime_ns
    with pytest.raises(RunError, match=r"phases\.0\.data\.train\.cutout was None, is 4"):
        train(override(short(data), ["data.train.cutout=4"]), out, session)
    killed_at_save(short(data), out, session, 6)
    assert json.loads((out / "identity.json").read_text()) == older, "its saves are of this family"
    train(short(data), out, session)
    assert (out / "checkpoints" / saving.name_of(2)).stat().st_mtime_ns == first, "it was not begun anew"
    equal(small.weights(whole), small.weights(out))


def forget_field(out: Path, name: str) -> Any:
    """Makes a run one of a version in which augmentation had no such field; returns its identity."""
    recipe, identity = (json.loads((out / file).read_text()) for file in ("recipe.json", "identity.json"))
    for phase in (*recipe["phases"], *identity["phases"]):
        del phase["data"]["train"][name]
    del recipe["data"]["train"][name]
    for path in (out / "checkpoints").glob("step-*/*.json"):
        facts = json.loads(path.read_text()) | {"family": family(identity)}
        path.write_text(json.dumps({name: told for name, told in facts.items() if name != "sha256"}))
    for file, plain in (("recipe.json", recipe), ("identity.json", identity)):
        (out / file).write_text(json.dumps(plain))
    return identity


def test_saves_of_another_recipe_do_not_crowd_out_the_runs_own(data: Path, session: Session, tmp_path: Path) -> None:
    """They have higher steps, and only so many of the newest are kept."""
    out = tmp_path / "out"
    train(short(data, steps=8), out, session)
    forget(out)
    other = override(short(data, steps=8, keep=1), ["optimizer.lr=0.002"])
    killed_at_save(other, out, session, 6)
    train(other, out, session)
    assert "from step 4" in log(out)


def test_a_start_that_left_nothing_does_not_own_the_folder(data: Path, session: Session, tmp_path: Path) -> None:
    out = tmp_path / "out"
    networks = {"student": Model("cnn6"), "teacher": Model("cnn6", floor=1.0)}
    one = short(data, networks=networks, phases=(Phase(KD(), steps=2, name="student"),))
    with pytest.raises(RunError, match="below its floor of 100"):
        train(one, out, session)
    train(override(short(data, steps=2), ["optimizer.lr=0.01"]), out, session)
    for _ in ("saves and phase files", "phase files alone"):
        with pytest.raises(RunError) as refused:
            train(taught(data), out, session)
        assert str(refused.value) == (
            f"{out} is the run of another recipe: the number of phases was 1, is 2;"
            " set it back, choose another --out, or give --overwrite to begin anew"
        )
        shutil.rmtree(out / "checkpoints", ignore_errors=True)


# Kills


@pytest.mark.parametrize("at", ["best", 1])
def test_killed_between_the_file_of_a_phase_and_the_save(at: Any, data: Path, session: Session, tmp_path: Path) -> None:
    recipe = taught(data, at=at, evaluation=Evaluation(every=1), checkpointing=Checkpointing(every_steps=3))
    out, name = tmp_path / "out", "best" if at == "best" else "epoch-1"
    killed_at_save(recipe, out, session, EPOCH)
    assert PhaseFile(out / "phases" / "01-teacher" / f"{name}.safetensors").step == EPOCH
    assert saved(out) == [3]
    train(recipe, out, session)
    train(recipe, tmp_path / "whole", session)
    for phase in ("01-teacher", "02-student"):
        equal(small.weights(out, phase), small.weights(tmp_path / "whole", phase))
    assert small.losses(out) == small.losses(tmp_path / "whole")


def test_an_extended_run_killed_before_its_end_is_written(data: Path, session: Session, tmp_path: Path) -> None:
    out = tmp_path / "out"
    train(short(data, steps=3), out, session)
    killed(short(data, steps=5), out, session, Upkeep, "finish", lambda upkeep: True)
    assert saved(out)[-1] == 5
    assert trained(open_run(out)).step == 3
    train(short(data, steps=5), out, session)
    found = trained(open_run(out))
    assert found.step == 5
    assert {name: line["step"] for name, line in found.scores.items()} == {"student": 5}
    train(short(data, steps=5), tmp_path / "whole", session)
    equal(small.weights(out), small.weights(tmp_path / "whole"))


def test_a_run_that_is_being_extended_is_exported_with_the_scores_of_what_is_exported(
    data: Path, session: Session, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    train(short(data, steps=3), out, session)
    killed(short(data, steps=5), out, session, Upkeep, "finish", lambda upkeep: True)
    found = trained(open_run(out))
    assert found.step == found.scores["student"]["step"] == 3


def test_a_damaged_save_is_never_the_one_that_is_kept(data: Path, session: Session, tmp_path: Path) -> None:
    out = tmp_path / "out"
    killed_at_save(short(data), out, session, 6)
    damage(out, 4)
    train(short(data, keep=1), out, session)
    assert "from step 2" in log(out)
    assert newest_whole(out) == 6
    assert saved(out) == [6]


def test_saves_that_are_all_damaged_do_not_crowd_out_whole_ones(data: Path, session: Session, tmp_path: Path) -> None:
    out = tmp_path / "out"
    train(short(data, steps=8), out, session)
    for step in saved(out):
        damage(out, step)
    killed_at_save(short(data, steps=8, keep=1), out, session, 6)
    assert newest_whole(out) == 4


def test_two_kills_before_the_first_save_of_a_phase_leave_one_line_a_teacher(
    data: Path, session: Session, tmp_path: Path
) -> None:
    out, recipe = tmp_path / "out", taught(data, every=1000)
    for _ in range(2):
        killed(recipe, out, session, Loop, "step", lambda loop, step, batches: loop.stage.number == 1 and step == 1)
        assert saved(out) == [EPOCH + 2]
    train(recipe, out, session)
    assert [(line["phase"], line["step"]) for line in small.lines(out, "evaluation") if line["name"] == "teacher"] == [
        ("student", 0)
    ]


# Stops and saves that fail


def asked_at(patch: Patch, phase: int, step: int) -> None:
    """A signal arrives while that step computes."""
    before = Loop.step

    def instead(loop: Loop, at: int, batches: Any) -> None:
        if (loop.stage.number, at) == (phase, step):
            loop.signals.ask("SIGTERM")
        before(loop, at, batches)

    patch.setattr(Loop, "step", instead)


def failing(patch: Patch, times: int) -> None:
    """The first ``times`` saves meet a full disk."""
    before, left = saving.write, [times]

    def instead(*words: Any) -> Path:
        left[0] -= 1
        if left[0] >= 0:
            raise OSError(28, "No space left on device")
        return before(*words)

    patch.setattr(saving, "write", instead)


def test_a_stop_saves_again_where_a_save_failed(data: Path, session: Session, tmp_path: Path, monkeypatch: Patch) -> None:
    asked_at(monkeypatch, 0, 3)
    failing(monkeypatch, 2)
    assert train(short(data, every=1000), tmp_path, session) == 75
    assert small.verdict(tmp_path)["code"] == 75
    assert newest_whole(tmp_path) == 3
    assert log(tmp_path).count("could not save at step 3") == 2


def test_a_stop_without_a_save_is_a_fault(data: Path, session: Session, tmp_path: Path, monkeypatch: Patch) -> None:
    asked_at(monkeypatch, 0, 3)
    failing(monkeypatch, 3)
    with pytest.raises(SaveFailed, match=r"3 saves in a row failed .* the last complete save is none"):
        train(short(data, every=1000), tmp_path, session)
    assert small.verdict(tmp_path)["code"] == 70
    assert newest_whole(tmp_path) is None


def test_a_stop_at_the_end_of_a_phase_saves_again_where_its_save_failed(
    data: Path, session: Session, tmp_path: Path, monkeypatch: Patch
) -> None:
    end = EPOCH + 2
    asked_at(monkeypatch, 0, end - 1)
    monkeypatch.setattr(Agreement, "before", lambda agreement, fault: None)  # it came after the ranks agreed to go on
    failing(monkeypatch, 1)
    assert train(taught(data, every=1000), tmp_path, session) == 75
    assert newest_whole(tmp_path) == end


def test_a_run_is_done_with_its_last_save(data: Path, session: Session, tmp_path: Path, monkeypatch: Patch) -> None:
    failing(monkeypatch, 1)
    assert train(short(data, every=1000), tmp_path, session) == 0
    assert newest_whole(tmp_path) == 6


# What is not finite
