"""The command that measures everything on a GPU, where there is none: what it reads, tells, skips, cuts off and refuses."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdscale.benchmarks import on_a_gpu
from kdscale.benchmarks.card import inside, rows
from kdscale.benchmarks.card.rows import ROWS, Row, Setting, Told
from kdscale.benchmarks.card.several import ended_within
from kdscale.data import pack_arrays
from kdscale.errors import KdscaleError
from kdscale.recipe import override
from kdscale.recipe.load import load

SETTING = Setting("CIFAR", "IMAGES", "cpu")
HERE = {"device": "cpu (here)", "cuda": None, "driver": "", "torch": "2", "python": "3"}
STARTS_A_SLEEPER = (
    "import subprocess, sys, time; p = subprocess.Popen(['sleep', '60'], start_new_session=True);"
    " print(p.pid, flush=True); time.sleep(60)"
)


def row(name: str, statement: str = "print(7, flush=True)", **more: Any) -> Row:
    """A row whose process is a statement of Python, and whose figure the number that it prints."""
    words = ["timeit", "-n1", "-r1", statement]
    return Row(name, "quick", lambda setting, folder: words, lambda told: {"number": float(told.text.split()[0])}, **more)


def measure(out: Path, *given: Row, named: tuple[Row, ...] = (), minutes: float = 1.0, here: Any = HERE) -> int:
    code: int = on_a_gpu.measure(given, SETTING, here, out, minutes, named)
    return code


def told(out: Path) -> dict[str, dict[str, Any]]:
    return {line["name"]: line for line in map(json.loads, (out / "rows.jsonl").read_text().splitlines())}


def packed(folder: Path, side: int, splits: dict[str, int]) -> str:
    random = np.random.default_rng(0)
    for split, count in splits.items():
        images = random.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
        pack_arrays(images, np.arange(count) % 4, folder, split=split, name="noise")
    return str(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Packed images of 32 pixels, and of 64 pixels in one split."""
    place = tmp_path_factory.mktemp("data")
    return packed(place / "cifar", 32, {"train": 64, "val": 16}), packed(place / "images", 64, {"train": 24})


def test_a_failure_costs_one_row_and_the_rest_is_told(tmp_path: Path, capsys: Any) -> None:
    broken, unread = row("broken", "raise SystemExit('no such thing')"), row("unread", "print('word')")
    gpu = row("gpu", only_cuda="a CPU has none")
    assert measure(tmp_path, broken, row("good"), unread, gpu) == 70
    found = told(tmp_path)
    assert found["broken"]["why"] == "ended with 1: SystemExit: no such thing"
    assert found["good"]["figures"] == {"number": 7}
    assert "its figures cannot be read: ValueError" in found["unread"]["why"]
    assert found["gpu"]["state"] == "only on a GPU"
    assert not (tmp_path / "gpu.json").exists()
    table = (tmp_path / "table.md").read_text()
    assert capsys.readouterr().out.endswith(table)
    assert table.startswith("cpu (here), torch 2, Python 3, 20")
    assert "| good | number 7 |" in table
    assert "| gpu | not run: only on a GPU: a CPU has none |  | `python -m timeit" in table
    assert (tmp_path / "broken.log").read_text().endswith("no such thing\n")
    assert not (tmp_path / "work").exists()


def test_what_is_finished_is_not_run_again(tmp_path: Path) -> None:
    once = f"open({str(tmp_path / 'seen')!r}, 'a').write('x'); print(7)"
    counted, broken = row("counted", once), row("broken", "raise SystemExit(3)")

    def seen() -> int:
        return len((tmp_path / "seen").read_text())

    measure(tmp_path, counted, broken)
    (tmp_path / "broken.log").unlink()
    assert measure(tmp_path, counted, broken, row("late")) == 70
    assert seen() == 1
    assert not (tmp_path / "broken.log").exists(), "a failure is not repeated either"
    assert list(told(tmp_path)) == ["counted", "broken", "late"]
    measure(tmp_path, counted, broken, named=(counted, broken))
    assert seen() == 1
    assert (tmp_path / "broken.log").exists(), "unless it is asked for"
    measure(tmp_path, counted, here={**HERE, "device": "another"})
    assert seen() == 2
    measure(tmp_path, row("counted", once + "; 1"))
    assert seen() == 3


def test_rows_of_earlier_calls_stay_in_the_table(tmp_path: Path) -> None:
    first, second, third = map(row, ("first", "second", "third"))
    measure(tmp_path, first, second, third, named=(second,))
    assert list(told(tmp_path)) == ["second"]
    measure(tmp_path, first, second, third, named=(first,))
    assert list(told(tmp_path)) == ["first", "second"]


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    long, cut = row("long", limit=600), row("cut", "import time; time.sleep(60)", limit=3.5)
    assert measure(tmp_path, long, cut, row("short", limit=1), minutes=1.5 / 60) == 75
    found = told(tmp_path)
    assert found["long"]["state"] == found["cut"]["state"] == "out of time"
    assert "seconds" not in found["long"]
    assert 0.8 < found["cut"]["seconds"] < 10
    assert not (tmp_path / "long.json").exists()
    assert not (tmp_path / "cut.json").exists()
    assert "| long | not run: out of time |" in (tmp_path / "table.md").read_text()


def test_a_row_is_killed_at_its_limit_with_all_that_it_started(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert ended_within(1, [sys.executable, "-c", STARTS_A_SLEEPER], dict(os.environ), log) is None
    until = time.monotonic() + 5
    while alive(int(log.read_text())) and time.monotonic() < until:
        time.sleep(0.02)
    assert not alive(int(log.read_text()))
    measure(tmp_path, row("slow", "import time; print(8, flush=True); time.sleep(60)", limit=2))
    assert told(tmp_path)["slow"]["state"] == "failed"
    assert "| slow | failed: killed after 2 s: 8; number 8 |" in (tmp_path / "table.md").read_text(), "what it told is not lost"


def alive(number: int) -> bool:
    """Whether a process runs; one that has ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_what_a_row_leaves_running_ends_with_it(tmp_path: Path) -> None:
    log, leaves = tmp_path / "log", STARTS_A_SLEEPER.replace("time.sleep(60)", "sys.exit(5)")
    assert ended_within(30, [sys.executable, "-c", leaves], dict(os.environ), log) == 5
    assert not alive(int(log.read_text()))


def test_speed_is_that_of_the_second_half(tmp_path: Path) -> None:
    def line(speed: float, wait: float, event: str = "train") -> str:
        return json.dumps({"event": event, "images_per_second": speed, "data_wait": wait}) + "\n"

    (tmp_path / "run").mkdir()
    lines = [line(1, 1), line(2, 1), line(50, 0.5), line(9, 9, "evaluation"), line(100, 0.2)]
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(lines))
    (tmp_path / "peak.json").write_text(json.dumps({"allocated": 3 * 2**30, "resident": 1}))
    found = rows.speed(Told(tmp_path, ""))
    assert found["images/s"] == pytest.approx(2 / (1 / 50 + 1 / 100))
    assert found["data wait %"] == pytest.approx(40), "by time: the slow line lasted twice as long"
    assert (found["peak GiB allocated"], found["peak GiB reserved"]) == (3, None)
    assert on_a_gpu.result({"state": "done", "figures": found}).endswith("reserved - (a figure of a GPU); data wait % 40")


def test_other_commands_words_are_read(tmp_path: Path) -> None:
    peers = "kdscale 4.5 ms, published style 30.1 ms a step (medians ...)\nkdscale is faster by 6.7 (median), quartiles 6.5 .. 7.0\n"
    found = rows.times_faster(Told(tmp_path, peers))
    assert found == {"times faster": 6.7, "quartiles": "6.5 .. 7.0", "kdscale ms": 4.5, "published ms": 30.1}
    with pytest.raises(ValueError, match="has no 'quartiles"):
        rows.times_faster(Told(tmp_path, ""))
    within = "zero2        1      one process    1e-3                2        0            0          181      within tolerance"
    assert rows.verdict(within) == "within tolerance, a loss by 1e-3"
    refused = "zero2  1  refused: DeepSpeed is not installed: pip install deepspeed"
    assert rows.verdict(refused) == "refused: DeepSpeed is not installed: pip install deepspeed"
    reserved = [2**20 * size for size in (5, 7, 7, 9)]
    assert rows.held(Told(tmp_path, json.dumps({"reserved": reserved})))["grown MiB"] == 2
    assert rows.held(Told(tmp_path, '{"reserved": [null]}')) == {"reserved memory": None}


def test_a_trace_is_read() -> None:
    def event(category: str, start: float, length: float, name: str = "k") -> dict[str, Any]:
        return {"ph": "X", "cat": category, "name": name, "ts": start, "dur": length}

    events = [event("kernel", 0, 10), event("kernel", 5, 10, "l"), event("gpu_memcpy", 30, 5), event("cpu_op", 0, 99)]
    spans = inside.device_spans([*events, event("gpu_user_annotation", 0, 99), {"ph": "M", "name": "process"}])
    assert inside.busy_microseconds(spans) == 20
    lines = list(inside.ranking(inside.by_name(spans), "kernels"))
    assert lines[2].split() == ["0.003", "60.0%", "k"]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_recipe_of_the_rows_can_be_made(device: str) -> None:
    setting = Setting("CIFAR", "IMAGES", device)
    assert len({found.name for found in ROWS}) == len(ROWS)
    for found in ROWS:
        words = list(found.words(setting, Path("OUT")))
        place = next((n for n, word in enumerate(words) if "/" in word and ":" in word and "=" not in word), None)
        if place is not None:
            made = override(load(words[place]), [word for word in words[place:] if "=" in word])
            assert made.networks["teacher"].floor == 0  # type: ignore[union-attr]
            assert made.data.source in ("CIFAR", "IMAGES")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (["--cifar", "nowhere"], "there is no data at nowhere"),
        (["--images", "."], "--images: . has no manifest.json: kdscale data pack . OUT"),
        (["--only", "flagshop"], "--only: there is no row 'flagshop'; nearest: flagship"),
        (["--minutes", "0"], "--minutes is 0: give a number above 0"),
        (["--minutes", "soon"], "argument --minutes: invalid float value: 'soon'"),
        pytest.param(["--device", "cuda"], "--device is cuda and torch sees no GPU here", marks=pytest.mark.slow),
    ],
)
def test_what_cannot_be_used_is_one_line(
    change: list[str], line: str, folders: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    given = ["--cifar", folders[0], "--images", folders[1], "--out", "out", "--device", "cpu", *change]
    monkeypatch.setattr(sys, "argv", ["on_a_gpu", *given])
    assert on_a_gpu.command() == 64
    said = capsys.readouterr().err
    assert said.startswith(f"kdscale: {line}")
    assert said.count("\n") == 1
    assert not Path("out").exists()


def test_the_splits_that_are_there_are_taken(folders: tuple[str, str]) -> None:
    assert on_a_gpu.setting_of(*folders, "cpu").eval_split == "train"
    assert on_a_gpu.setting_of(folders[0], folders[0], "cpu").eval_split == "val"
    with pytest.raises(KdscaleError, match=r"--cifar: .* has no split val: kdscale data pack SRC .* --split val"):
        on_a_gpu.setting_of(folders[1], folders[1], "cpu")


@pytest.mark.slow
def test_two_rows_for_real(folders: tuple[str, str], tmp_path: Path) -> None:
    """A run of the flagship, and a run that is killed and resumed, of small networks on noise."""
    words = ["--cifar", folders[0], "--images", folders[1], "--out", str(tmp_path), "--device", "cpu"]
    assert on_a_gpu.main([*words, "--only", "flagship-bf16,resume-sgd"]) == 0
    found = {name: line["figures"] for name, line in told(tmp_path).items()}
    assert found["flagship-bf16"]["images/s"] > 0
    assert found["flagship-bf16"]["peak GiB allocated"] is None
    assert found["resume-sgd"]["resumed"] == found["resume-sgd"]["two whole runs"] == "equal to the bit"
    assert json.loads((tmp_path / "resume-sgd.json").read_text())["command"].startswith(
        "python -m kdscale.benchmarks.card.several"
    )
