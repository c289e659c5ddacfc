"""A stored teacher says what the live one says, wherever a run starts and however it is dealt; what does not fit is refused."""

from __future__ import annotations

import dataclasses
import json
import signal
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdscale.engine import teach as teaching
from kdscale.engine.meter import Meter
from kdscale.engine.parallel import Session
from kdscale.engine.stage import build_stage
from kdscale.engine.stored.answers import Form, checksums, witness
from kdscale.engine.stored.store import open_store
from kdscale.engine.teach import Wish, teach
from kdscale.errors import DataError, RecipeError, RunError
from kdscale.methods import Deit, MultiKD, Shake, StageByStage
from kdscale.recipe import AdamW, Model, Phase, Recipe, Stored, override, resolve
from tests.engine import small, stages
from tests.engine.launch import two_ranks
from tests.engine.taught import BYTES
from tests.engine.test_run import same

EPOCHS = 2
SETTINGS = ["data.repeats=3", "machine.accumulate=2"]  # beside mixup, cutmix, smoothing and EMA


def recipe_of(data: Path, *words: str, method: Any = None, **changes: Any) -> Recipe:
    phase = Phase(method or Shake(), epochs=EPOCHS, name="student", optimizer=AdamW(1e-3, clip=1.0))
    return override(small.recipe(data, phases=(phase,), **changes), [*SETTINGS, *words])


def taught(recipe: Recipe, folder: Path, session: Session, **wish: Any) -> Path:
    teach(recipe, folder, session, lambda text: None, Wish(**wish))
    return folder


def learning(recipe: Recipe, store: Path | None, *roles: str) -> Recipe:
    stored = {} if store is None else dict.fromkeys(roles or ("teacher",), Stored(str(store)))
    return resolve(dataclasses.replace(recipe, networks={**recipe.networks, **stored}))


def steps_of(recipe: Recipe, session: Session, first: int = 0, count: int | None = None) -> list[dict[str, Any]]:
    stage = build_stage(recipe, 0, session, None)
    return stages.run(stage, Meter(session), first, stage.plan.total_steps - first if count is None else count)


@pytest.fixture(scope="module")
def live(data: Path, session: Session) -> list[dict[str, Any]]:
    """Losses and norms of two epochs with the network itself."""
    return steps_of(learning(recipe_of(data), None), session)


@pytest.fixture(scope="module")
def store(data: Path, session: Session, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teaching, "SHARD", BYTES)
        return taught(recipe_of(data), tmp_path_factory.mktemp("store") / "s", session, type="fp32")


def shards(store: Path) -> list[Path]:
    return sorted(store.glob("1-teacher/*.npy"))


def test_two_epochs_of_a_stored_teacher_are_the_live_ones(
    data: Path, session: Session, store: Path, live: list[dict[str, Any]]
) -> None:
    assert len(shards(store)) == 4
    assert not list(store.glob("**/*.tmp*"))
    assert not (store / "lock").exists()
    assert steps_of(learning(recipe_of(data), store), session) == live  # bit by bit: the micro-batches are the same
    other = steps_of(learning(recipe_of(data, "machine.accumulate=1"), store), session)
    for mine, theirs in zip(other, live, strict=True):
        assert mine["losses"] == pytest.approx(theirs["losses"], abs=1e-5)


def test_half_precision_keeps_the_losses_within_a_thousandth(
    data: Path, session: Session, tmp_path: Path, live: list[dict[str, Any]]
) -> None:
    half = taught(recipe_of(data), tmp_path / "half", session)
    for mine, theirs in zip(steps_of(learning(recipe_of(data), half), session, 0, 5), live[:5], strict=True):
        assert mine["losses"] == pytest.approx(theirs["losses"], abs=1e-3)
    rows = np.load(shards(half)[0])
    assert (len(rows), rows.itemsize) == (10 * 24, 12 + 2 * small.CLASSES)


def test_labels_alone_are_all_that_the_hard_token_learns_from(data: Path, session: Session, tmp_path: Path) -> None:
    recipe = recipe_of(data, method=Deit())
    labels = taught(recipe, tmp_path / "labels", session, keep="label")
    assert steps_of(learning(recipe, labels), session, 6) == steps_of(learning(recipe, None), session, 6)


def test_two_teachers_have_a_store_each(data: Path, session: Session, tmp_path: Path) -> None:
    networks = {**small.recipe(data).networks, "teacher2": Model("wrn_16_1", floor=0)}
    recipe = recipe_of(data, method=MultiKD(teachers=2), networks=networks)
    both = taught(recipe, tmp_path / "both", session, type="fp32")
    assert {p.parent.name for p in both.glob("*/store.json")} == {"1-teacher", "1-teacher2"}
    whole = steps_of(learning(recipe, None), session, 0, 2)
    assert steps_of(learning(recipe, both, "teacher", "teacher2"), session, 0, 2) == whole
    assert steps_of(learning(recipe, both, "teacher2"), session, 0, 2) == whole  # the other one is live


def says_what_the_network_says(recipe: Recipe, store: Path, session: Session, first: int = 0) -> None:
    """Every micro-batch of a rank, from step ``first`` to the end. ``session``: its rank and size are those of the stream."""
    alone = dataclasses.replace(session, rank=0, size=1)
    live = build_stage(learning(recipe, None), 0, alone, None)
    stage = build_stage(learning(recipe, store), 0, alone, None)
    stage.session, seen = session, 0
    with closing(stage.stream()) as stream:
        for batch in stream.batches(first):
            said = stage.teach(batch, stage.progress(first))["teacher"].logits
            torch.testing.assert_close(said, live.frozen["teacher"](batch.images).logits, rtol=0, atol=1e-6)
            seen += 1
    assert seen == (stage.plan.total_steps - first) * recipe.machine.accumulate


@pytest.mark.parametrize(("first", "rank", "ranks", "accumulate"), [(0, 0, 1, 1), (7, 0, 1, 2), (5, 1, 2, 1), (3, 1, 2, 2)])
def test_any_step_rank_and_accumulation_finds_its_own_answers(
    data: Path, session: Session, store: Path, first: int, rank: int, ranks: int, accumulate: int
) -> None:
    mine = dataclasses.replace(session, rank=rank, size=ranks)
    says_what_the_network_says(recipe_of(data, f"machine.accumulate={accumulate}"), store, mine, first)


@pytest.mark.parametrize(("tail", "rows"), [("partial", 2 * small.TRAIN), ("drop", 2 * 96)])
def test_a_partial_and_a_dropped_tail(data: Path, session: Session, tmp_path: Path, tail: str, rows: int) -> None:
    recipe = recipe_of(data, "data.batch=32", f"data.epoch_tail={tail}", "data.repeats=1")
    place = taught(recipe, tmp_path / "s", session, type="fp32")
    assert sum(len(np.load(path)) for path in shards(place)) == rows
    says_what_the_network_says(recipe, place, session, 2)


class TestForm:
    logits = torch.tensor([[2.0, -1.0, 0.5, 0.25, -3.0], [0.0, 4.0, 4.5, -2.0, 1.0]])
    device = torch.device("cpu")

    def through(self, form: Form) -> torch.Tensor:
        rows = np.zeros(2, form.dtype)
        for name, column in form.packed(self.logits).items():
            rows[name] = column
        return form.logits(rows, self.device)

    def test_what_is_left_out_shares_its_weight_evenly(self) -> None:
        back = self.through(Form(2, "fp32", 5))
        before, after = self.logits.softmax(1), back.softmax(1)
        kept = self.logits.topk(2).indices
        torch.testing.assert_close(back.gather(1, kept), self.logits.gather(1, kept))
        torch.testing.assert_close(after.gather(1, kept), before.gather(1, kept))
        rest = after.scatter(1, kept, torch.nan)
        expected = (1 - before.gather(1, kept).sum(1)) / 3
        for row, share in zip(rest, expected, strict=True):
            torch.testing.assert_close(row[~row.isnan()], share.expand(3))

    @pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
    def test_a_label_alone_is_certain_and_finite(self, temperature: float) -> None:
        back = self.through(Form("label", "fp16", 5))
        assert back.isfinite().all()
        expected = torch.nn.functional.one_hot(self.logits.argmax(1), 5).float()
        assert torch.equal((back / temperature).softmax(1), expected)

    def test_every_logit(self) -> None:
        assert torch.equal(self.through(Form("all", "fp32", 5)), self.logits)
        torch.testing.assert_close(self.through(Form("all", "fp16", 5)), self.logits, rtol=1e-3, atol=1e-3)

    def test_how_many_can_be_kept(self) -> None:
        with pytest.raises(RecipeError, match=r"5 of 5 classes cannot be kept: give 1 to 4, or 'all'"):
            Form(5, "fp16", 5)

    def test_a_row_of_another_place_has_another_checksum(self) -> None:
        rows = np.zeros(2, Form("all", "fp32", 5).dtype)
        first, second = checksums(rows, np.array([7, 8]))
        assert first != second

    def test_a_witness_tells_flips_shifts_and_mixes_apart(self) -> None:
        images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        for other in (images.flip(3), images.flip(2), images.roll(1, 3), 0.9 * images + 0.1 * images.flip(0)):
            assert ((witness(images) - witness(other)).abs() > 1e-3).any()


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
    from kdscale.data import open_split
    from kdscale.recipe.resolve import phase_data

    return open_store(recipe, 0, "teacher", store, open_split(phase_data(recipe.phases[0]), "train").info)


def test_other_pixels_of_the_same_names_are_other_data(store: Path, tmp_path: Path) -> None:
    from kdscale.data import pack_arrays

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


def test_nothing_to_teach(data: Path, session: Session, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no phase of this recipe has a frozen network"):
        taught(small.two_phases(data), tmp_path / "s", session)
    broken = dataclasses.replace(recipe_of(data), networks={**recipe_of(data).networks, "teacher": Model("cnn6", floor=0.99)})
    with pytest.raises(RunError, match=r"below its floor"):
        taught(broken, tmp_path / "s", session)


def whole_run(file: Path, store: Path | None, out: Path, *words: str, ranks: int = 1) -> Path:
    stored = [] if store is None else [f"networks.teacher=stored:{store}"]
    small.kdscale("train", file, *stored, *words, "--out", out, ranks=ranks)
    return out


@pytest.mark.slow
@pytest.mark.ranks
def test_two_ranks_write_the_bytes_of_one_and_learn_the_same(data: Path, store: Path, tmp_path: Path) -> None:
    file = small.write(tmp_path / "r.json", recipe_of(data))
    two_ranks("tests.engine.taught", file, tmp_path / "two")
    assert [p.read_bytes() for p in shards(tmp_path / "two")] == [p.read_bytes() for p in shards(store)]
    mine, theirs = (
        small.losses(whole_run(file, place, tmp_path / name, "machine.accumulate=1", ranks=2))
        for place, name in ((tmp_path / "two", "stored"), (None, "live"))
    )
    for a, b in zip(mine, theirs, strict=True):
        assert a[4] == pytest.approx(b[4], abs=1e-5)


@pytest.mark.slow
def test_killed_in_mid_epoch_a_run_with_a_store_ends_bit_by_bit(data: Path, store: Path, tmp_path: Path) -> None:
    file = small.write(tmp_path / "r.json", recipe_of(data))
    whole = whole_run(file, store, tmp_path / "whole")
    process = small.start("train", file, f"networks.teacher=stored:{store}", "--out", tmp_path / "out")
    small.wait_for_step(process, 7)
    process.kill()
    process.wait()
    same(whole_run(file, store, tmp_path / "out"), whole)


@pytest.mark.slow
def test_an_interrupted_teach_goes_on_to_the_same_bytes(data: Path, tmp_path: Path) -> None:
    file = small.write(tmp_path / "r.json", recipe_of(data, "epochs=16", "networks.teacher=wrn_40_2"))
    small.kdscale("teach", file, "--out", tmp_path / "whole", "--keep", "2")
    words = ("teach", file, "--out", tmp_path / "cut", "--keep", "2")
    for number, code in ((signal.SIGTERM, 75), (signal.SIGKILL, -signal.SIGKILL)):
        process = small.start(*words)
        small.wait_for_step(process, 5)
        process.send_signal(number)
        process.communicate(timeout=120)
        assert process.returncode == code
        assert not shards(tmp_path / "cut")  # its one shard was not whole
    small.kdscale(*words)
    assert [p.read_bytes() for p in shards(tmp_path / "cut")] == [p.read_bytes() for p in shards(tmp_path / "whole")]
