"""``kdscale plan``: a forecast of what is elsewhere, and one line for what cannot be planned."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kdscale.methods import Shake
from kdscale.recipe import Augment, Data, Model, Phase, Recipe, to_json
from tests.cli.calling import done, refused


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    value = Recipe(
        {"student": Model("resnet8"), "teacher": Model("resnet14")},
        Data("elsewhere", batch=64, train=Augment.cifar()),
        (Phase(Shake(), epochs=10, name="only"),),
        name="mine",
    )
    path = tmp_path / "mine.json"
    path.write_text(to_json(value))
    return path


def test_a_plan_of_data_and_machines_that_are_elsewhere(recipe: Path, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    words = ["--samples", "64000", "--classes", "20", "--nodes", "2", "--gpus-per-node", "4", "--gpu", "a100", "--price", "2"]
    said = done("plan", recipe, *words, "--cores", "32", "--json", file)
    assert said.startswith("mine: 2 x 4 a100, ddp, fp32\n")
    rows = {line.split("  ")[1].strip(): line for line in said.splitlines() if line.startswith("  ")}
    assert "10,000 of 64 images" in rows["steps"]
    assert rows["steps"].endswith("given")
    assert rows["samples a rank"].split() == ["samples", "a", "rank", "80,000,", "8", "a", "micro-batch", "given"]
    assert rows["cores a node for data"].split()[5:] == ["32", "given", "--cores"]
    assert rows["memory of a GPU, GB"].endswith("80      vendor   --gpu")
    written = json.loads(file.read_text())
    assert written["recipe"] == "mine"
    assert written["cost"] == pytest.approx(2 * 8 * written["hours"])
    assert written["tables"]["the whole run"][0]["what"] == "time"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--gpu", "h20"], "there is no GPU 'h20'"),
        (["--nodes", "0"], "--nodes"),
        (["--gpus-per-node", "3", "--samples", "640", "--classes", "2"], "global batch 64 is not divisible by ranks 3"),
        ([], "'elsewhere' are not here and no published set has that name: give --samples and --classes"),
        (["--samples", "640", "--classes", "2", "machine.parallel=zero9"], "machine.parallel"),
        (["networks.student=resnet9", "--samples", "640", "--classes", "2"], "there is no network 'resnet9'"),
        (["--samples", "640", "--classes", "2", "--probe"], "--probe times steps on this machine's GPU, and there is none"),
    ],
)
def test_what_cannot_be_planned_is_one_line(recipe: Path, words: list[str], told: str) -> None:
    assert told in refused("plan", recipe, *words)


def test_a_recipe_that_is_not_there() -> None:
    assert "there is no recipe 'imagenet/deit_tinyy'" in refused("plan", "imagenet/deit_tinyy:shake")
