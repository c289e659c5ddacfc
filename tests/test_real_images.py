"""The real thing at its real size: ImageNet photographs through DeiT's augmentation into the real DeiT-Tiny, on two ranks."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path

import pytest

from tests.engine import small
from tests.shared import shared

pytestmark = [pytest.mark.slow, pytest.mark.ranks]

SETTINGS = (
    "data.batch=16",
    "steps=3",
    "checkpointing.every_steps=1",
    "machine.log_every=1",
    "evaluation.teachers=false",
    "data.workers=1",
    "data.eval_batch=50",
)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Somebody's webdataset tars, indexed; training and evaluation look at the same thousand photographs."""
    out = tmp_path_factory.mktemp("index")
    for split in ("train", "val"):
        small.kdscale("data", "index", shared("data", "imagenet-sample"), "--split", split, "--out", out)
    return out


def kill_after_a_save(out: Path, *words: str | Path) -> str:
    """Starts on two ranks, kills every process once the first step is saved, and returns what was printed until then."""
    process = small.start("train", *words, "--out", out, ranks=2)
    saved = out / "checkpoints" / "step-00000001"
    while process.poll() is None and not saved.exists():
        time.sleep(0.05)
    children = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True, check=True
    ).stdout.split()
    for pid in (str(process.pid), *children):
        subprocess.run(["kill", "-9", pid], check=False)
    return process.communicate()[0]


def test_taught_by_a_trained_mobilenet(index: Path, tmp_path: Path) -> None:
    """Killed and resumed, exported and loaded by strangers; the teacher's accuracy on these photographs is that of plain timm."""
    teacher = f"networks.teacher={shared('weights', 'mobilenetv2_100')}"
    words = ("imagenet/deit_tiny:shake", f"data.source={index}", teacher, "data.held_out=1000", *SETTINGS)
    printed = kill_after_a_save(tmp_path / "out", *words)
    found = re.search(r"top1 ([0-9.]+) on 1000 held-out images", printed)
    assert found is not None, printed
    # Plain timm, with the teacher's own transform, is right on 833 of these re-encoded thousand.
    assert float(found[1]) == pytest.approx(83.3, abs=0.8)
    done = small.kdscale("train", *words, "--out", tmp_path / "out", ranks=2)
    assert "from step 1" in done.stdout
    assert [line["step"] for line in small.lines(tmp_path / "out")] == [1, 2, 3]
    exported = small.kdscale("export", tmp_path / "out")
    assert "5,910,800 parameters" in exported.stdout


def test_taught_by_regnety_160_at_full_width(index: Path, tmp_path: Path) -> None:
    """Random weights are below any floor, so the preflight is waived in words."""
    teacher = ("networks.teacher=regnety_160", "networks.teacher.weights=random", "data.held_out=16")
    words = ("imagenet/deit_tiny:shake", f"data.source={index}", *teacher, *SETTINGS)
    refused = small.kdscale("train", *words, "--out", tmp_path / "out", expect=64)
    assert "below its floor of 20.08" in refused.stderr
    words = (*words, "networks.teacher.floor=0")
    kill_after_a_save(tmp_path / "out", *words)
    small.kdscale("train", *words, "--out", tmp_path / "out", ranks=2)
    assert [line["step"] for line in small.lines(tmp_path / "out")] == [1, 2, 3]
    small.kdscale("export", tmp_path / "out")
