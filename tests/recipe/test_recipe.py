"""A recipe is a value: equal to its JSON and YAML, closed, frozen, and the same after it is resolved twice."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdscale.errors import RecipeError
from kdscale.methods import KD, Shake, Supervised
from kdscale.recipe import (
    SGD,
    AdamW,
    Augment,
    Cosine,
    Data,
    Ema,
    FromPhase,
    Model,
    MultiStep,
    Part,
    Phase,
    Plateau,
    Recipe,
    from_json,
    from_plain,
    from_yaml,
    override,
    resolve,
    to_json,
    to_plain,
    to_yaml,
)
from kdscale.recipe.resolve import differences, digest, identity


def two_phases() -> Recipe:
    return Recipe(
        networks={"student": Model("wrn_16_2"), "teacher": FromPhase("teacher")},
        data=Data("here", batch=64, train=Augment.deit()),
        phases=(
            Phase(Supervised(), epochs=3, name="teacher", optimizer=SGD(0.05), schedule=MultiStep((1, 2))),
            Phase(
                KD(2.0),
                steps=30,
                name="student",
                optimizer=AdamW(5e-4, per=512, parts={"student": Part(0.5)}),
                schedule=Plateau(),
            ),
        ),
        ema=Ema(0.99),
    )


def one_phase() -> Recipe:
    return Recipe(
        networks={"student": Model("a"), "teacher": Model("timm/b.c")},
        data=Data("here", batch=128),
        phases=(Phase(KD(), epochs=10, optimizer=AdamW(5e-4, per=512), schedule=Cosine(warmup=1)),),
    )


@pytest.mark.parametrize("recipe", [one_phase(), two_phases(), resolve(two_phases())])
def test_text_and_back(recipe: Recipe) -> None:
    assert from_json(to_json(recipe)) == recipe
    assert from_yaml(to_yaml(recipe)) == recipe
    assert hash(from_json(to_json(recipe))) == hash(recipe)


def test_resolving_twice_changes_nothing_and_says_everything() -> None:
    recipe = resolve(two_phases())
    assert resolve(recipe) == recipe
    student = recipe.phases[1]
    assert student.data is not None
    assert student.data.batch == student.batch == 64
    assert student.optimizer.lr == pytest.approx(5e-4 * 64 / 512)
    assert set(student.networks) == {"student", "teacher"}
    assert set(recipe.phases[0].networks) == {"student"}


def test_a_recipe_does_not_change() -> None:
    recipe = one_phase()
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.seed = 3  # type: ignore[misc]
    with pytest.raises(TypeError, match="does not change"):
        recipe.networks["student"] = Model("b")  # type: ignore[index]


@pytest.mark.parametrize(
    ("assignment", "get", "expected"),
    [
        ("epochs=+50", lambda r: r.phases[0].epochs, 60.0),
        ("epochs=3", lambda r: r.phases[0].epochs, 3.0),
        ("steps=5", lambda r: (r.phases[0].steps, r.phases[0].epochs), (5, None)),
        ("optimizer.lr=1e-3", lambda r: r.phases[0].optimizer.lr, 1e-3),
        ("optimizer={kind: sgd, lr: 0.1}", lambda r: r.phases[0].optimizer, SGD(0.1)),
        ("method=shake", lambda r: r.phases[0].method, Shake()),
        ("method.temperature=2", lambda r: r.phases[0].method.temperature, 2.0),
        ("networks.teacher=some/folder", lambda r: r.networks["teacher"].name, "some/folder"),
        ("networks.teacher.floor=0", lambda r: r.networks["teacher"].floor, 0.0),
        ("networks.teacher.args.depth=4", lambda r: r.networks["teacher"].args["depth"], 4),
        ("networks.student={kind: from_phase, phase: x}", lambda r: r.networks["student"], FromPhase("x")),
        ("data.mean=[0.1, 0.2, 0.3]", lambda r: r.data.mean, (0.1, 0.2, 0.3)),
        ("data.train.policy=null", lambda r: r.data.train.policy, None),
        ("data.source=2024", lambda r: r.data.source, "2024"),
        ("machine.trackers=[tensorboard]", lambda r: r.machine.trackers, ("tensorboard",)),
        ("ema={decay: 0.5}", lambda r: r.ema, Ema(0.5)),
    ],
)
def test_override(assignment: str, get, expected) -> None:  # type: ignore[no-untyped-def]
    assert get(override(one_phase(), [assignment])) == expected


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("epochz=3", ["'epochz'", "epochs"]),
        ("data.batsh=3", ["'data.batsh'", "batch"]),
        ("networks.techer.name=b", ["role 'techer'", "teacher"]),
        ("networks.techer=b", ["role 'techer'", "teacher"]),
        ("precision=fp16", ["precision", "'fp16'", "'fp32' or 'bf16'"]),
        ("epochs=ten", ["epochs", "'ten'", "number"]),
        ("data.batch=0", ["data.batch", "0", "greater than 0"]),
        ("method.temp=3", ["method.temp", "temperature"]),
        ("method=kdd", ["'kdd'", "kd"]),
        ("phases.foo.epochs=1", ["'foo'"]),
        ("ema.decay=0.5", ["ema is not set"]),
        ("schedule={kind: cosin}", ["cosin", "cosine"]),
        ("seed", ["path=value"]),
        ("seed.x=1", ["seed", "has no field 'x'"]),
    ],
)
def test_a_wrong_override_is_one_line_that_names_field_value_and_cure(assignment: str, words: list[str]) -> None:
    recipe = one_phase()
    with pytest.raises(RecipeError) as caught:
        override(recipe, [assignment])
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_a_phase_field_of_a_recipe_of_several_phases_says_which() -> None:
    with pytest.raises(RecipeError, match=r"phases\.teacher\.epochs, phases\.student\.epochs"):
        override(two_phases(), ["epochs=3"])
    assert override(two_phases(), ["phases.student.optimizer.lr=2e-3"]).phases[1].optimizer.lr == 2e-3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: p.update(networks={"studnt": {"kind": "model", "name": "a"}}), ["studnt", "student"]),
        (lambda p: p.update(colour=3), ["colour"]),
        (lambda p: p["data"].update(batch="many"), ["data.batch", "many"]),
        (lambda p: p["phases"][0]["method"].update(kind="kdd"), ["kdd", "kd"]),
        (lambda p: p.update(phases=[]), ["at least one phase"]),
        (lambda p: p["phases"][0].update(steps=4), ["either epochs or steps"]),
    ],
)
def test_wrong_json_is_one_line(change, words) -> None:  # type: ignore[no-untyped-def]
    plain = to_plain(one_phase())
    change(plain)
    with pytest.raises(RecipeError) as caught:
        from_plain(plain)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_roles_and_phases_that_are_not_there() -> None:
    recipe = dataclasses.replace(one_phase(), networks={"student": Model("a")})
    with pytest.raises(RecipeError, match=r"needs a network in the role 'teacher'.*has: student"):
        resolve(recipe)
    recipe = dataclasses.replace(one_phase(), networks={"student": Model("a"), "teacher": FromPhase("later")})
    with pytest.raises(RecipeError, match="comes from phase 'later', which is not before it"):
        resolve(recipe)


def test_with_method_asks_which_phase() -> None:
    with pytest.raises(RecipeError, match=r"say which by phase= \(teacher, student\)"):
        two_phases().with_method(Shake())
    assert two_phases().with_method(Shake(), phase="student").phases[1].method == Shake()


def test_identity_counts_content_and_not_places_or_machines() -> None:
    recipe = resolve(one_phase())
    mine = identity(recipe, {"timm/b.c": "abc"}, {"here": "data1"})
    moved = dataclasses.replace(recipe, machine=dataclasses.replace(recipe.machine, compile=True, accumulate=4))
    assert digest(identity(moved, {"timm/b.c": "abc"}, {"here": "data1"})) == digest(mine)
    other = identity(override(recipe, ["optimizer.lr=1"]), {"timm/b.c": "abd"}, {"here": "data1"})
    changed = {path for path, _, _ in differences(mine, other)}
    assert changed == {"phases.0.optimizer.lr", "phases.0.networks.teacher.name"}


@given(st.floats(0, 10), st.integers(1, 10**6), st.text(min_size=1, max_size=20))
def test_any_value_comes_back(rate: float, batch: int, source: str) -> None:
    recipe = dataclasses.replace(one_phase(), data=Data(source, batch=batch))
    recipe = dataclasses.replace(recipe, phases=(dataclasses.replace(recipe.phases[0], optimizer=SGD(rate)),))
    assert from_json(to_json(recipe)) == recipe
    assert from_yaml(to_yaml(recipe)) == recipe


def test_recipes_need_no_torch() -> None:
    code = "import sys, kdscale.recipe, kdscale.recipe.load; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
