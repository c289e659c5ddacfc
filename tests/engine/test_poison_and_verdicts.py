"""Steps that go wrong: not finite, watched under a wrong name, unreadable on one rank, judged late."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from kdscale.data import open_split
from kdscale.engine import run
from kdscale.engine.checkpoint import saving
from kdscale.engine.evaluation import split_batches
from kdscale.engine.faults.agreement import BEHIND, Agreement, Verdict
from kdscale.engine.faults.ends import NonFinite
from kdscale.engine.faults.signals import Signals
from kdscale.engine.loop import Loop
from kdscale.engine.parallel import Session, Wrapped
from kdscale.engine.stage import Stage, build_stage
from kdscale.errors import RecipeError
from kdscale.recipe import (
    Evaluation,
    Plateau,
    Recipe,
)
from kdscale.types import Progress
from tests.engine import small
from tests.engine.mishaps import EPOCH, Patch, log, newest_whole, saved, short, taught, train


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
    last = saving.newest(tmp_path / "checkpoints", lambda text: None)
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
    tensors = load_file(tmp_path / "checkpoints" / saving.name_of(2) / "trained.safetensors")
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
