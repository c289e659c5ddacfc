"""A method of one's own from its first step to its export, in processes that know nothing of each other but the run's folder.

``beside`` has the method in a module beside the recipe, ``packed`` in a package there, ``within`` in the recipe's own file.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from kdscale.export.card import read_card
from tests.engine import small

METHOD = """
from __future__ import annotations

from typing import ClassVar, Literal

from kdscale.methods import Distiller, Method
from kdscale.methods.kd import KD, KDDistiller
from kdscale.recipe import Needs, Paper, value
from kdscale.types import Context


@value
class Mine(Method):
    temperature: float = 4.0
    kind: Literal["kd_mine"] = "kd_mine"
    paper: ClassVar[Paper] = Paper("A title of my own", "Me", 2026, "nowhere yet")

    def needs(self) -> Needs:
        return Needs(frozen=("teacher",))

    def build(self, context: Context) -> Distiller:
        return KDDistiller(KD(self.temperature), context)
"""
RECIPE = """
from kdscale.recipe import Augment, Data, Machine, Model, Phase, Recipe

recipe = Recipe(
    networks={{"student": Model("resnet8"), "teacher": Model("cnn6", floor=0)}},
    data=Data({data!r}, batch=24, train=Augment.cifar(16, 2), eval_crop=1.0, workers=0),
    phases=(Phase(Mine(2.0), steps=2),),
    machine=Machine(log_every=1, threads=1),
)
"""
NAMES = ("beside", "packed", "within")
Place = SimpleNamespace  # folder, the two recipe files and the two runs


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Both recipes trained, from a working folder in which neither lies."""
    folder = tmp_path_factory.mktemp("own")
    recipe = RECIPE.format(data=str(small.shards(folder / "data")))
    (folder / "kd_of_mine.py").write_text(METHOD)
    (folder / "beside.py").write_text(f"from kd_of_mine import Mine\n{recipe}")
    (folder / "within.py").write_text(METHOD + recipe)
    (folder / "pack_of_mine" / "methods").mkdir(parents=True)
    (folder / "pack_of_mine" / "methods" / "__init__.py").write_text(METHOD)
    (folder / "packed.py").write_text(f"from pack_of_mine.methods import Mine\n{recipe}")
    for name in NAMES:
        small.kdscale("train", folder / f"{name}.py", "--out", folder / name)
    return Place(folder=folder, beside=folder / "beside", within=folder / "within")


def refused(*words: str | Path) -> str:
    said = small.kdscale(*words, expect=64)
    assert said.stderr.count("\n") == 1, said
    return said.stderr


@pytest.mark.parametrize("name", ["beside", pytest.param("packed", marks=pytest.mark.slow), "within"])
def test_what_it_trained_is_measured_in_other_processes(place: Place, name: str) -> None:
    run, table = place.folder / name, place.folder / f"{name}.jsonl"
    assert "top1" in small.kdscale("evaluate", run).stdout
    assert "gap " in small.kdscale("evaluate", run, "--gap").stdout
    assert "appended" in small.kdscale("results", run, "--file", table).stdout
    assert json.loads(table.read_text())["resolved"]["phases"][0]["method"] == {"kind": "kd_mine", "temperature": 2.0}
    small.kdscale("train", place.folder / f"{name}.py", "steps=+1", "--out", run)
    small.kdscale("train", run / "recipe.json", "steps=+1", "--out", run)
    assert small.lines(run)[-1]["step"] == 4


def test_what_the_folder_remembers_is_only_what_is_not_shipped(place: Place) -> None:
    told = json.loads((place.beside / "methods.json").read_text())
    assert told["kd_mine"].keys() == {"module", "file", "sha256"}
    assert (told["kd_mine"]["module"], told["kd_mine"]["file"]) == ("kd_of_mine", str(place.folder / "kd_of_mine.py"))
    small.kdscale("train", place.folder / "within.py", "method=supervised", "steps=1", "--out", place.folder / "shipped")
    assert not (place.folder / "shipped" / "methods.json").exists()


def test_the_variable_makes_it_known_to_every_command(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    text = place.folder / "r.json"
    text.write_text(small.kdscale("show", place.folder / "within.py", "--json").stdout)
    assert "KDSCALE_METHODS" in refused("show", "methods", "kd_mine")
    assert "there is no method 'kd_mine'" in refused("train", text, "--out", place.folder / "text")
    monkeypatch.setenv("KDSCALE_METHODS", f"kd_of_none.py,{place.folder / 'kd_of_mine.py'}")
    assert "KDSCALE_METHODS names 'kd_of_none.py'" in refused("show", "methods")
    monkeypatch.setenv("KDSCALE_METHODS", str(place.folder / "kd_of_mine.py"))
    assert "A title of my own" in small.kdscale("show", "methods", "kd_mine").stdout
    small.kdscale("train", text, "--out", place.folder / "text")
    monkeypatch.chdir(place.folder)
    monkeypatch.setenv("KDSCALE_METHODS", "kd_of_mine")
    assert "A title of my own" in small.kdscale("show", "methods", "kd_mine").stdout


def test_a_file_that_is_gone_or_has_changed_is_one_line(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    file, aside = place.folder / "kd_of_mine.py", place.folder / "aside" / "another.py"
    aside.parent.mkdir()
    file.rename(aside)
    try:
        assert f"'kd_mine' of {file}, which is gone: put it back, or set KDSCALE_METHODS" in refused("evaluate", place.beside)
        monkeypatch.setenv("KDSCALE_METHODS", str(aside))
        small.kdscale("evaluate", place.beside)
        monkeypatch.delenv("KDSCALE_METHODS")
        file.write_text(METHOD.replace("temperature", "tau"))
        line = refused("evaluate", place.beside)
        assert "'kd_mine' has no field 'temperature'" in line
        assert "has changed since the run was trained" in line
        file.write_text("")
        assert f"{file}, which has it no longer" in refused("evaluate", place.beside)
        file.write_text("1 / 0\n")
        assert "ZeroDivisionError: division by zero (kd_of_mine.py, line 1)" in refused("evaluate", place.beside)
    finally:
        aside.rename(file)


def test_a_folder_brings_no_code_along(place: Place, tmp_path: Path) -> None:
    """Files in a run's folder are data: of its methods only the file elsewhere counts, by the path that training wrote."""
    brought = tmp_path / "run"
    brought.mkdir()
    (brought / "recipe.json").write_text((place.beside / "recipe.json").read_text())
    told = json.loads((place.beside / "methods.json").read_text())
    told["kd_mine"]["file"] = str(tmp_path / "elsewhere" / "kd_of_mine.py")
    (brought / "methods.json").write_text(json.dumps(told))
    (brought / "kd_of_mine.py").write_text("raise SystemExit(3)\n")
    assert "which is gone" in refused("evaluate", brought)
    told["kd_mine"]["file"] = str(brought / "kd_of_mine.py")
    (brought / "methods.json").write_text(json.dumps(told))
    assert "which lies in the run's own folder" in refused("evaluate", brought)
    told["kd_mine"] |= {"module": "typer.main", "file": str(place.folder / "kd_of_mine.py")}
    (brought / "methods.json").write_text(json.dumps(told))
    assert "which is not the module 'typer.main'" in refused("evaluate", brought)
    (brought / "methods.json").write_text('{"kd_mine": 3}')
    assert "methods.json is damaged" in refused("evaluate", brought)


def test_a_module_of_the_name_of_another_is_not_taken_for_it(place: Place, tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("Mine = 3\n")
    (tmp_path / "r.py").write_text("import typer\n")
    assert f"and not {tmp_path / 'typer.py'}: give the latter a name of its own" in refused("show", tmp_path / "r.py")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["beside", "within"])
def test_its_export_names_it(place: Place, name: str) -> None:
    small.kdscale("export", place.folder / name, place.folder / f"{name}-export", launched=True)
    card = (place.folder / f"{name}-export" / "README.md").read_text()
    assert "the method `kd_mine` (A title of my own)" in card
    assert "method:kd_mine" in read_card(card)[1].tags


@pytest.mark.slow
def test_ranks_and_sweeps_know_it(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = place.folder / "ranks"
    small.kdscale("train", place.folder / "beside.py", "--out", ranks, ranks=2, launched=True)
    assert small.verdict(ranks)["code"] == 0
    monkeypatch.setenv("KDSCALE_METHODS", str(place.folder / "kd_of_mine.py"))
    (place.folder / "swept.json").write_text(small.kdscale("show", place.folder / "beside.py", "--json").stdout)
    recipes = [place.folder / "swept.json", place.folder / "beside.py"]
    words = ("sweep", *recipes, "--grid", "seed=0,1", "--out", place.folder / "sweep")
    small.kdscale(*words, launched=True)
    again = small.kdscale(*words, launched=True)
    assert again.stdout.count("skipped") == 4
    assert os.listdir(place.folder / "sweep").count("table.md") == 1
