"""Both sides of the comparison do the same work, in turns, and leave no process behind. Times are not judged."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdscale.benchmarks import peers, sides
from kdscale.benchmarks.published import Pictures, PublishedLoop, accuracy, distance
from kdscale.data import pack_arrays
from kdscale.errors import KdscaleError
from kdscale.losses.logits import kd_kl
from kdscale.networks import cifar


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out, random = tmp_path_factory.mktemp("cifar"), np.random.default_rng(0)
    for split, count in (("train", 48), ("val", 8)):
        images = random.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        pack_arrays(images, np.arange(count) % 4, out, split=split, name="cifar")
    return {
        "data": str(out),
        "device": "cpu",
        "workers": 1,
        "student": "resnet8",
        "teacher": "cnn6",
        "set": ["data.batch=16", "machine.threads=1", "machine.compile=false"],
    }


@pytest.mark.slow
def test_a_ratio_is_told_and_no_process_stays(given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[peers.Side] = []
    end = peers.Side.end
    monkeypatch.setattr(peers.Side, "end", lambda side: (started.append(side), end(side)))
    told = list(peers.compare(given, steps=1, pairs=3))
    assert told[0] == "KD cnn6 -> resnet8, batch 16 on cpu"
    assert told[1].startswith("kdscale: data.read=auto, compile=False, channels_last=")
    assert "medians of 3 turns of 1 steps" in told[3]
    assert float(told[4].split("faster by ")[1].split(" ")[0]) > 0
    assert len(started) == 2
    assert all(side.process.returncode == -signal.SIGKILL for side in started)


def test_both_sides_have_the_same_weights_and_batch(given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with sides.ours(given) as (ours, engine), sides.published({**given, "workers": 0}) as (theirs, by_hand):
        assert {**ours, "settings": ""} == {**theirs, "settings": ""}
        peers.same_work(theirs, ours)
        for step in (engine, by_hand):
            step()
    with pytest.raises(KdscaleError, match="the sides differ in batch: published style 16, kdscale 17"):
        peers.same_work(theirs, {**ours, "batch": 17})


@pytest.mark.slow
def test_a_side_that_fails_is_told(given: dict[str, Any]) -> None:
    with pytest.raises(KdscaleError, match="the side 'published' ended with code 1"):
        list(peers.compare({**given, "data": "nowhere"}, 1, 3))


def test_the_loop_by_hand_learns_its_pictures() -> None:
    torch.manual_seed(0)
    random = np.random.default_rng(1)
    pictures = Pictures(random.integers(0, 256, (16, 32, 32, 3), dtype=np.uint8), np.arange(16) % 4, (0.5,) * 3, (0.25,) * 3)
    loop = PublishedLoop(cifar.build("resnet8", 4), cifar.build("cnn6", 4), pictures, 8, 0, torch.device("cpu"))
    first = {name: value.clone() for name, value in loop.teacher.state_dict().items()}
    for _ in range(3):
        loop.step()
    assert loop.losses.count == loop.top5.count == 24
    assert np.isfinite(loop.losses.mean)
    assert 0 <= loop.top1.mean <= loop.top5.mean <= 100
    assert all(torch.equal(first[name], value) for name, value in loop.teacher.state_dict().items())


def test_its_loss_is_that_of_the_method() -> None:
    student, teacher = torch.randn(5, 7), torch.randn(5, 7)
    torch.testing.assert_close(distance(student, teacher), kd_kl(student, teacher, 4.0).mean())
    top1, top5 = accuracy(torch.eye(7)[:5], torch.tensor([0, 1, 2, 0, 0]))
    assert (float(top1), float(top5)) == (pytest.approx(60), 100)


def test_the_words_of_the_command(given: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(peers, "compare", lambda *words: seen.extend(words) or ["a line"])
    peers.main(["--data", str(tmp_path), "--steps", "2", "--pairs", "4", "--workers", "3", "machine.compile=true"])
    asked = {"data": str(tmp_path), "device": "cpu", "workers": 3, "set": ["machine.compile=true"]}
    assert seen == [{**asked, "student": "wrn_16_2", "teacher": "wrn_40_2"}, 2, 4]
    assert capsys.readouterr().out == "a line\n"
