"""What can be asked before a run, and of one that is finished."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

from kdscale.data import pack_arrays
from kdscale.engine.trained import open_run, trained
from kdscale.methods import Supervised
from kdscale.recipe import Model
from tests.cli.calling import done, kdscale, refused
from tests.engine import small


def test_check_proves_a_recipe_and_leaves_nothing(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    told = done("check", recipe)
    assert "teacher cnn6: top1 " in told
    assert "images/s: 22 steps take about" in told
    assert "the whole run: about" in told
    assert list(tmp_path.iterdir()) == []


def test_check_of_two_phases_times_the_second_without_its_teacher(data: Path, tmp_path: Path) -> None:
    told = done("check", small.write(tmp_path / "two.json", small.two_phases(data)))
    assert "phase teacher: " in told
    assert "phase student: " in told


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("machine.accumulate=5", ["nearest that fit: 20, 25"]),
        ("networks.teacher.floor=0.99", ["below its floor of 99.00", "networks.teacher.floor=0"]),
        ("networks.teacher=timm/resnet18.a1_in1k", ["for 1000 classes", "data have 4"]),
        ("networks.teacher=nowhere/export", ["'nowhere/export'"]),
        ("data.source=nowhere", ["nowhere"]),
        ("optimizer={kind: sgd, lr: 1e20}", ["not finite"]),
    ],
)
def test_check_refuses_what_a_run_would_end_with(recipe: Path, assignment: str, words: list[str]) -> None:
    line = refused("check", recipe, assignment, "schedule={kind: constant}")
    assert all(word in line for word in words), line


def test_evaluate_counts_every_image_of_a_run(run: Path, data: Path) -> None:
    assert f"{run} on {data} (val): top1 " in done("evaluate", run)
    assert f"of {small.VAL} images (crop 1)" in done("evaluate", run)
    found = json.loads(done("evaluate", run, "--json"))
    last = [line for line in small.lines(run, "evaluation") if line["name"] == "student"][-1]
    assert found["count"] == last["count"] == small.VAL
    assert found["top1"] == pytest.approx(last["top1"], abs=1e-9)
    assert json.loads(done("evaluate", run, "--json", "--split", "train"))["count"] == small.TRAIN


def test_evaluate_names_the_part_that_is_not_the_student(run: Path) -> None:
    assert f"{run} (teacher) on" in done("evaluate", run, "--what", "teacher")
    ema = json.loads(done("evaluate", run, "--what", "ema", "--json"))
    last = [line for line in small.lines(run, "evaluation") if line["name"] == "ema"][-1]
    assert ema["top1"] == pytest.approx(last["top1"], abs=1e-9)


def test_evaluate_a_model_by_name(data: Path) -> None:
    assert "cnn6" in refused("evaluate", "cnn66", "--data", data)
    assert "'none'" in refused("evaluate", "cnn6", "--data", data, "--weights", "none")
    assert "for 1000 classes and the data have 4" in refused("evaluate", "timm/resnet18.a1_in1k", "--data", data)


def test_evaluate_an_architecture_alone_needs_a_word(data: Path) -> None:
    line = refused("evaluate", "cnn6", "--data", data)
    assert "'cnn6' names an architecture without weights: give --weights pretrained, random or a safetensors file" in line
    assert "top1" in done("evaluate", "cnn6", "--data", data, "--weights", "random")


def test_evaluate_a_folder_of_runs_names_them(run: Path) -> None:
    assert f"it is the folder of several runs, give them: {run}" in refused("evaluate", run.parent)


def test_evaluate_on_classes_of_other_names(run: Path, tmp_path: Path) -> None:
    """The same four, in another order: a score would say nothing."""
    images = np.zeros((8, small.SIDE, small.SIDE, 3), np.uint8)
    pack_arrays(images, np.arange(8) % 4, str(tmp_path), split="val", name="tiny", names=tuple("dcba"))
    for words in ((), ("--gap",)):
        assert "class 0 is 'a' to the weights of" in refused("evaluate", run, "--data", tmp_path, *words)


def test_evaluate_weights_from_a_file_as_the_run_did(run: Path, data: Path, tmp_path: Path) -> None:
    """A CIFAR network sees the images at their own size."""
    save_file(trained(open_run(run), "teacher").network.body.state_dict(), tmp_path / "w.safetensors")
    by_file, by_run = (
        json.loads(done("evaluate", *words, "--json"))
        for words in (
            ["cnn6", "--data", data, "--weights", tmp_path / "w.safetensors", "--crop", "1"],
            [run, "--what", "teacher"],
        )
    )
    assert by_file["top1"] == by_run["top1"]
    assert by_file["loss"] == pytest.approx(by_run["loss"], rel=1e-4)


def test_evaluate_what_is_not_there(run: Path, data: Path) -> None:
    assert "--data" in refused("evaluate", "nowhere")
    assert "'nowhere'" in refused("evaluate", "nowhere", "--data", data)
    assert "nowhere" in refused("evaluate", run, "--data", "nowhere")
    assert "train, val" in refused("evaluate", run, "--split", "test")
    line = refused("evaluate", run, "--what", "techer")
    assert "nearest: teacher" in line


def test_a_run_that_is_not_finished_has_nothing_to_give(data: Path, tmp_path: Path) -> None:
    file = small.write(tmp_path / "r.json", small.recipe(data, networks={"student": Model("cnn6"), "teacher": Model("cnn6")}))
    refused("train", file, "networks.teacher.floor=0.99", "--out", tmp_path / "out")
    for command in ("evaluate", "export"):
        assert "is not finished" in refused(command, tmp_path / "out")


@pytest.mark.slow
def test_an_export_is_evaluated_and_listed_for_publishing(run: Path, data: Path, tmp_path: Path) -> None:
    told = done("export", run, tmp_path / "export")
    assert "logits in fresh processes differ by: timm " in told
    run_score, own_score = (
        json.loads(done("evaluate", place, "--data", data, "--json")) for place in (run, tmp_path / "export")
    )
    assert own_score["top1"] == run_score["top1"]
    listed = done("publish", tmp_path / "export", "--repo", "org/name", "--dry-run")
    assert "model.safetensors" in listed
    assert "dry run: nothing was sent" in listed
    assert "org/name" in listed


def test_export_of_what_is_not_there(run: Path, data: Path, tmp_path: Path) -> None:
    assert "is not there" in refused("export", tmp_path / "nowhere")
    assert "is no run" in refused("export", data)
    assert "nearest: teacher" in refused("export", run, "--what", "techer")
    assert "is a file" in refused("export", run, __file__)
    assert "is no export" in refused("export", run, data)


def test_publish_of_what_is_no_export(data: Path, tmp_path: Path) -> None:
    assert "is no folder" in refused("publish", tmp_path / "nowhere", "--repo", "org/name", "--dry-run")
    assert "has no config.json" in refused("publish", data, "--repo", "org/name", "--dry-run")
    assert "ORG/NAME" in refused("publish", data, "--repo", "name", "--dry-run")


def test_bench_step_gives_a_ratio(data: Path, tmp_path: Path) -> None:
    base = small.recipe(data, networks={"student": Model("cnn6")}, ema=None).with_method(Supervised())
    said = kdscale("bench", "step", small.write(tmp_path / "r.json", base), "--pairs", "3")
    assert said.code == 0, said
    assert "ratio engine / by hand: median " in said.out


def test_as_a_module_it_is_the_same_program(recipe: Path) -> None:
    words = [sys.executable, "-m", "kdscale", "train", str(recipe), "epoch=3", "--out", "never"]
    told = subprocess.run(words, capture_output=True, text=True, check=False)
    assert told.returncode == 64
    assert told.stderr == "kdscale: there is no field 'epoch'; nearest: epochs\n"
    assert told.stdout == ""
