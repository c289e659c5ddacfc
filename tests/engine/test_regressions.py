"""Rare orders of events, each forced once: a folder half lost, a kill between two files, a save that fails, a verdict that is late.

Runs are made in this process on a small CNN; a kill is an error that nothing catches, raised where the process would have died.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from kdscale.data import open_split
from kdscale.engine import checkpoint, run
from kdscale.engine.agreement import BEHIND, Agreement, Verdict
from kdscale.engine.evaluation import split_batches
from kdscale.engine.faults import NonFinite, SaveFailed, Signals
from kdscale.engine.folder import Folder
from kdscale.engine.loop import Loop
from kdscale.engine.parallel import Session, Wrapped, connect
from kdscale.engine.phase_file import PhaseFile
from kdscale.engine.stage import Stage, build_stage
from kdscale.engine.trained import open_run, trained
from kdscale.engine.upkeep import Upkeep
from kdscale.errors import RecipeError, RunError
from kdscale.methods import KD, Supervised
from kdscale.recipe import (
    AdamW,
    Checkpointing,
    Constant,
    Evaluation,
    FromPhase,
    Model,
    Phase,
    Plateau,
    Recipe,
    override,
    resolve,
)
from kdscale.types import Progress
from tests.engine import small

EPOCH = small.TRAIN // 24  # steps
Patch = pytest.MonkeyPatch


class Killed(BaseException):
    """The end of the process, as far as the engine can tell."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.shards(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def session() -> Session:
    return connect()


def short(data: Path, steps: int = 6, every: int = 2, keep: int = 3, **changes: Any) -> Recipe:
    """A CNN with BatchNorm for a few steps; its only evaluation is that of the end."""
    settings: dict[str, Any] = {
        "networks": {"student": Model("cnn6")},
        "phases": (Phase(Supervised(), steps=steps, name="student", optimizer=AdamW(1e-3), schedule=Constant()),),
        "ema": None,
        "evaluation": Evaluation(every=1000),
        "checkpointing": Checkpointing(every_steps=every, keep=keep),
    }
    return small.recipe(data, **(settings | changes))


def taught(data: Path, **changes: Any) -> Recipe:
    """A teacher's phase of one epoch and two steps, and a student's of three steps."""
    when = changes.pop("at", "end")
    phases = (
        Phase(Supervised(), steps=EPOCH + 2, name="teacher", networks={"student": Model("cnn6")}, optimizer=AdamW(1e-3)),
        Phase(KD(), steps=3, name="student", optimizer=AdamW(1e-3)),
    )
    networks = {"student": Model("cnn6"), "teacher": FromPhase("teacher", at=when, floor=0)}
    return short(data, networks=networks, phases=phases, **changes)


def train(recipe: Recipe, out: Path, session: Session, overwrite: bool = False) -> int:
    return run.train(recipe, out, session, lambda recipe, path: [], overwrite=overwrite)


def killed(recipe: Recipe, out: Path, session: Session, owner: Any, name: str, when: Callable[..., bool]) -> None:
    """A run that ends at the first call of ``owner.name`` for which ``when`` holds."""
    before = getattr(owner, name)

    def instead(*words: Any) -> Any:
        if when(*words):
            raise Killed
        return before(*words)

    with Patch.context() as patch:
        patch.setattr(owner, name, instead)
        with pytest.raises(Killed):
            train(recipe, out, session)


def killed_at_save(recipe: Recipe, out: Path, session: Session, step: int) -> None:
    killed(recipe, out, session, checkpoint, "write", lambda folder, at, save: at == step)


def saved(out: Path) -> list[int]:
    return [checkpoint.step_of(path) for path in checkpoint.all_saves(out / "checkpoints")]


def newest_whole(out: Path) -> int | None:
    path = checkpoint.newest(out / "checkpoints", lambda text: None)
    return None if path is None else checkpoint.step_of(path)


def log(out: Path) -> str:
    return (out / "log.txt").read_text()


def damage(out: Path, step: int) -> None:
    os.truncate(out / "checkpoints" / checkpoint.name_of(step) / "trained.safetensors", 1000)


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name, tensor in a.items() if not torch.equal(tensor, b[name])] == []


# The folder


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
            loop.signals.asked = "SIGTERM"
        before(loop, at, batches)

    patch.setattr(Loop, "step", instead)


def failing(patch: Patch, times: int) -> None:
    """The first ``times`` saves meet a full disk."""
    before, left = checkpoint.write, [times]

    def instead(*words: Any) -> Path:
        left[0] -= 1
        if left[0] >= 0:
            raise OSError(28, "No space left on device")
        return before(*words)

    patch.setattr(checkpoint, "write", instead)


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


def infinite(patch: Patch, steps: range) -> list[tuple[int, dict[str, Tensor], dict[str, Tensor]]]:
    """Losses are infinite in ``steps``; returns a list that will hold (step, state before, state after) of each step."""
    clock, seen = [0], []
    before_step, begin = Loop.step, Stage.begin_step

    def poison(module: nn.Module, words: Any, said: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: loss * float("inf") for name, loss in said.items()} if module.training and clock[0] in steps else said

    def build(*words: Any) -> Stage:
        stage = build_stage(*words)
        stage.distiller.register_forward_hook(poison)
        return stage

    def begin_step(stage: Stage, progress: Progress, history: list[float]) -> float:
        clock[0] = progress.step
        return begin(stage, progress, history)

    def step(loop: Loop, at: int, batches: Any) -> None:
        held = {name: tensor.clone() for name, tensor in loop.stage.distiller.state_dict().items()}
        before_step(loop, at, batches)
        seen.append((at, held, {name: tensor.clone() for name, tensor in loop.stage.distiller.state_dict().items()}))

    patch.setattr(run, "build_stage", build)
    patch.setattr(Stage, "begin_step", begin_step)
    patch.setattr(Loop, "step", step)
    return seen


def test_a_skipped_step_leaves_no_trace_in_the_network(
    data: Path, session: Session, tmp_path: Path, monkeypatch: Patch
) -> None:
    seen = infinite(monkeypatch, range(2, 3))
    assert train(short(data, nonfinite="skip"), tmp_path, session) == 0
    assert "step 2 is skipped: its gradient is not finite (1 skipped so far)" in log(tmp_path)
    assert any("running_var" in name for name in seen[2][1])
    for step, before, after in seen:
        moved = [name for name, tensor in before.items() if not torch.equal(tensor, after[name])]
        assert bool(moved) == (step != 2), (step, moved[:3])
    assert all(tensor.isfinite().all() for tensor in small.weights(tmp_path).values())
    assert [line["step"] for line in small.lines(tmp_path)] == [1, 2, 4, 5, 6]


def test_ten_skipped_steps_in_a_row_end_the_run(data: Path, session: Session, tmp_path: Path, monkeypatch: Patch) -> None:
    infinite(monkeypatch, range(2, 20))
    with pytest.raises(NonFinite, match=r"not finite at step 11 of phase 'student' for the 10th time in a row \(samples \d+, "):
        train(short(data, steps=15, every=1, nonfinite="skip"), tmp_path, session)
    last = checkpoint.newest(tmp_path / "checkpoints", lambda text: None)
    assert last is not None
    assert all(tensor.isfinite().all() for tensor in load_file(last / "trained.safetensors").values())
    assert small.verdict(tmp_path)["code"] == 70


def poisoned_after(patch: Patch, step: int) -> None:
    """The optimizer leaves one number that is none, though the loss and its gradient were finite."""
    before, calls = Wrapped.step, [0]

    def instead(wrapped: Wrapped) -> None:
        before(wrapped)
        calls[0] += 1
        if calls[0] == step:
            with torch.no_grad():
                next(wrapped.module.parameters()).view(-1)[0] = float("nan")

    patch.setattr(Wrapped, "step", instead)


def test_weights_that_are_not_finite_are_never_saved(data: Path, session: Session, tmp_path: Path, monkeypatch: Patch) -> None:
    poisoned_after(monkeypatch, 4)
    with pytest.raises(NonFinite, match="the weights are not finite after step 3 of phase 'student'"):
        train(short(data), tmp_path, session)
    assert saved(tmp_path) == [2]
    assert newest_whole(tmp_path) == 2
    tensors = load_file(tmp_path / "checkpoints" / checkpoint.name_of(2) / "trained.safetensors")
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    assert small.verdict(tmp_path)["code"] == 70


@pytest.mark.parametrize("at", ["best", 1])
def test_weights_that_are_not_finite_are_left_to_no_later_phase(
    at: Any, data: Path, session: Session, tmp_path: Path, monkeypatch: Patch
) -> None:
    poisoned_after(monkeypatch, EPOCH)
    with pytest.raises(NonFinite):
        train(taught(data, at=at, evaluation=Evaluation(every=1)), tmp_path, session)
    assert [path.name for path in (tmp_path / "phases").rglob("*.safetensors")] == []


# Names


def watched(data: Path, best_of: str, metric: str) -> Recipe:
    recipe = short(data, evaluation=Evaluation(best_of=best_of))
    return replace(recipe, phases=(replace(recipe.phases[0], schedule=Plateau(metric=metric)),))


@pytest.mark.parametrize(
    ("best_of", "metric", "said"),
    [
        ("studnet", "student.top1", "evaluation.best_of: phase 'student' has no answer 'studnet'; nearest: student"),
        ("student", "student.top2", "schedule.metric: there is no 'student.top2' to watch; nearest: student.top"),
    ],
)
def test_a_name_to_watch_that_does_not_exist(
    best_of: str, metric: str, said: str, data: Path, session: Session, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError) as refused:
        train(watched(data, best_of, metric), tmp_path, session)
    assert str(refused.value).startswith(said)
    assert "\n" not in str(refused.value)
    assert small.lines(tmp_path) == []


def test_a_name_to_watch_in_a_later_phase_is_judged_before_the_first(data: Path, session: Session, tmp_path: Path) -> None:
    recipe = taught(data, evaluation=Evaluation(best_of="studnet"))
    with pytest.raises(RecipeError, match=r"evaluation\.best_of: .* nearest: student"):
        train(recipe, tmp_path, session)
    assert small.lines(tmp_path) == []


# Ranks


@pytest.mark.ranks
def test_a_validation_image_that_one_rank_cannot_read_ends_both(data: Path, session: Session, tmp_path: Path) -> None:
    """Nothing of rank 0 is wrong: it must be told, and tell it in the words of rank 1, once."""
    broken = tmp_path / "data"
    shutil.copytree(data, broken)
    recipe = short(broken, steps=2)
    held = open_split(recipe.data, "eval")
    first, second = (
        next(iter(split_batches(held, recipe.data, replace(session, rank=rank, size=2)))).index.tolist() for rank in (0, 1)
    )
    sample = second[3]
    assert sample not in first
    record = held.records[sample]
    shard = next((broken / "val").glob("*.tar"))
    content = bytearray(shard.read_bytes())
    content[int(record["offset"]) + int(record["size"]) // 2] ^= 0xFF
    shard.write_bytes(bytes(content))
    path = small.write(tmp_path / "r.json", recipe)
    failed = small.kdscale("train", path, "--out", tmp_path / "out", ranks=2, expect=None)
    assert failed.returncode != 0
    told = [line for line in failed.stderr.splitlines() if line.startswith("kdscale:")]
    assert len(told) == 1, failed.stderr[-3000:]
    assert shard.name in told[0]
    assert f" at {int(record['offset'])}: crc" in told[0]
    assert small.verdict(tmp_path / "out")["code"] == 64


class Event:
    """A place in the device's queue that is reached when ``here`` is set, or when somebody waits for it."""

    def __init__(self, here: bool = False) -> None:
        self.here = here

    def query(self) -> bool:
        return self.here

    def synchronize(self) -> None:
        self.here = True


def note(agreement: Agreement, step: int, bad: bool, here: bool = False) -> Event:
    event = Event(here)
    index = [torch.tensor([10 * step + 1, 10 * step]), torch.tensor([10 * step + 5])]
    agreement._verdicts.append(Verdict(step, torch.tensor(bad), index, event))  # type: ignore[arg-type]
    return event


def test_a_verdict_that_is_late_names_its_own_step(session: Session) -> None:
    agreement = Agreement(session, Signals(), "student")
    events = []
    for step in range(4, 4 + BEHIND):
        events.append(note(agreement, step, bad=step == 5))
        assert agreement.before(None) is None
    assert not any(event.here for event in events)  # nobody waited
    note(agreement, 4 + BEHIND, bad=True)
    assert agreement.before(None) is None  # one too many: the oldest is waited for, and it was good
    assert events[0].here
    events[1].here = True
    with pytest.raises(NonFinite, match=r"at step 5 of phase 'student' \(samples 50, 51, 55\)"):
        agreement.before(None)


def test_settling_waits_for_the_first_bad_step(session: Session) -> None:
    agreement = Agreement(session, Signals(), "student")
    note(agreement, 7, bad=False)
    note(agreement, 8, bad=True)
    with pytest.raises(NonFinite, match=r"at step 8 of phase 'student' \(samples 80, 81, 85\)"):
        agreement.settle()


def test_a_rank_whose_verdict_is_late_still_names_an_earlier_step(session: Session) -> None:
    """The other rank has seen step 5, which is bad everywhere; ours, where step 4 was bad first, has not been heard yet."""

    class Two(Session):
        def most_flags(self, flags: list[bool]) -> list[bool]:
            return [False, False, True]

        def all_of(self, thing: Any) -> list[Any]:
            return [(5, [50]), thing]

    two = Two(session.accelerator, rank=1, size=2, local_size=2, device=session.device)
    agreement = Agreement(two, Signals(), "student")
    note(agreement, 4, bad=True)
    note(agreement, 5, bad=True)
    with pytest.raises(NonFinite, match=r"at step 4 of phase 'student' \(samples 40, 41, 45\)"):
        agreement.before(None)
