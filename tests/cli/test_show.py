"""``kdscale show``: what there is, what it means, and what a recipe will do."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdscale.methods import Deit, Shake, Supervised
from kdscale.recipe import FromPhase, Method, Model, Phase, from_json, override, resolve, to_json, to_yaml
from tests.cli.calling import done, refused
from tests.engine import small


def test_recipes_are_one_line_each_and_not_cut_in_a_pipe() -> None:
    lines = done("show", "recipes").splitlines()
    assert lines[0].split() == ["recipe", "phases", "data", "networks"]
    assert len({line.index(word) for line, word in zip(lines[1:], ["cifar100 "] * 4, strict=False)}) == 1
    shake = next(line for line in lines if line.startswith("imagenet/deit_tiny:shake"))
    assert "shake 300 epochs" in shake
    assert shake.endswith("student deit_tiny_distilled_patch16_224, teacher timm/regnety_160.deit_in1k")
    quickstart = next(line for line in lines if line.startswith("quickstart:recipe"))
    assert "teacher of phase teacher" in quickstart
    assert all(line == line.rstrip() for line in lines)


def test_a_broken_recipe_file_is_told_beside_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    lines = done("show", "recipes").splitlines()
    assert any(line.startswith("mine ") and "ZeroDivisionError" in line for line in lines)
    assert any(line.startswith("imagenet/deit_tiny:deit") for line in lines)


def test_methods_are_one_line_each() -> None:
    lines = done("show", "methods").splitlines()
    assert [line.split()[0] for line in lines] == sorted(Method.registry)


@pytest.mark.parametrize("kind", ["supervised", "kd", "deit", "shake"])
def test_a_method_with_paper_formula_and_defaults(kind: str) -> None:
    told, method = done("show", "methods", kind), Method.registry[kind]
    assert method.paper.title in told
    assert f"{method.paper.venue} {method.paper.year}" in told
    assert f"formula  {method.paper.formula}" in told
    for name, value in vars(method()).items():
        assert name == "kind" or f"  {name} = {value!r}" in told


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
    assert "frozen teacher (runs/wrn_40_2/export): not to be had here" in told
    assert "300 epochs on 1281167 images" in done("show", "imagenet/deit_tiny:deit")


def test_json_is_the_resolved_recipe_and_yaml_reads_alike(recipe: Path, tmp_path: Path) -> None:
    value = resolve(from_json(recipe.read_text()))
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
        (["imagenet/deit_tiny"], ["deit_tiny:deit", "deit_tiny:shake"]),
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
