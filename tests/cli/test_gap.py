"""How far a run's student is from whoever taught it, measured again by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from kdscale.data import evaluation_batches, open_split
from kdscale.engine.trained import open_run, trained
from kdscale.recipe.resolve import phase_data
from tests.cli.calling import done, refused
from tests.engine import small


@torch.no_grad()
def by_hand(run: Path) -> float:
    """KL(teacher || student) of the two networks that the run left, over its evaluation split."""
    student, teacher = (trained(open_run(run), what) for what in ("student", "teacher"))
    data = phase_data(student.phase)
    batches = evaluation_batches(open_split(data, "eval"), data, rank=0, ranks=1, device=torch.device("cpu"), workers=0)
    apart = []
    for batch in batches:
        p, q = (found.network(batch.images).logits.double()[batch.valid].log_softmax(-1) for found in (teacher, student))
        apart += (p.exp() * (p - q)).sum(-1).tolist()
    assert len(apart) == small.VAL
    return sum(apart) / len(apart)


def test_the_gap_of_a_run_to_its_teacher_and_its_shadow(run: Path) -> None:
    found = json.loads(done("evaluate", run, "--gap", "--json"))
    assert found["of"] == "student"
    assert set(found["gaps"]) >= {"teacher", "shadow"}
    assert "student" not in found["gaps"]
    assert found["gaps"]["teacher"] == pytest.approx(by_hand(run), rel=1e-4)
    assert found["gaps"]["shadow"] > 0
    plain = json.loads(done("evaluate", run, "--json"))
    assert {name: found[name] for name in plain if name != "loss"} == {n: v for n, v in plain.items() if n != "loss"}
    assert found["loss"] == pytest.approx(plain["loss"], rel=1e-5)
    told = done("evaluate", run, "--gap").splitlines()
    assert told[0] == done("evaluate", run).rstrip("\n")
    assert f"gap {found['gaps']['shadow']:.4f} (KL(shadow || student), temperature 1)" in told[1:]


def test_the_gap_on_other_images(run: Path) -> None:
    here, there = (json.loads(done("evaluate", run, "--gap", "--json", "--split", split)) for split in ("val", "train"))
    assert (here["count"], there["count"]) == (small.VAL, small.TRAIN)
    assert here["gaps"] != there["gaps"]


def test_where_there_is_no_gap(run: Path) -> None:
    assert "is no run, so it has no teacher" in refused("evaluate", "cnn6", "--gap")
    assert "nobody but the student answers" in refused("evaluate", run, "--gap", "--what", "teacher")
    assert "'ema' is not that: give --what a phase's name" in refused("evaluate", run, "--gap", "--what", "ema")
