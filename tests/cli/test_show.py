"""``kdscale show``: what there is, what it means, and what a recipe will do."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from kdscale.methods import Deit, Shake, Supervised
from kdscale.recipe import FromPhase, Method, Model, Phase, from_json, override, resolve, to_json, to_yaml
from tests.cli.calling import done, refused
from tests.engine import small

MINE = """
from dataclasses import replace
from kdscale.methods import KD, Shake, Supervised
from kdscale.recipe import Data, FromPhase, Model, Phase, Recipe

teachers = {f"teacher{n}": Model(f"folder/resnet20-seed{n}") for n in (2, 3)}
kd = Recipe(
    networks={"teacher": Model("folder/resnet20"), "student": Model("resnet8"), **teachers},
    data=Data("somewhere"),
    phases=(Phase(KD(), epochs=2),),
    published={"a table": 71.2, "another": 70},
)
three = replace(kd.with_method(Shake(teachers=3)), published={})
chain = replace(three, phases=(
    Phase(Supervised(), steps=7, name="first", networks={"student": Model("resnet20")}),
    Phase(KD(), epochs=2, networks={"teacher": FromPhase("first")}),
))
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with recipes of its own."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "recipes"


def columns(line: str) -> list[str]:
    return re.split("  +", line)


def test_recipes_are_a_block_a_file_and_not_cut_in_a_pipe() -> None:
    text = done("show", "recipes")
    blocks = [block.splitlines() for block in text.rstrip("\n").split("\n\n")]
    assert len({block[0].split()[0] for block in blocks}) == len(blocks)
    for head, *lines in blocks:
        assert columns(head)[1:] == ["phases", "data", "networks", "published"]
        assert all(line.startswith(head.split()[0] + ":") for line in lines)
    assert "shake 300 epochs" in next(line for line in text.splitlines() if line.startswith("imagenet/deit_tiny:shake "))
    assert all(line == line.rstrip() for line in text.splitlines())


def test_a_recipe_is_shown_with_the_networks_that_it_asks_for_and_what_is_published(mine: Path) -> None:
    head, *lines = done("show", "recipes", "mine:").splitlines()
    assert columns(head) == ["mine", "phases", "data", "networks", "published"]
    networks = "student resnet8, teacher folder/resnet20"
    assert [columns(line) for line in lines] == [
        ["mine:kd", "kd 2 epochs", "somewhere", networks, "71.20 a table; 70.00 another"],
        ["mine:three", "shake 2 epochs", "somewhere", f"{networks} and 2 more"],
        ["mine:chain", "supervised 7 steps > kd 2 epochs", "somewhere", "student resnet8, teacher of phase first"],
    ]
    assert len({line.index("somewhere") for line in lines} | {head.index("data")}) == 1


def test_words_choose_among_the_recipes(mine: Path) -> None:
    assert [line.split()[0] for line in done("show", "recipes", "mine", "kd").splitlines()] == ["mine", "mine:kd"]
    line = refused("show", "recipes", "mine", "dk")
    assert "no recipe has 'mine' and 'dk' in its name" in line
    assert "imagenet/deit_tiny" in line


def test_a_broken_recipe_file_is_told_beside_the_others(mine: Path) -> None:
    (mine / "mine.py").write_text("1 / 0\n")
    lines = done("show", "recipes").splitlines()
    assert any(line.startswith("mine ") and "ZeroDivisionError" in line for line in lines)
    assert any(line.startswith("imagenet/deit_tiny:deit") for line in lines)


def test_methods_are_one_line_each() -> None:
    head, *lines, foot = done("show", "methods").splitlines()
    assert [line.split()[0] for line in lines] == sorted(Method.registry)
    assert head.split()[:4] == ["method", "year", "phases", "trained"]
    assert foot.startswith("trained: ")
    assert all((columns(line)[3] == "-") == ("; not counted: " in line) for line in lines)


@pytest.mark.parametrize("kind", ["supervised", "kd", "deit", "shake"])
def test_a_method_with_paper_formula_and_defaults(kind: str) -> None:
    told, method = done("show", "methods", kind), Method.registry[kind]
    assert method.paper.title in told
    assert f"{method.paper.venue} {method.paper.year}" in told
    assert f"formula    {method.paper.formula}" in told
    for name, value in vars(method()).items():
        assert name == "kind" or f"  {name} = {value!r}" in told


def test_what_a_method_has_published_and_the_phases_it_stands_for() -> None:
    told = done("show", "methods", "shake", "takd")
    assert f"  published  {Shake.paper.published[0]}" in told
    assert "  phases     takd-assistant: trained assistant; frozen: teacher" in told
    assert "  views      1" in told


def test_a_choice_among_words_is_spelt_out() -> None:
    assert "head = 'auto'  of 'auto', 'linear', 'fused', 'token'" in done("show", "methods", "shake")
    assert "a distillation token" in done("show", "methods", "deit")


def test_a_recipe_in_words_and_numbers(recipe: Path) -> None:
    lines = done("show", recipe).splitlines()
    assert lines[1] == "phase 1 student: shake, 22 steps on 120 images, 4 classes"
    assert lines[2] == "  22 steps of 24 images (24 a rank and micro-batch on 1 x 1)"
    assert lines[3] == "  adamw lr 0.001 decay 0.05 clip 1, cosine to 1e-05 after 1 epochs of warm-up"
    assert lines[4] == "  trained student (deit_tiny_distilled_patch16_224): 19,520 parameters"
    assert lines[5] == "  frozen teacher (cnn6): 287,972 parameters"


def test_parts_and_rates_that_are_stated_for_another_batch(data: Path, tmp_path: Path) -> None:
    base = small.recipe(data, networks={"student": Model("cnn6"), "teacher": Model("cnn6", floor=0)})
    words = [
        "optimizer={kind: sgd, lr: 0.1, per: 12, parts: {shadow: {lr: 0.5}}}",
        "schedule={kind: multistep, milestones: [2, 3]}",
    ]
    told = done("show", small.write(tmp_path / "r.json", override(base, words)))
    assert "sgd lr 0.2 (0.1 per 12 images) decay 0.0005, multistep x 0.1 after epochs 2, 3, shadow at 0.5 x the rate" in told
    assert "trained student (cnn6): 287,972 parameters" in told
    assert "trained shadow: 516 parameters" in told


def test_a_later_phase_is_taught_by_an_earlier_one(data: Path, tmp_path: Path) -> None:
    told = done("show", small.write(tmp_path / "two.json", small.two_phases(data)))
    assert "phase 2 student: shake" in told
    assert "frozen teacher (student of phase teacher, end)" in told


def test_a_recipe_whose_data_and_teacher_are_elsewhere(tmp_path: Path) -> None:
    told = done("show", "cifar100/wrn_40_2_wrn_16_2:shake")
    assert "187680 steps of 64 images" in told
    assert "trained student (wrn_16_2): 703,284 parameters" in told
    assert "frozen teacher (cifar100/teachers/wrn_40_2): not to be had here" in told
    assert "300 epochs on 1281167 images" in done("show", "imagenet/deit_tiny:deit")


def test_json_is_the_resolved_recipe_and_yaml_reads_alike(recipe: Path, tmp_path: Path) -> None:
    value = resolve(dataclasses.replace(from_json(recipe.read_text()), name="named"))
    recipe.write_text(to_json(value))
    shown = done("show", recipe, "--json")
    assert from_json(shown) == value
    (tmp_path / "r.yaml").write_text(to_yaml(value))
    (tmp_path / "again.json").write_text(shown)
    assert done("show", tmp_path / "r.yaml", "--json") == done("show", tmp_path / "again.json", "--json") == to_json(value)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["imagenet/deit_tyny:shake"], ["imagenet/deit_tyny", "nearest: imagenet/deit_tiny"]),
        (["imagenet/deit_tiny:shak"], ["'shak'", "nearest: shake"]),
        (["imagenet/deit_tiny"], ["name one: imagenet/deit_tiny:deit, imagenet/deit_tiny:"]),
        (["imagenet/deit_tiny:shake", "evaluation.best_of=nix"], ["no answer 'nix'; known: student, class, shadow, ema"]),
        (["methods", "shak"], ["'shak'", "nearest: shake"]),
        (["nowhere.json"], ["'nowhere.json'"]),
        ([""], ["''"]),
        (["."], ["'.'"]),
        (["quickstart:recipe", "sed=1"], ["'sed'", "nearest: seed"]),
    ],
)
def test_what_is_not_there_gets_the_nearest_name(words: list[str], told: list[str]) -> None:
    line = refused("show", *words)
    assert all(word in line for word in told), line


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("r.json", "{", ["r.json: not JSON"]),
        ("r.yaml", "a: [", ["r.yaml: not YAML"]),
        ("r.json", '{"networks": {}}', ["r.json: ", "data"]),
        ("r.py", "import nothing_of_this_name\n", ["r.py does not run", "nothing_of_this_name"]),
        ("r.txt", "hello", ["r.txt is no Python file, JSON or YAML"]),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path: Path, name: str, text: str, told: list[str]) -> None:
    (tmp_path / name).write_text(text)
    line = refused("show", tmp_path / name)
    assert all(word in line for word in told), line


def test_a_batch_that_does_not_divide_is_refused_before_networks_are_built(recipe: Path) -> None:
    assert "nearest that fit: 20, 25" in refused("show", recipe, "machine.accumulate=5")


def test_a_student_without_a_distillation_token_is_refused(data: Path, tmp_path: Path) -> None:
    base = small.recipe(data, networks={"student": Model("deit_tiny_patch16_224"), "teacher": Model("cnn6", floor=0)})
    file = small.write(tmp_path / "r.json", base.with_method(Deit()))
    for command in ("show", "check"):
        line = refused(command, file)
        assert "'deit_tiny_patch16_224' has none" in line
        assert "deit_tiny_distilled_patch16_224" in line


def test_a_teacher_of_a_phase_that_does_not_exist(data: Path, tmp_path: Path) -> None:
    base = small.recipe(
        data,
        networks={"student": Model("cnn6"), "teacher": FromPhase("techer")},
        phases=(Phase(Supervised(), steps=1, name="teacher"), Phase(Shake(), steps=1, name="student")),
    )
    line = refused("show", small.write(tmp_path / "r.json", base))
    assert "'techer'" in line
    assert "before it: teacher" in line
