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
        ("optimizer=sgd", lambda r: r.phases[0].optimizer, SGD()),
        ("schedule=cosine", lambda r: r.phases[0].schedule, Cosine()),
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
        ("optimizer=sgdd", ["phases.0.optimizer: there is no kind 'sgdd'; kinds: sgd, adamw, timm"]),
        ("optimizer={lr: 3}", ["phases.0.optimizer", "of the kinds sgd, adamw, timm"]),
        ("optimizer={kind: sgd, lr: x}", ["phases.0.optimizer.lr: 'x' does not fit; allowed: a valid number"]),
        ("optimizer={kind: sgd, lrr: 3}", ["phases.0.optimizer.lrr: there is no field 'lrr'"]),
        ("optimizer=timm", ["phases.0.optimizer: 'name' is missing"]),
        ("optimizer.clip=0", ["greater than 0 or null"]),
        ("data.mean=[1, 2]", ["data.mean: there are too few values"]),
        ("phases.0=3", ["phases.0 is a whole phase", "phases.0.epochs=100"]),
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


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("ema={decy: 1}", "ema.decy: there is no field 'decy'; nearest: decay"),
        ("ema=x", "ema: 'x' does not fit; allowed: the fields of Ema, as {NAME: VALUE} or null"),
        ("machine.threads=ten", "machine.threads: 'ten' does not fit; allowed: a valid integer or null"),
        ("data.workers=x", "data.workers: 'x' does not fit; allowed: a valid integer or 'auto'"),
        ("dat=1", "there is no field 'dat'; nearest: data, part, batch"),
    ],
)
def test_a_message_says_a_thing_once_and_in_our_words(assignment: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        override(one_phase(), [assignment])
    assert str(caught.value) == message


def test_nothing_is_known_twice() -> None:
    with pytest.raises(RecipeError, match="known: ") as caught:
        override(one_phase(), ["qqqqqqqq=1"])
    known = str(caught.value).partition("known: ")[2].split(", ")
    assert len(known) == len(set(known))


def test_a_plain_name_takes_the_place_of_a_phases_network() -> None:
    assert override(two_phases(), ["networks.teacher=wrn_40_2"]).networks["teacher"] == Model("wrn_40_2")


def own_ways() -> Recipe:
    """Three phases: one that has everything from the recipe, one with its own batch and network, one with its own data."""
    return Recipe(
        networks={"student": Model("wrn_16_2"), "teacher": Model("wrn_40_2")},
        data=Data("here", batch=64),
        phases=(
            Phase(KD(), epochs=3, name="a"),
            Phase(KD(), epochs=3, name="b", batch=32, networks={"teacher": FromPhase("a")}),
            Phase(KD(), epochs=3, name="c", data=Data("there", batch=48)),
        ),
    )


@pytest.mark.parametrize(
    "assignments",
    [
        ["data.batch=12"],
        ["data.source=elsewhere", "data.batch=8", "data.train.size=32"],
        ["data={source: elsewhere, batch: 16}"],
        ["networks.student.drop_path=.5"],
        ["networks.teacher=resnet56", "networks.teacher.floor=0"],
        ["networks.teacher={kind: model, name: other, size: 64}"],
        ["phases.b.batch=16", "data.batch=24"],
        ["phases.c.data.batch=16"],
        ["phases.b.networks.teacher=resnet56"],
    ],
)
def test_an_override_of_a_resolved_recipe_is_the_same_as_before_it_was_resolved(assignments: list[str]) -> None:
    saved = from_json(to_json(resolve(own_ways())))
    after = resolve(override(saved, assignments))
    assert after == resolve(override(own_ways(), assignments))
    assert after != saved


def test_a_phases_own_batch_data_and_networks_stay_its_own() -> None:
    saved = from_json(to_json(resolve(own_ways())))
    a, b, c = resolve(override(saved, ["data.batch=12", "data.source=x", "networks.teacher=resnet56"])).phases
    assert [(p.data.source, p.data.batch, p.batch) for p in (a, b, c) if p.data] == [
        ("x", 12, 12),
        ("x", 32, 32),
        ("there", 48, 48),
    ]
    assert [p.networks["teacher"] for p in (a, b, c)] == [Model("resnet56"), FromPhase("a"), Model("resnet56")]


def test_the_batch_of_a_resolved_phase_is_set_through_its_data_too() -> None:
    phase = resolve(override(resolve(one_phase()), ["phases.0.data.batch=32"])).phases[0]
    assert phase.data is not None
    assert (phase.data.batch, phase.batch) == (32, 32)


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
        (lambda p: p["phases"][0].update(name="a/b"), ["phases.0", "'a/b'", "use letters, digits"]),
        (lambda p: p["phases"][0]["optimizer"].update(kind="sgdd"), ["phases.0.optimizer", "'sgdd'", "sgd, adamw, timm"]),
        (lambda p: p["phases"][0].pop("method"), ["phases.0: 'method' is missing"]),
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


@pytest.mark.parametrize("name", ["a/b", "..", ".hidden", "two words", "a\n", "\u00e9t\u00e9", "~"])
def test_the_name_of_a_phase_is_a_folders(name: str) -> None:
    plain = to_plain(two_phases())
    plain["phases"][0]["name"] = name
    with pytest.raises(RecipeError, match=r"^phases\.0: .* use letters, digits, '_', '-' and '\.'") as caught:
        from_plain(plain)
    assert "\n" not in str(caught.value)
    assert override(two_phases(), ["phases.0.name=1-wrn_40.2"]).phases[0].name == "1-wrn_40.2"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (FromPhase("teacher", role="teacher"), r"the teacher of phase 'teacher', which trains no such role; .*: student$"),
        (FromPhase("teacher", at=4), r"after epoch 4 of phase 'teacher', which has 3; set at= .*'end' or 'best'"),
    ],
)
def test_what_an_earlier_phase_does_not_leave_behind(source: FromPhase, message: str) -> None:
    whole = two_phases()
    with pytest.raises(RecipeError, match=message):
        resolve(dataclasses.replace(whole, networks={**whole.networks, "teacher": source}))


def test_what_an_earlier_phase_does_leave_behind() -> None:
    whole = override(two_phases(), ["networks.teacher={kind: from_phase, phase: teacher, at: 3}"])
    assert resolve(whole).phases[1].networks["teacher"] == FromPhase("teacher", at=3)
    in_steps = override(whole, ["phases.teacher.steps=10", "networks.teacher.at=9"])
    assert resolve(in_steps).phases[1].networks["teacher"] == FromPhase("teacher", at=9)


def test_the_first_phase_has_nothing_to_carry() -> None:
    with pytest.raises(RecipeError, match=r"phase 'teacher' carries branch .*it is the first: leave carry out"):
        resolve(override(two_phases(), ["phases.teacher.carry=[branch]"]))
    assert resolve(override(two_phases(), ["phases.student.carry=[branch]"])).phases[1].carry == ("branch",)


def test_with_method_asks_which_phase() -> None:
    with pytest.raises(RecipeError, match=r"say which by phase= \(teacher, student\)"):
        two_phases().with_method(Shake())
    assert two_phases().with_method(Shake(), phase="student").phases[1].method == Shake()


def test_another_method_has_neither_the_name_nor_the_numbers_of_the_first() -> None:
    printed = dataclasses.replace(one_phase(), name="page:kd", published={"a table": 70.0})
    other = printed.with_method(Shake())
    assert (other.name, dict(other.published)) == ("", {})
    for word in ("method=dkd", "method.temperature=2"):
        assert not override(printed, [word]).published, word
    assert override(printed, ["seed=3", "machine.threads=2"]).published == {"a table": 70.0}


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
