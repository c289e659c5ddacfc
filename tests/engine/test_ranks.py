"""Two processes: the same curve as one, and a resume that does not mind how many there were."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kdscale.methods import KD, Supervised
from kdscale.recipe import SGD, Augment, Data, Model, Phase, Recipe, override
from tests.engine import small
from tests.engine.test_run import same

pytestmark = pytest.mark.ranks


@pytest.fixture(scope="module")
def two(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(recipe file, output) of an uninterrupted run on two ranks of torchrun's; those to which it is compared are forks."""
    folder = tmp_path_factory.mktemp("two")
    recipe = small.write(folder / "r.json", small.recipe(data))
    small.kdscale("train", recipe, "--out", folder / "out", ranks=2, launched=True)
    return recipe, folder / "out"


def close(a: Path, b: Path, tolerance: float = 1e-5) -> None:
    """Losses of every step equal within rounding, and the evaluations counted the same images."""
    mine, theirs = small.losses(a), small.losses(b)
    assert len(mine) == len(theirs)
    for x, y in zip(mine, theirs, strict=True):
        assert x[1] == y[1]
        assert x[3] == pytest.approx(y[3], abs=tolerance)
    assert [(e["name"], e["count"]) for e in small.lines(a, "evaluation")] == [
        (e["name"], e["count"]) for e in small.lines(b, "evaluation")
    ]


def test_two_ranks_equal_one_with_drop_path_mixing_and_ema(two: tuple[Path, Path], tmp_path: Path) -> None:
    recipe, out = two
    small.kdscale("train", recipe, "--out", tmp_path / "one")
    close(tmp_path / "one", out)
    small.kdscale("train", recipe, "machine.accumulate=2", "--out", tmp_path / "accumulated")
    close(tmp_path / "accumulated", out)


def test_killed_on_two_ranks_it_continues_to_the_same_bits(two: tuple[Path, Path], tmp_path: Path) -> None:
    recipe, whole = two
    process = small.start("train", recipe, "--out", tmp_path / "out", ranks=2)
    small.wait_for_step(process, 8)
    process.kill()
    process.wait()
    done = small.kdscale("train", recipe, "--out", tmp_path / "out", ranks=2)
    assert "from step" in done.stdout
    same(tmp_path / "out", whole)


def test_a_launcher_that_is_asked_to_stop_leaves_a_save_and_a_verdict(two: tuple[Path, Path], tmp_path: Path) -> None:
    """torchrun hands the signal to its ranks and turns their 75 into 1: the verdict file says how it ended. One rank goes on."""
    recipe, whole = two
    process = small.start("train", recipe, "--out", tmp_path / "out", ranks=2, launched=True)
    small.wait_for_step(process, 5)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert small.verdict(tmp_path / "out")["code"] == 75
    small.kdscale("train", recipe, "--out", tmp_path / "out")
    close(tmp_path / "out", whole)


def test_begun_on_one_rank_it_goes_on_with_two(two: tuple[Path, Path], tmp_path: Path) -> None:
    recipe, whole = two
    process = small.start("train", recipe, "--out", tmp_path / "out")
    small.wait_for_step(process, 9)
    process.kill()
    process.wait()
    done = small.kdscale("train", recipe, "--out", tmp_path / "out", ranks=2)
    assert "from step" in done.stdout
    close(tmp_path / "out", whole)


def test_synchronised_batch_norm_makes_ranks_a_detail(data: Path, tmp_path: Path) -> None:
    """A CNN with BatchNorm, statistics over all ranks: every step of two ranks equals that of one."""
    recipe = Recipe(
        networks={"student": Model("cnn6"), "teacher": Model("wrn_16_1", floor=0)},
        data=Data(str(data), batch=24, train=Augment(size=small.SIDE, crop="pad", pad=2), eval_crop=1.0, workers=0),
        phases=(Phase(KD(), steps=12, optimizer=SGD(0.05)),),
        batch_norm="sync",
        machine=small.recipe(data).machine,
    )
    path = small.write(tmp_path / "r.json", recipe)
    small.kdscale("train", path, "--out", tmp_path / "one")
    small.kdscale("train", path, "--out", tmp_path / "two", ranks=2)
    close(tmp_path / "one", tmp_path / "two", 1e-4)


def test_local_batch_norm_resumes_to_the_same_bits(data: Path, tmp_path: Path) -> None:
    """Each rank has statistics of its own between saves, and gets its own back."""
    recipe = override(small.two_phases(data), ["phases.teacher.steps=9", "phases.student.steps=3"])
    path = small.write(tmp_path / "r.json", recipe)
    small.kdscale("train", path, "--out", tmp_path / "whole", ranks=2)
    process = small.start("train", path, "--out", tmp_path / "out", ranks=2)
    small.wait_for_step(process, 4)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert small.verdict(tmp_path / "out")["code"] == 75
    small.kdscale("train", path, "--out", tmp_path / "out", ranks=2)
    same(tmp_path / "out", tmp_path / "whole", "01-teacher")


def test_a_data_error_of_one_rank_ends_all_with_its_line(data: Path, tmp_path: Path) -> None:
    """One byte of one image is flipped: whichever rank meets it, the run ends at once, in one line."""
    import shutil

    broken = tmp_path / "data"
    shutil.copytree(data, broken)
    shard = next((broken / "train").glob("*.tar"))
    content = bytearray(shard.read_bytes())
    place = content.find(b"IDAT", len(content) // 2) + 20
    content[place] ^= 0xFF
    shard.write_bytes(bytes(content))
    path = small.write(tmp_path / "r.json", small.recipe(broken))
    failed = small.kdscale("train", path, "--out", tmp_path / "out", ranks=2, expect=None)
    assert failed.returncode != 0
    told = [line for line in failed.stderr.splitlines() if line.startswith("kdscale:")]
    assert len(told) == 1
    assert "crc" in told[0]
    assert shard.name in told[0]


def test_a_loss_that_is_not_finite_ends_all_ranks_with_its_step(data: Path, tmp_path: Path) -> None:
    recipe = override(small.recipe(data), ["optimizer={kind: sgd, lr: 1e20}", "schedule={kind: constant}"])
    path = small.write(tmp_path / "r.json", recipe)
    failed = small.kdscale("train", path, "--out", tmp_path / "out", ranks=2, expect=None)
    told = [line for line in failed.stderr.splitlines() if line.startswith("kdscale:")]
    assert len(told) == 1
    assert "the loss is not finite at step" in told[0] or "the weights are not finite after step" in told[0]
    assert small.verdict(tmp_path / "out")["code"] == 70
    assert not (tmp_path / "out" / "lock").exists()


def test_a_batch_that_ranks_do_not_divide(data: Path, tmp_path: Path) -> None:
    recipe = override(small.recipe(data), ["data.batch=25", "data.train.mixup=0", "data.train.cutmix=0"])
    path = small.write(tmp_path / "r.json", recipe)
    failed = small.kdscale("train", path, "--out", tmp_path / "out", ranks=2, expect=None)
    told = [line for line in failed.stderr.splitlines() if line.startswith("kdscale:")]
    assert told == ["kdscale: global batch 25 is not divisible by ranks 2; nearest that fit: 24, 26"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU accelerate launch does start two processes")
def test_accelerate_launch_on_a_cpu_would_start_one_process_and_is_refused(data: Path, tmp_path: Path) -> None:
    path = small.write(tmp_path / "r.json", override(small.recipe(data), ["steps=2"]))
    words = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "-m",
        "kdscale",
        "train",
        str(path),
        "--out",
        str(tmp_path / "out"),
    ]
    failed = subprocess.run(words, capture_output=True, text=True, check=False, env=small.environment(), timeout=120)
    told = [line for line in failed.stderr.splitlines() if line.startswith("kdscale:")]
    assert told == [
        "kdscale: accelerate launch was asked for 2 processes but starts only one on a machine without a GPU:"
        " use torchrun --nproc-per-node 2 -m kdscale ..."
    ]
    words[words.index("2")] = "1"
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=small.environment(), timeout=120)
    assert done.returncode == 0, done.stderr


def test_supervised_alone_has_no_teacher_to_wait_for(data: Path, tmp_path: Path) -> None:
    recipe = small.recipe(data, networks={"student": Model("cnn6")}, phases=(Phase(Supervised(), steps=2),))
    path = small.write(tmp_path / "r.json", recipe)
    done = small.kdscale("train", path, "--out", tmp_path / "out", ranks=2)
    assert "2 steps of 24 images" in done.stdout
