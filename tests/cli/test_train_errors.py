"""Everything a person can get wrong before a run begins ends in one line with the thing, its value and the cure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kdscale.methods import Deit
from kdscale.recipe import Model
from tests.cli import spoiling
from tests.cli.calling import done, refused
from tests.engine import small


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("epoch=3", ["'epoch'", "epochs"]),
        ("epochs", ["path=value"]),
        ("=3", ["path=value"]),
        ("epochs=abc", ["phases.0.epochs", "'abc'", "number"]),
        ("steps=-1", ["phases.0.steps", "-1", "greater than 0"]),
        ("data.batc=3", ["'data.batc'", "batch"]),
        ("data.batch=abc", ["data.batch", "'abc'", "integer"]),
        ("data.batch.x=1", ["data.batch", "'x'"]),
        ("networks.techer=cnn6", ["'techer'", "teacher"]),
        ("networks.techer.floor=0", ["'techer'", "teacher"]),
        ("networks.teacher.flor=0", ["'networks.teacher.flor'", "floor"]),
        ("networks.teacher.floor=7", ["networks.teacher.floor", "7", "less than or equal to 1"]),
        ("networks.teacher=cnn66", ["'cnn66'", "cnn6"]),
        ("networks.teacher=./nowhere", ["'nowhere'", "no folder", "kdscale export"]),
        ("networks.teacher=timm/resnet18.foo", ["resnet18.foo", "a1_in1k"]),
        ("networks.teacher.weights=none.safetensors", ["'none.safetensors'", "safetensors"]),
        ("method=shak", ["'shak'", "shake"]),
        ("method.temprature=3", ["temprature", "temperature"]),
        ("method.head=foo", ["'foo'", "'fused'"]),
        ("optimizer={kind: foo}", ["'foo'", "adamw"]),
        ("optimizer={kind: timm, name: lam}", ["'lam'", "lamb"]),
        ("optimizer.parts={foo: {lr: 2}}", ["'foo'", "student"]),
        ("precision=fp16", ["'fp16'", "'bf16'"]),
        ("phases.teachr.steps=3", ["'teachr'", "student"]),
        ("data.batch=7", ["7 is odd", "6, 8"]),
        ("machine.accumulate=5", ["24", "accumulation 5", "20, 25"]),
        ("machine.trackers=[foo]", ["'foo'", "tensorboard"]),
        ("data.eval_split=test", ["test", "train, val"]),
        ("data.source=nowhere", ["nowhere"]),
    ],
)
def test_an_assignment_that_does_not_fit(recipe: Path, tmp_path: Path, assignment: str, words: list[str]) -> None:
    line = refused("train", recipe, assignment, "--out", tmp_path / "out")
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    ("name", "near"), [("quickstat", "quickstart"), ("nowhere.json", "known"), ("imagenet/deit_tiny:shak", "shake")]
)
def test_a_recipe_that_is_not_there(tmp_path: Path, name: str, near: str) -> None:
    line = refused("train", name, "--out", tmp_path / "out")
    assert near in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoiling.missing, ["tiny-train-000000.tar is missing", "1 of 1"]),
        (spoiling.truncated, ["tiny-train-000000.tar", "manifest says", "truncated"]),
        (spoiling.replaced, ["tiny-train-000000.tar", "other content"]),
        (spoiling.without_index, ["train.index is missing"]),
        (spoiling.edited(lambda m: m["splits"]["train"].update(shards=[])), ["train", "no shards"]),
        (
            spoiling.edited(lambda m: m["splits"]["train"]["shards"][0].update(samples=119)),
            ["train.index", "not the one of its manifest"],
        ),
        (
            spoiling.edited(lambda m: m["splits"]["train"]["shards"][0].update(bytes=1)),
            ["tiny-train-000000.tar", "manifest says 1"],
        ),
        (spoiling.edited(lambda m: m.update(num_classes=3, classes=["a", "b", "c"])), ["label 3", "outside 0..2"]),
        (spoiling.edited(lambda m: m.pop("format")), ["manifest.json is not a manifest"]),
        (lambda folder: (folder / "manifest.json").write_text("{"), ["manifest.json is not a manifest"]),
    ],
)
def test_data_with_one_thing_wrong(
    data: Path, recipe: Path, tmp_path: Path, spoil: Callable[[Path], object], words: list[str]
) -> None:
    folder = spoiling.copied(data, tmp_path / "data")
    spoil(folder)
    line = refused("train", recipe, f"data.source={folder}", "--out", tmp_path / "out")
    assert all(word in line for word in words), line


def test_pictures_or_nothing_in_the_place_of_shards(recipe: Path, tmp_path: Path) -> None:
    pictures = spoiling.photos(tmp_path / "pictures")
    for png in pictures.rglob("*.jpg"):
        png.rename(png.with_suffix(".png"))
    line = refused("train", recipe, f"data.source={pictures}", "--out", tmp_path / "out")
    assert "is a folder of pictures, not of shards" in line
    assert f"kdscale data pack {pictures}" in line
    (tmp_path / "empty").mkdir()
    line = refused("train", recipe, f"data.source={tmp_path / 'empty'}", "--out", tmp_path / "out")
    assert "no shards of split train" in line


@pytest.mark.parametrize(
    ("spoil", "why"), [(lambda raw: raw[: len(raw) // 2], "runcated"), (lambda raw: b"text" * 50, "identify")]
)
def test_a_sample_that_does_not_decode(recipe: Path, tmp_path: Path, spoil: spoiling.Bytes, why: str) -> None:
    """Named by shard, key and offset, where training meets it."""
    folder = spoiling.tars(tmp_path / "data", [0, 1, 2, 3] * 6, spoil)
    for split in ("train", "val"):
        done("data", "index", folder, "--split", split, "-j", "1")
    words = [
        "train",
        recipe,
        f"data.source={folder}",
        "evaluation.teachers=false",
        "networks.teacher.floor=0",
        "data.held_out=1",
    ]
    line = refused(*words, "--out", tmp_path / "out")
    assert "sample 00002 in x-train-000000.tar at " in line
    assert "cannot decode" in line
    assert why in line


def test_a_label_that_no_class_has(recipe: Path, tmp_path: Path) -> None:
    folder = spoiling.tars(tmp_path / "data", [0, 1, -2, 3] * 6)
    for words in (("data", "index", folder, "-j", "1"), ("train", recipe, f"data.source={folder}", "--out", tmp_path / "out")):
        line = refused(*words)
        assert "label '-2' of sample 00002 in" in line
        assert "number the classes from 0" in line


def test_a_student_without_a_distillation_token(data: Path, tmp_path: Path) -> None:
    base = small.recipe(data, networks={"student": Model("wrn_16_2"), "teacher": Model("cnn6", floor=0)})
    line = refused("train", small.write(tmp_path / "r.json", base.with_method(Deit())), "--out", tmp_path / "out")
    assert "method 'deit' needs a student with a distillation token, and 'wrn_16_2' has none" in line
    assert "take deit_tiny_distilled_patch16_224" in line


def test_a_teacher_of_other_classes_or_worse_than_its_floor(recipe: Path, data: Path, tmp_path: Path) -> None:
    line = refused("train", recipe, "networks.teacher=timm/resnet18.a1_in1k", "--out", tmp_path / "a")
    assert "for 1000 classes and the data have 4" in line
    line = refused("train", recipe, "networks.teacher.floor=0.99", "--out", tmp_path / "b")
    assert "below its floor of 99.00" in line
    assert "networks.teacher.floor=0" in line


def test_an_output_folder_that_is_not_this_recipes(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    assert "is a file" in refused("train", recipe, "--out", tmp_path / "file")
    assert "thesis.tex" in refused("train", recipe, "--out", tmp_path / "mine")
    assert f"done: {tmp_path / 'out'}" in done("train", recipe, "steps=2", "--out", tmp_path / "out")
    line = refused("train", recipe, "steps=2", "seed=4", "--out", tmp_path / "out")
    assert "seed was 0, is 4" in line
    assert "--overwrite" in line


def test_a_loss_that_is_not_finite_is_a_fault(recipe: Path, tmp_path: Path) -> None:
    line = refused(
        "train", recipe, "optimizer={kind: sgd, lr: 1e20}", "schedule={kind: constant}", "--out", tmp_path / "out", code=70
    )
    assert "the loss is not finite at step" in line


def test_images_smaller_than_a_crop(data: Path, tmp_path: Path) -> None:
    base = small.recipe(data, networks={"student": Model("cnn6"), "teacher": Model("cnn6", floor=0)})
    file = small.write(tmp_path / "r.json", base)
    line = refused("train", file, "data.train.size=32", "--out", tmp_path / "out")
    assert "16 x 16" in line
    assert "too small for a crop of 32" in line
