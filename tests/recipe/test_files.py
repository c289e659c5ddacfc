"""Recipe files with a fault: one line that names the file, its line, what was given and what is allowed."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

import kdscale.methods
from kdscale.errors import RecipeError
from kdscale.methods import KD
from kdscale.recipe import Method, Model, override
from kdscale.recipe.load import load, recipes_of

assert kdscale.methods
HEAD = """from kdscale.methods import *
from kdscale.recipe import *
data, phases, student = Data("x"), (Phase(Supervised(), steps=3),), {"student": Model("cnn6")}
"""
MINE = """
class Mine(Method):
    kind: Literal["kind_of_a_file"] = "kind_of_a_file"

Mine = value(Mine)
recipe = Recipe(student, data, (Phase(Mine(), steps=3),))
"""


def written(folder: Path, text: str, name: str = "r.py") -> str:
    (folder / name).write_text(HEAD + text + "\n")
    return str(folder / name)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "recipe = Recipe(network=student, data=data, phases=phases)",
            "line 4: Recipe has no field 'network'; nearest: networks",
        ),
        (
            "\nrecipe = Recipe(student,\n data, phases,\n seed=-1)",
            "line 5: Recipe.seed: -1 does not fit; allowed: greater than or",
        ),
        (
            "recipe = Recipe({'student': 'cnn6'}, data, phases)",
            "Recipe.networks.student: 'cnn6' is a word: write Model('cnn6')",
        ),
        ("recipe = Recipe(student, 'shards', phases)", "line 4: Recipe.data: 'shards' does not fit; write Data(...)"),
        (
            "Phase(KD(), steps=3, optimizer='sgd')",
            "Phase.optimizer: 'sgd' does not fit; write SGD(...) or AdamW(...) or Timm(...)",
        ),
        ("Phase('kd', steps=3)", "Phase.method: 'kd' is a method's kind: write KD() in Python"),
        ("KD(temprature=3)", "line 4: KD has no field 'temprature'; nearest: temperature"),
        ("Phase(KD(), steps='x')", "line 4: Phase.steps: 'x' does not fit; allowed: a valid integer or null"),
        ("Phase(KD())", "line 4: Phase: a phase has either epochs or steps"),
        ("Model()", "line 4: Model: 'name' is missing"),
        ("Ema(1, 2, 3)", "line 4: Ema has 2 fields, and 3 values are given: decay, warmup"),
        ("recipe = Recipe(student, data, phases).with_method(KD(), 7)", "line 4: there is no phase 7"),
        ("def inner():\n    return Data('x', batch=0)\ninner()", "line 5: Data.batch: 0 does not fit; allowed: greater than 0"),
        ("import sys\nsys.exit(3)", "line 5: sys.exit(3) ends the program"),
        ("recipes = {'n': 3}", "recipes['n'] is 3 and no Recipe"),
        ("recipes = {'n': print}", "recipes['n'] is a function: call it"),
        ("def recipe():\n    return 3", "recipe is a function: call it, recipe = recipe()"),
        ("1 / 0", "does not run: ZeroDivisionError: division by zero (r.py, line 4)"),
    ],
)
def test_a_fault_in_python_is_one_line_with_its_place(text: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load(written(tmp_path, text))
    assert told in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "r.py"))
    assert "\n" not in str(caught.value)


def test_no_place_within_python_itself_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("syn.py").write_text("x = (\n")
    with pytest.raises(RecipeError, match=r"^syn.py does not run: SyntaxError: [^<]*$"):
        load("syn.py")


def test_a_fault_in_a_module_beside_the_recipe_has_that_files_line(tmp_path: Path) -> None:
    written(tmp_path, "KD(tau=3)", "module_with_a_fault.py")
    with pytest.raises(RecipeError, match=r"module_with_a_fault\.py, line 4: KD has no field 'tau'"):
        load(written(tmp_path, "import module_with_a_fault"))
    assert str(tmp_path) in sys.path


def test_several_recipes_are_told_as_they_can_be_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rec").mkdir()
    written(tmp_path / "rec", "a = Recipe(student, data, phases)\nb = Recipe(student, data, phases)", "several.py")
    monkeypatch.chdir(tmp_path)
    for text in ("rec/several.py", "rec/several", "imagenet/deit_tiny"):
        with pytest.raises(RecipeError) as caught:
            load(text)
        first = str(caught.value).partition("name one: ")[2].split(", ")[0]
        assert first.startswith(f"{text}:")
        assert load(first).phases


@pytest.fixture
def roll(monkeypatch: pytest.MonkeyPatch) -> None:
    """A roll that a test may write on."""
    monkeypatch.setattr(Method, "registry", dict(Method.registry))


@pytest.mark.usefixtures("roll")
def test_a_kind_has_one_class_and_a_file_may_be_read_again(tmp_path: Path) -> None:
    text = "from typing import Literal\n" + MINE
    first = written(tmp_path, text)
    kept = recipes_of(Path(first))["recipe"]
    assert recipes_of(Path(first))["recipe"].phases[0].method != kept.phases[0].method  # two classes of one text
    assert override(load(first), ["seed=3"]).seed == 3
    second = written(tmp_path, text, "s.py")
    with pytest.raises(RecipeError) as caught:
        load(second)
    for word in ("s.py, line 6", "'kind_of_a_file'", f"Mine of {first}", f"Mine of {second}", "another one"):
        assert word in str(caught.value)


@pytest.mark.usefixtures("roll")
@pytest.mark.parametrize("body", ["kind: Literal['kd'] = 'kd'", "pass"])
def test_a_shipped_kind_is_not_taken_over(body: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"one kind, 'kd': KD of kdscale\.methods\.kd and Mine of .*r\.py; give Mine another"):
        load(written(tmp_path, f"from typing import Literal\nclass Mine(KD):\n    {body}"))
    assert Method.registry["kd"] is KD


@pytest.mark.usefixtures("roll")
def test_fields_of_a_method_of_ones_own_are_overridden_though_its_annotations_are_text(tmp_path: Path) -> None:
    path = tmp_path / "r.py"
    made = MINE.replace("    kind", "    tau: Small = 2.0\n    kind")
    path.write_text(f"from __future__ import annotations\nfrom typing import Literal\n{HEAD}Small = float\n{made}")
    method = override(load(str(path)), ["method.tau=3"]).phases[0].method
    assert method.tau == 3.0  # type: ignore[attr-defined]
    for call, told in (("Mine(tau=3)", "Mine: write @value above the class"), ("Mine()", "is @value above the class?")):
        path.write_text(path.read_text().replace("Mine = value(Mine)\n", "").replace("Mine()", call))
        with pytest.raises(RecipeError, match=re.escape(told)):
            load(str(path))
        path.write_text(path.read_text().replace(call, "Mine()"))


@pytest.mark.parametrize(
    ("word", "source"),
    [("{name: resnet8, floor: 0.5}", Model("resnet8", floor=0.5)), ("{kind: model, name: a}", Model("a"))],
)
def test_the_kind_of_a_network_may_be_left_out(word: str, source: Model, tmp_path: Path) -> None:
    recipe = load(written(tmp_path, "recipe = Recipe(student, data, phases)"))
    assert override(recipe, [f"networks.student={word}"]).networks["student"] == source
    with pytest.raises(RecipeError, match=r"networks\.student\.nam: there is no field 'nam'; nearest: name"):
        override(recipe, ["networks.student={nam: resnet8}"])


def test_a_length_that_is_not_set_is_not_added_to(tmp_path: Path) -> None:
    recipe = load(written(tmp_path, "recipe = Recipe(student, data, phases)"))
    assert override(recipe, ["steps=+2"]).phases[0].steps == 5
    with pytest.raises(RecipeError, match=r"phases\.0\.epochs is not set.*length is steps=3, so write phases\.0\.steps=\+N"):
        override(recipe, ["epochs=+1"])
    with pytest.raises(RecipeError, match=r"machine\.threads is not set.*: machine\.threads=2 sets it"):
        override(recipe, ["machine.threads=+2"])
    with pytest.raises(RecipeError, match=r"phases\.0\.method: method 'kd' has no field 'temprature'; nearest: temperature"):
        override(recipe, ["method={kind: kd, temprature: 2}"])
