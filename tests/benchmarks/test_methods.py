"""Every method's step is run beside KD's, on networks of seconds, and told as plain data. Times are not judged."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from kdscale.benchmarks import methods
from kdscale.benchmarks.methods import Entrant, Setting, field_of, held_bytes, recipes, row, step_bytes, storages, table
from kdscale.data import pack_arrays
from kdscale.engine.parallel import Session, connect
from kdscale.errors import NetworkError, RecipeError

CLASSES = 4


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    out, random = tmp_path_factory.mktemp("cifar"), np.random.default_rng(0)
    for split, count in (("train", 48), ("val", 8)):
        images = random.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        pack_arrays(images, np.arange(count) % CLASSES, out, split=split, name="cifar")
    return Setting(str(out), "resnet14", "resnet8", 8, ("machine.threads=1",))


@pytest.fixture(scope="module")
def session() -> Session:
    return connect()


def entered(kinds: list[str], setting: Setting, session: Session, folder: Path) -> dict[str, Entrant]:
    found, left_out = field_of(kinds, setting, session, folder)
    assert not left_out
    return {entrant.stage.phase.name: entrant for entrant in found}


def test_each_phase_is_held_against_kd(setting: Setting, session: Session, tmp_path: Path) -> None:
    found = entered(["shake", "takd", "multi_kd"], setting, session, tmp_path)
    assert list(found) == ["kd", "shake", "takd-assistant", "takd-student", "multi_kd"]
    assert all(entrant.base is found["kd"] and len(entrant.batches[0].labels) == 8 for entrant in found.values())
    methods.race(list(found.values()), 3)
    told = {name: row(entrant) for name, entrant in found.items()}
    assert told["kd"]["ratio"] == [1, 1, 1]
    assert told["kd"]["held_bytes"] == told["kd"]["step_bytes"] == told["kd"]["trained_beside_student"] == 0
    head = 64 * CLASSES + CLASSES
    assert told["shake"]["trained_beside_student"] == head
    assert 0 <= told["shake"]["held_bytes"] - 2 * 4 * head <= 8, "weights and momentum, and a clock"
    assert told["takd-assistant"]["trained_beside_student"] > head
    assert all(len(entry["seconds"]) == 3 and entry["milliseconds"] > 0 for entry in told.values())
    json.dumps(told)


def test_several_teachers_are_several_networks(setting: Setting, session: Session, tmp_path: Path) -> None:
    found = entered(["multi_kd"], setting, session, tmp_path)
    teacher = sum(storages([*(t := found["kd"].stage.frozen["teacher"]).parameters(), *t.buffers()]).values())
    assert held_bytes(found["multi_kd"].stage) - held_bytes(found["kd"].stage) == 2 * teacher


def test_a_step_keeps_what_its_backward_reads(setting: Setting, session: Session, tmp_path: Path) -> None:
    """A whole second network is learned by in DML: what it keeps is more than the student's share."""
    found = entered(["dml", "shake"], setting, session, tmp_path)
    kept = {name: step_bytes(entrant) for name, entrant in found.items()}
    maps = 8 * 16 * 32 * 32 * 4  # bytes of one map of the first stage
    assert kept["kd"] > 4 * maps
    assert kept["dml"] > 2 * kept["kd"]
    assert kept["kd"] < kept["shake"] < 1.1 * kept["kd"]


def test_storages_are_counted_once() -> None:
    module = nn.Linear(3, 4, bias=False)
    assert storages([module.weight, module.weight[1:], module.weight.t()]) == {module.weight.data_ptr(): 48}


def test_a_token_student_has_a_kd_of_its_own(setting: Setting) -> None:
    found = list(recipes(["deit", "kd"], setting))
    assert found == [("kd", "resnet8"), ("kd", "deit_tiny_distilled_patch16_224"), ("deit", "deit_tiny_distilled_patch16_224")]


def test_what_cannot_be_built_is_told(
    setting: Setting, session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = methods.build_stage

    def refusing(recipe: Any, number: int, *rest: Any) -> Any:
        if recipe.phases[number].name == "takd-student":
            raise NetworkError("not on this network")
        return build(recipe, number, *rest)

    monkeypatch.setattr(methods, "build_stage", refusing)
    found, left_out = field_of(["takd", "supervised"], setting, session, tmp_path)
    assert [entrant.kind for entrant in found] == ["kd", "supervised"]
    assert left_out == {"takd": "not on this network"}
    with pytest.raises(RecipeError, match="nearest: "):
        field_of(["takdd"], setting, session, tmp_path)


def test_the_table_is_aligned_markdown() -> None:
    told = {"method": "kd", "phase": "kd", "student": "a", "milliseconds": 12.34, "ratio": [0.9, 1, 1.1]}
    told |= {"trained_beside_student": 1234, "held_bytes": -40_000, "step_bytes": 2_500_000}
    lines = list(table([told, {**told, "student": "b"}], "a"))
    assert len({len(line) for line in lines}) == 1
    assert [cell.strip() for cell in lines[2].split("|")[1:-1]] == [
        "kd", "kd", "12.3", "1.00", "0.90 .. 1.10", "1,234", "+0.0", "+2.5",
    ]  # fmt: skip
    assert lines[3].startswith("| kd (b) |")


def test_the_command_writes_what_it_prints(setting: Setting, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--data", setting.data, "--pair", "resnet14:resnet8", "--batch", "8", "--rounds", "2", "--methods", "supervised"]
    methods.main([*words, "--out", str(tmp_path / "deep" / "told"), "machine.threads=1", "machine.channels_last=true"])
    told = json.loads((tmp_path / "deep" / "told.json").read_text())
    printed = capsys.readouterr().out
    assert (tmp_path / "deep" / "told.md").read_text() == printed
    assert printed.startswith("resnet14 -> resnet8, batch 8 on ")
    assert [entry["method"] for entry in told["rows"]] == ["kd", "supervised"]
    assert told["threads"] == torch.get_num_threads() == 1
    assert told["set"] == ["machine.threads=1", "machine.channels_last=true"]


@pytest.mark.parametrize("words", [["--pair", "resnet8"], ["--rounds", "1"], ["--batch", "x"]])
def test_words_that_say_nothing(words: list[str], setting: Setting, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        methods.main(["--data", setting.data, *words])
    assert words[0] in capsys.readouterr().err


@pytest.mark.slow
def test_every_registered_method_takes_its_step(setting: Setting, session: Session, tmp_path: Path) -> None:
    kinds = [kind for kind, cls in methods.Method.registry.items() if cls.__module__.startswith("kdscale.")]
    found, left_out = field_of(kinds, replace(setting, student="resnet14"), session, tmp_path)
    assert not left_out
    methods.race(found, 2)
    assert all(np.isfinite(row(entrant)["ratio"]).all() for entrant in found)
