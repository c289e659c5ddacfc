"""A store serves the images that it was taught on and the methods that read answers alone; anything else is refused in a line."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdscale.data import open_split, pack_arrays
from kdscale.engine.parallel import Session
from kdscale.engine.stage import build_stage
from kdscale.engine.stored.answers import checksums
from kdscale.engine.stored.store import open_store
from kdscale.errors import DataError, RecipeError, RunError
from kdscale.methods import Shake, StageByStage
from kdscale.recipe import Model, Recipe
from kdscale.recipe.resolve import phase_data
from tests.engine import small
from tests.engine.taught import learning, recipe_of, shards, steps_of, taught

DIFFERENCES = [
    ("seed=1", "seed was 0, is 1"),
    ("data.batch=48", "data.batch was 24, is 48"),
    ("data.repeats=1", "data.repeats was 3, is 1"),
    ("data.repeat_group=3", "data.repeat_group was 1, is 3"),
    ("data.repeat_epoch=fresh", "data.repeat_epoch was 'whole', is 'fresh'"),
    ("data.order.lanes=8", "data.order.lanes was 256, is 8"),
    ("data.epoch_tail=drop", "data.epoch_tail was 'carry', is 'drop'"),
    ("data.train.pad=1", "data.train.pad was 2, is 1"),
    ("data.train.mixup=0.2", "data.train.mixup was 0.8, is 0.2"),
    ("data.train.mix_off_epoch=1", "data.train.mix_off_epoch was None, is 1"),
    ("data.mean=[0.1,0.1,0.1]", "data.mean was"),
    ("data.std=[0.1,0.1,0.1]", "data.std was"),
    ("data.train_split=val", "data.identity was"),
]


@pytest.mark.parametrize(("word", "told"), DIFFERENCES)
def test_other_images_are_refused_by_the_field_with_both_values(data: Path, store: Path, word: str, told: str) -> None:
    recipe = learning(recipe_of(data, word), store)
    with pytest.raises(RecipeError, match=r"set it back, or teach anew") as error:
        opened(recipe, store)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def opened(recipe: Recipe, store: Path) -> Any:
    return open_store(recipe, 0, "teacher", store, open_split(phase_data(recipe.phases[0]), "train").info)


def test_other_pixels_of_the_same_names_are_other_data(store: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        images = np.full((small.TRAIN, small.SIDE, small.SIDE, 3), 9, np.uint8)
        pack_arrays(images, np.arange(small.TRAIN) % 4, str(tmp_path / "d"), split=split, name="tiny", names=tuple("abcd"))
    with pytest.raises(RecipeError, match=r"data.identity was"):
        opened(learning(recipe_of(tmp_path / "d"), store), store)


@pytest.mark.parametrize(
    "words", [("data.train.smoothing=0.3",), ("data.workers=2",), ("epochs=1",), ("method=kd",), ("optimizer.lr=0.1",)]
)
def test_what_changes_no_image_is_free(data: Path, store: Path, words: tuple[str, ...]) -> None:
    opened(learning(recipe_of(data, *words), store), store)


def test_a_longer_run_is_refused_until_its_epochs_are_stored(data: Path, session: Session, store: Path, tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"stored for 10 steps \(2 epochs\).* phase has 15: later epochs have other crops.*--epochs 3"
    ):
        opened(learning(recipe_of(data, "epochs=3"), store), store)
    grown, at_once = tmp_path / "grown", tmp_path / "once"
    taught(recipe_of(data), grown, session, epochs=1)
    taught(recipe_of(data), grown, session, epochs=3)
    taught(recipe_of(data, "epochs=3"), at_once, session)
    assert [p.read_bytes() for p in shards(grown)] == [p.read_bytes() for p in shards(at_once)]
    opened(learning(recipe_of(data, "epochs=3"), grown), grown)


def test_a_method_that_reads_the_network_is_refused(data: Path, session: Session, store: Path, tmp_path: Path) -> None:
    for word, told in (
        ("method=fitnets", "'fitnets' reads stage2"),
        ("method=crd", "'crd' reads pooled"),
        ("method={kind: shake, form: code}", "'shake' reads stages"),
    ):
        recipe = recipe_of(data, word)
        with pytest.raises(RecipeError, match=f"teacher is stored in .* method {told}: name the network"):
            learning(recipe, store)
        with pytest.raises(RecipeError, match=f"method {told}"):
            taught(recipe, tmp_path / "never", session)
        assert not (tmp_path / "never").exists()
    with pytest.raises(RecipeError, match=r"student is stored in .* 'shake' trains it"):
        learning(recipe_of(data), store, "student")
    copied = learning(recipe_of(data, method=Shake(proxy="teacher_copy")), store)
    with pytest.raises(RecipeError, match=r"method 'shake' reads the teacher's network itself, which stored answers"):
        build_stage(copied, 0, session, None)


def test_a_method_that_reads_between_blocks_is_refused(data: Path, session: Session, tmp_path: Path) -> None:
    networks = {"student": Model("resnet8"), "teacher": Model("resnet14", floor=0)}
    recipe = recipe_of(data, method=StageByStage(), networks=networks, ema=None)
    with pytest.raises(RecipeError, match=r"'stage_by_stage' (reads|runs)"):
        taught(recipe, tmp_path / "s", session)


def test_damage_is_told_by_the_name_of_the_file(data: Path, session: Session, store: Path, tmp_path: Path) -> None:
    def spoilt(spoil: Callable[[Path], object]) -> Path:
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        (folder / "1-teacher").mkdir(parents=True)
        for path in (store / "1-teacher").iterdir():
            (folder / "1-teacher" / path.name).write_bytes(path.read_bytes())
        spoil(folder / "1-teacher" / "00002.npy")
        return folder

    def flip(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[-5] ^= 1
        path.write_bytes(content)

    for spoil, told in (
        (Path.unlink, r"00002.npy is missing \(1 of 4 shards are\)"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "00002.npy is .* bytes and was written with .* truncated"),
        (lambda path: path.write_bytes(b"PK\3\4"), "00002.npy is no shard of answers"),
        (
            lambda path: path.write_bytes(path.with_name("00003.npy").read_bytes()),
            "00002.npy holds 24 answers and 72 are needed",
        ),
    ):
        folder = spoilt(spoil)
        with pytest.raises(DataError, match=told) as error:
            opened(learning(recipe_of(data), folder), folder)
        assert "the same kdscale teach command writes what is missing" in str(error.value)
    taught(recipe_of(data), folder, session, type="fp32")
    assert [p.read_bytes() for p in shards(folder)] == [p.read_bytes() for p in shards(store)]
    for spoil in (flip, lambda path: path.write_bytes(path.with_name("00001.npy").read_bytes())):
        folder = spoilt(spoil)
        stage = build_stage(learning(recipe_of(data), folder), 0, session, None)
        with closing(stage.stream()) as stream:
            for _, _ in zip(range(12), stream.batches(0), strict=False):  # six steps of two micro-batches are whole
                pass
            with pytest.raises(DataError, match=r"00002.npy is damaged: .* of step . do not match their checksums; delete"):
                list(stream.batches(6))


def test_images_that_the_teacher_did_not_see_are_noticed_at_the_start(
    data: Path, session: Session, store: Path, tmp_path: Path
) -> None:
    """As after another version of a library that draws crops."""
    folder = tmp_path / "1-teacher"
    folder.mkdir()
    for path in (store / "1-teacher").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    rows = np.load(folder / "00001.npy")
    rows["witness"] += 0.01
    rows["crc"] = checksums(rows, np.arange(72, 72 + len(rows)))
    np.save(folder / "00001.npy", rows)
    recipe = learning(recipe_of(data), tmp_path)
    with pytest.raises(DataError, match=r"12 of 12 images of step 4 are not those .* it was taught under kdscale .*, torch "):
        steps_of(recipe, session, 4, 1)


def test_a_folder_holds_one_store(data: Path, session: Session, store: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"1-teacher holds other answers: form.type was 'fp32', is 'fp16'"):
        taught(recipe_of(data), store, session)
    with pytest.raises(DataError, match=r"is no store of answers: it has no store.json; make one with kdscale teach"):
        opened(learning(recipe_of(data), tmp_path), tmp_path)
    facts = json.loads((store / "1-teacher" / "store.json").read_text())
    (tmp_path / "1-teacher").mkdir()
    (tmp_path / "1-teacher" / "store.json").write_text(json.dumps({**facts, "format": 99}))
    with pytest.raises(DataError, match=r"has format 99; this version reads 1"):
        opened(learning(recipe_of(data), tmp_path), tmp_path)


def test_a_setting_that_came_later_is_as_it_was_before(data: Path, store: Path, tmp_path: Path) -> None:
    (tmp_path / "1-teacher").mkdir()
    for path in (store / "1-teacher").iterdir():
        (tmp_path / "1-teacher" / path.name).write_bytes(path.read_bytes())
    facts = json.loads((store / "1-teacher" / "store.json").read_text())
    facts["inputs"]["data"]["train"].pop("cutmix_side")
    (tmp_path / "1-teacher" / "store.json").write_text(json.dumps(facts))
    opened(learning(recipe_of(data), tmp_path), tmp_path)
    with pytest.raises(RecipeError, match=r"data.train.cutmix_side was None, is 'even'"):
        opened(learning(recipe_of(data, "data.train.cutmix_side=even"), tmp_path), tmp_path)
