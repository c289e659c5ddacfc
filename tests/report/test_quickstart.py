"""The quickstart's table, sentence and picture say no more than was measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdscale.data.sample import CLASSES, sheets
from kdscale.recipe import load
from kdscale.report.quickstart import picture, table, verdict
from tests.cli.calling import done


def score(top1: float, count: int = 2000) -> dict[str, float]:
    return {"top1": top1, "count": count}


@pytest.mark.parametrize(
    ("distilled", "alone", "word"),
    [
        (0.86, 0.80, "better by more than the test images' noise"),
        (0.80, 0.86, "worse by more than the test images' noise"),
        (0.86, 0.858, "within noise"),
    ],
)
def test_the_verdict_says_more_only_beyond_two_standard_errors(distilled: float, alone: float, word: str) -> None:
    sentence = verdict(score(distilled), score(alone))
    assert word in sentence
    assert f"{100 * (distilled - alone):+.2f} points" in sentence
    assert "on 2000 images" in sentence
    assert "one seed" in sentence
    assert "\n" not in sentence


def test_the_same_difference_is_noise_on_few_images_and_none_on_many() -> None:
    assert "within noise" in verdict(score(0.86, 200), score(0.83, 200))
    assert "better" in verdict(score(0.86, 20_000), score(0.83, 20_000))


def test_the_standard_error_is_that_of_two_proportions() -> None:
    expected = 100 * (0.5 * 0.5 / 100 + 0.9 * 0.1 / 100) ** 0.5
    assert f"standard error of {expected:.2f} on 100 images" in verdict(score(0.9, 100), score(0.5, 100))


def test_the_table_has_one_aligned_line_an_answer() -> None:
    lines = table({"student": score(0.8612), "shadow": score(0.05)})
    assert lines == ["student  top1  86.12   of 2000 test images", "shadow   top1   5.00   of 2000 test images"]


def test_the_picture_is_a_png_of_two_rows(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (8, 28, 28, 3), dtype=np.uint8)
    truths = list(CLASSES[:8])
    names = [*truths[:4], "Bag", *truths[5:]]
    picture(tmp_path / "p.png", images, truths, names, [0.5] * 8)
    with Image.open(tmp_path / "p.png") as drawn:
        assert drawn.format == "PNG"
        assert drawn.width > 800
        assert drawn.height > 400
        pixels = np.asarray(drawn.convert("RGB")).reshape(-1, 3)
    for colour in ((0x1A, 0x7F, 0x37), (0xB3, 0x26, 0x1E)):  # right ones and a wrong one
        assert (pixels == colour).all(-1).any()


@pytest.mark.parametrize(("folder", "count"), [("train", 10_000), ("test", 2_000)])
def test_the_sample_has_as_many_images_of_each_class(folder: str, count: int) -> None:
    images, labels = sheets(folder)
    assert images.shape == (count, 28, 28, 1)
    assert images.dtype == np.uint8
    assert np.bincount(labels).tolist() == [count // 10] * 10
    assert len(np.unique(images.reshape(count, -1), axis=0)) > 0.99 * count


SHORT = """
from dataclasses import replace
from kdscale.recipe import FromPhase
from kdscale.recipe.load import load

def short(recipe):
    return replace(recipe, phases=tuple(replace(phase, epochs=None, steps=4) for phase in recipe.phases))

whole = short(load("SHIPPED:recipe"))
recipe = replace(whole, networks={**whole.networks, "teacher": FromPhase("teacher", floor=0)})
alone = short(load("SHIPPED:alone"))
"""


@pytest.mark.slow
def test_the_whole_command_with_four_steps_a_phase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe of the working folder stands before the shipped one of its name: the only way to make this one short."""
    shipped = dict(load.shipped())["quickstart"]
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "quickstart.py").write_text(SHORT.replace("SHIPPED", str(shipped)))
    monkeypatch.chdir(tmp_path)
    told = done("quickstart", "--compare")
    assert "runs/quickstart/export: plain timm and transformers give the same logits" in told
    assert told.count(" -> ") == 8
    assert "Distilled against alone: " in told
    assert told.endswith("runs/quickstart/predictions.png\n")
    before = (tmp_path / "runs" / "quickstart" / "metrics.jsonl").read_bytes()
    assert "Distilled against alone: " in done("quickstart", "--compare")
    assert (tmp_path / "runs" / "quickstart" / "metrics.jsonl").read_bytes() == before
