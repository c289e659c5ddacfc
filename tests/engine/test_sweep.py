"""Which runs a sweep has, in which folders, on which teachers: read from its plan; tests/cli runs whole sweeps."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kdscale.engine import sweep
from kdscale.engine.faults.ends import STOPPED
from kdscale.engine.grid import folder_name, points, recipe_name
from kdscale.engine.sweep import Job, Started, Sweep, jobs, share_of
from kdscale.errors import RecipeError
from kdscale.recipe import to_json

PAGE = """
from kdscale.methods import KD, Supervised
from kdscale.recipe import Data, Model, Phase, Recipe

def taught(name, maker, data="x"):
    networks = {{"student": Model("resnet8"), "teacher": Model(name, made_by={page!r} + ":" + maker)}}
    return Recipe(networks=networks, data=Data(data), phases=(Phase(KD(), steps=8),))

recipes = {{
    "kd": taught("here/cnn", "cnn"), "cousin": taught("there/cnn", "other"), "twin": taught("elsewhere/net", "cnn"),
    "alone": taught("here/cnn", "cnn").with_method(Supervised()),
    "hen": taught("here/hen", "egg"), "egg": taught("here/egg", "hen"), "chain": taught("here/cnn", "link"),
    "link": taught("far/cnn", "cnn"),
    "late": Recipe(
        networks={{"student": Model("resnet8")}}, data=Data("x"),
        phases=(Phase(KD(), steps=8, networks={{"teacher": Model("here/cnn", made_by={page!r} + ":cnn")}}),),
    ),
}}
cnn = Recipe(networks={{"student": Model("cnn6")}}, data=Data("x"), phases=(Phase(Supervised(), steps=4),))
other = cnn.with_method(Supervised())
"""


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "page.py"
    path.write_text(PAGE.format(page=str(path)))
    return path


def planned(page: Path, *names: str, grid: tuple[str, ...] = ()) -> list[Job]:
    return jobs([f"{page}:{name}" for name in names], [], grid, Path("out"))


@pytest.mark.parametrize(
    ("axis", "values"),
    [
        ("a=1,2", ["1", "2"]),
        ("a=[1,2],[3]", ["[1,2]", "[3]"]),
        ("a=[[1,2],[3,4]],[[5]]", ["[[1,2],[3,4]]", "[[5]]"]),
        ("a={kind: kd, tau: 4},{kind: kd}", ["{kind: kd, tau: 4}", "{kind: kd}"]),
    ],
)
def test_commas_within_brackets_part_nothing(axis: str, values: list[str]) -> None:
    assert list(points([axis])) == [(f"a={value}",) for value in values]


def test_only_folders_that_two_runs_have_are_told(page: Path) -> None:
    with pytest.raises(RecipeError, match=r"one folder: \S+seed=1;"):
        planned(page, "alone", grid=("seed=0,1,1",))


def test_a_run_is_called_by_its_recipe_wherever_that_lies(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (page.parent / "elsewhere").mkdir()
    monkeypatch.chdir(page.parent / "elsewhere")
    for reference in (f"{page}:kd", "../page.py:kd", "../page:kd"):
        assert [job.out.name for job in jobs([reference], [], ["seed=0"], Path("out"))][-1] == "page-kd-seed=0"
    assert recipe_name("cifar100/resnet56_resnet20:kd") == "cifar100-resnet56_resnet20-kd"
    assert recipe_name("quickstart") == "quickstart"


def test_a_sweep_that_an_earlier_version_began_goes_on_where_it_lies(page: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    former = re.sub(r"[^A-Za-z0-9_.=-]+", "-", f"{page}:cnn").strip("-") + "-seed=1"
    (tmp_path / "out" / former).mkdir()
    runs = jobs([f"{page}:cnn"], [], ["seed=0,1"], tmp_path / "out")
    assert [run.out.name for run in runs] == ["page-cnn-seed=0", former]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("über_Größe", "über_Größe"),
        ("u\u0308ber", "über"),
        ("学生=大", "学生=大"),
        ("../a b", "a-b"),
        ("-x", "x"),
        (".-.hidden", "hidden"),
        ("epochs=+3", "epochs=+3"),
        ("seed=-1", "seed=-1"),
    ],
)
def test_a_folder_keeps_letters_of_any_script_and_is_neither_hidden_nor_an_option(text: str, name: str) -> None:
    assert folder_name(text) == name


def test_recipes_whose_folders_would_be_one_are_told(page: Path) -> None:
    other = page.parent / "other" / "page.py"
    other.parent.mkdir()
    other.write_text(page.read_text())
    with pytest.raises(RecipeError, match="one folder: out/page-alone; give one of them another recipe name"):
        jobs([f"{page}:alone", f"{other}:alone"], [], [], Path("out"))
    teachers = page.parent / "teachers.json"
    teachers.write_text(to_json(jobs([f"{page}:cnn"], [], [], Path("out"))[-1].recipe))
    with pytest.raises(RecipeError, match="one folder: out/teachers;"):
        jobs([str(teachers)], [], [], Path("out"))


def test_one_teacher_for_all_that_ask_for_it_and_none_for_who_does_not(page: Path) -> None:
    made = planned(page, "kd", "twin", "late", grid=("seed=0,1",))
    assert [job.out for job in made if job.exported] == [Path("out/teachers/cnn")]
    assert all(job.after == (made[0],) for job in made[1:])
    assert made[-1].recipe.phases[0].networks["teacher"].name == "out/teachers/cnn/export"  # type: ignore[union-attr]
    assert [job.exported for job in planned(page, "alone")] == [False]


def test_teachers_that_differ_have_folders_of_their_own(page: Path) -> None:
    made = planned(page, "kd", "cousin", grid=("data.source=x,y",))
    teachers = {job.out.name: (job.reference.rpartition(":")[2], job.words) for job in made if job.exported}
    assert teachers == {
        "cnn": ("cnn", ("data.source=x",)),
        "cnn-2": ("cnn", ("data.source=y",)),
        "cnn-3": ("other", ("data.source=x",)),
        "cnn-4": ("other", ("data.source=y",)),
    }
    for job in made:
        assert all(job.words[0] == teacher.words[0] for teacher in job.after)
    chain = planned(page, "chain")
    assert [job.out.name for job in chain[:-1]] == ["cnn", "cnn-2"]
    assert chain[1].after == (chain[0],)


def test_recipes_that_wait_for_one_another_are_told(page: Path) -> None:
    with pytest.raises(RecipeError, match=r"page.py:hen needs a teacher made by \S+egg needs a teacher made by \S+hen:"):
        planned(page, "hen")


def test_nothing_outlives_a_sweep_that_fails(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Started] = []

    class Sleeper(Started):
        def next(self) -> bool:
            self.process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
            started.append(self)
            return True

    def say(line: str) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(sweep, "Started", Sleeper)
    with pytest.raises(BrokenPipeError):
        Sweep(jobs([f"{page}:alone"], [], (), tmp_path), 1, say).run()
    assert started[0].process.wait(10) == -signal.SIGTERM


def test_a_run_that_leaves_before_the_end_of_a_job_is_no_failure(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Sweep, "_collect", lambda a_sweep: [a_sweep._end(s.job, "stopped", "") for s in a_sweep.running])
    monkeypatch.setattr(Started, "next", lambda started: True)
    todo = jobs([f"{page}:alone"], [], (), tmp_path)
    a_sweep = Sweep(todo, 1, lambda text: a_sweep.running.clear() if "stopped" in text else None)
    assert a_sweep.run() == STOPPED


def test_side_by_side_each_takes_the_device_with_fewest_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    monkeypatch.setattr(Started, "next", lambda started: True)
    (job,) = jobs([f"{page}:alone"], [], (), tmp_path)
    a_sweep = Sweep([], 4, lambda text: None)
    for _ in range(3):
        a_sweep.running.append(Started(job, a_sweep._device()))
    assert [started.given["CUDA_VISIBLE_DEVICES"] for started in a_sweep.running] == ["2", "5", "2"]
    del a_sweep.running[0]
    assert a_sweep._device() == {"CUDA_VISIBLE_DEVICES": "2"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    assert Sweep([], 4, lambda text: None)._device() == {}


def test_runs_side_by_side_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("KDSCALE_CORES", "16")
    assert share_of(1) == {}
    assert share_of(4) == {"OMP_NUM_THREADS": "4", "KDSCALE_CORES": "4"}
    assert share_of(40) == {"OMP_NUM_THREADS": "1", "KDSCALE_CORES": "1"}
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert share_of(4)["OMP_NUM_THREADS"] == "2"


def test_a_run_that_was_stopped_before_it_listened_is_stopped(page: Path, tmp_path: Path) -> None:
    todo = jobs([f"{page}:alone"], [], (), tmp_path)
    told: list[str] = []
    a_sweep = Sweep(todo, 1, told.append)
    a_sweep._start()
    a_sweep._stop()
    assert a_sweep.running[0].process.wait(30) in (-signal.SIGTERM, STOPPED)
    a_sweep._collect()
    assert todo[0].state == "stopped"
