"""``kdscale teach``, and a run that learns from its store, as a user types them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from kdscale.methods import KD
from kdscale.recipe import Model, Phase, override
from tests.cli.calling import done, kdscale, refused
from tests.cli.test_help import test_help_says_what_a_command_does_and_imports_nothing_heavy as helped
from tests.engine import small


@pytest.fixture(scope="module")
def short(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of eight steps of KD on a small CNN."""
    networks = {"student": Model("cnn6"), "teacher": Model("wrn_16_1", floor=0)}
    recipe = small.recipe(data, networks=networks, phases=(Phase(KD(), steps=8, name="student"),), ema=None)
    folder = tmp_path_factory.mktemp("taught")
    return small.write(folder / "r.json", override(recipe, ["checkpointing.every_steps=100", "evaluation.every=100"]))


@pytest.fixture(scope="module")
def store(short: Path) -> Path:
    done("teach", short, "--out", short.parent / "store", "--type", "fp32")
    return short.parent / "store"


def test_what_is_told_and_left(short: Path, tmp_path: Path) -> None:
    told = done("teach", short, "--out", tmp_path / "s", "--keep", "2", "--epochs", "1")
    assert "teacher wrn_16_1: top1 " in told
    assert "student: teacher: 5 steps of 24 images, 22 bytes an image (2 largest of 4 logits, fp16)" in told
    assert "1 shards to write" in told
    assert f"train with it: kdscale train {short} networks.teacher=stored:{tmp_path / 's'}" in told
    assert {p.name for p in tmp_path.rglob("*") if p.is_file()} == {"00000.npy", "store.json"}
    assert "all is written" in done("teach", short, "--out", tmp_path / "s", "--keep", "2", "--epochs", "1")


def test_a_run_learns_from_the_store_what_it_learns_from_the_network(short: Path, store: Path, tmp_path: Path) -> None:
    word = f"networks.teacher=stored:{store}"
    assert "stored  teacher" in done("show", short, word)
    assert "teacher wrn_16_1, stored in " in done("check", short, word)
    told = done("train", short, word, "--out", tmp_path / "stored")
    assert "(all logits, fp32), top1 " in told
    done("train", short, "--out", tmp_path / "live")
    assert small.losses(tmp_path / "stored") == small.losses(tmp_path / "live")
    assert {line["name"] for line in small.lines(tmp_path / "stored", "evaluation")} == {"student"}

    moved = shutil.move(store, store.with_name("moved"))  # the same store in another place is the same run
    done("train", short, f"networks.teacher=stored:{moved}", "--out", tmp_path / "stored")
    facts = json.loads((moved / "1-teacher" / "store.json").read_text())
    facts["teacher"]["weights"] = "of another teacher"
    (moved / "1-teacher" / "store.json").write_text(json.dumps(facts))
    line = refused("train", short, f"networks.teacher=stored:{moved}", "--out", tmp_path / "stored")
    assert "is the run of another recipe: phases.0.networks.teacher.name was" in line
    facts["teacher"]["weights"] = None
    (moved / "1-teacher" / "store.json").write_text(json.dumps(facts))
    shutil.move(moved, store)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["seed=5"], ["seed was 0, is 5", "set it back, or teach anew"]),
        (["data.batch=12"], ["data.batch was 24, is 12"]),
        (["steps=9"], ["is stored for 8 steps (1.6 epochs)", "kdscale teach --epochs"]),
        (["method=at"], ["'at' reads stage", "networks.teacher=NAME"]),
        (["networks.teacher=stored:nowhere"], ["nowhere", "kdscale teach RECIPE --out nowhere"]),
        (["networks.student=stored:nowhere"], ["'kd' trains it"]),
    ],
)
def test_what_does_not_fit_is_one_line(short: Path, store: Path, tmp_path: Path, words: list[str], told: list[str]) -> None:
    line = refused("train", short, f"networks.teacher=stored:{store}", *words, "--out", tmp_path / "out")
    assert all(word in line for word in told), line


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--keep", "0"], ["'0' is none of: all, label", "--keep"]),
        (["--keep", "most"], ["'most'"]),
        (["--keep", "4"], ["4 of 4 classes cannot be kept"]),
        (["--type", "bf16"], ["--type"]),
        (["method=fitnets"], ["'fitnets' reads stage"]),
        (["method=supervised"], ["no phase of this recipe has a frozen network"]),
        (["networks.teacher.floor=0.99"], ["below its floor"]),
    ],
)
def test_misuse_is_one_line(short: Path, tmp_path: Path, words: list[str], told: list[str]) -> None:
    line = refused("teach", short, *words, "--out", tmp_path / "out")
    assert all(word in line for word in told), line
    assert not list((tmp_path / "out").rglob("*.npy"))


def test_two_commands_do_not_write_one_store(short: Path, tmp_path: Path) -> None:
    from kdscale.engine.checkpoint.lock import Lock

    lock = Lock(tmp_path / "lock")
    lock.take()
    try:
        assert f"{tmp_path} is in use by process" in refused("teach", short, "--out", tmp_path)
    finally:
        lock.release()


def test_help() -> None:
    helped("teach")
    assert kdscale("teach").code == 64
