"""What is measured, in the order of its worth: a row is a value, and one more row is one more value.

Networks have random weights: they are as fast as trained ones. At the CPU's size a row only shows that it works.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Figures = dict[str, Any]  # None: a figure that only a GPU has
QUIET = ("evaluation.every=1e9", "evaluation.teachers=false", "checkpointing.every_epochs=null", "data.held_out=8")
INSIDE, SEVERAL = "kdscale.benchmarks.card.inside", "kdscale.benchmarks.card.several"


@dataclass(frozen=True)
class Setting:
    """What all rows share. ``cifar``, ``images``: packed folders; ``eval_split``: of ``images``."""

    cifar: str
    images: str
    device: str
    eval_split: str = "val"

    def size(self, cuda: Any, cpu: Any) -> Any:
        return cuda if self.device == "cuda" else cpu


@dataclass(frozen=True)
class Told:
    """What a row's process left: a folder, and everything that it printed."""

    folder: Path
    text: str

    def json(self) -> Figures:
        return dict(json.loads(self.text.strip().rpartition("\n")[2]))

    def number(self, pattern: str) -> float:
        return float(self.search(pattern)[1])

    def search(self, pattern: str) -> re.Match[str]:
        found = re.search(pattern, self.text, re.MULTILINE)
        if found is None:
            raise ValueError(f"its output has no {pattern!r}")
        return found


@dataclass(frozen=True)
class Row:
    """``words``: what follows ``python -m``, of the setting and of a folder for what the row leaves. ``limit``: seconds until it
    is killed. ``keeps``: file in that folder -> its name beside the table. ``only_cuda``: why it says nothing on a CPU."""

    name: str
    group: str
    words: Callable[[Setting, Path], Sequence[str]]
    read: Callable[[Told], Figures]
    limit: float = 150
    environment: Mapping[str, str] = field(default_factory=dict)
    keeps: Mapping[str, str] = field(default_factory=dict)
    only_cuda: str = ""


def flagship(setting: Setting, *changes: str) -> list[str]:
    """The ImageNet recipe against its own teacher, or a small one on a CPU."""
    teacher = setting.size("{kind: model, name: timm/regnety_160.deit_in1k, weights: random, floor: 0}", SMALL.format("cnn6"))
    data = [f"data.source={setting.images}", f"data.eval_split={setting.eval_split}", f"data.batch={setting.size(256, 8)}"]
    data += ["data.eval_batch=250"]  # a thousand images in equal parts: a compiled network is compiled for one size alone
    return ["imagenet/deit_tiny:shake", *data, f"networks.teacher={teacher}", "schedule=constant", *QUIET, *changes]


SMALL = "{{kind: model, name: {}, floor: 0}}"


def cifar(setting: Setting, *changes: str) -> list[str]:
    """KD on the pair of the published comparison, or on small networks on a CPU."""
    teacher, student, batch = setting.size(("wrn_40_2", "wrn_16_2", 64), ("resnet14", "resnet8", 8))
    networks = [f"networks.teacher={SMALL.format(teacher)}", f"networks.student={student}"]
    return ["cifar100/wrn_40_2_wrn_16_2:kd", f"data.source={setting.cifar}", *networks, f"data.batch={batch}", *QUIET, *changes]


def flagship_run(name: str, *changes: str, steps: int = 200, limit: float = 150) -> Row:
    def words(setting: Setting, folder: Path) -> list[str]:
        length = [f"steps={setting.size(steps, 4)}", f"machine.log_every={setting.size(10, 1)}"]
        return ["kdscale", "train", *flagship(setting, *length, *changes), "--out", str(folder / "run")]

    return Row(name, "flagship", words, speed, limit)


def speed(told: Told) -> Figures:
    """Of the second half of a run's lines: until then kernels are compiled, and what was read ahead is used up."""
    lines = [json.loads(line) for line in (told.folder / "run" / "metrics.jsonl").read_text().splitlines()]
    late = [line for line in lines if line["event"] == "train"]
    late = late[len(late) // 2 :]
    taken = [1 / line["images_per_second"] for line in late]  # each line tells of as many images
    wait = sum(line["data_wait"] * share for line, share in zip(late, taken, strict=True)) / sum(taken)
    file = told.folder / "peak.json"  # not there where the run was killed
    memory = json.loads(file.read_text()) if file.exists() else {}
    peaks = {f"peak GiB {name}": memory[name] / 2**30 if name in memory else None for name in ("allocated", "reserved")}
    return {"images/s": 1 / statistics.mean(taken), **peaks, "data wait %": 100 * wait}


def methods_run(name: str, *changes: str, kinds: str = "", **more: Any) -> Row:
    def words(setting: Setting, folder: Path) -> list[str]:
        pair, batch, rounds = setting.size(("wrn_40_2:wrn_16_2", 64, 15), ("resnet14:resnet8", 4, 2))
        given = ["--data", setting.cifar, "--device", setting.device, "--pair", pair, "--batch", str(batch)]
        asked = ["--methods", setting.size(kinds, "shake")] if setting.size(kinds, "shake") else []
        return [
            "kdscale.benchmarks.methods",
            *given,
            "--rounds",
            str(rounds),
            *asked,
            "--out",
            str(folder / "methods"),
            *changes,
        ]

    return Row(name, "methods", words, ratio_to_kd, keeps={"methods.md": f"{name}.md"}, **more)


def ratio_to_kd(told: Told) -> Figures:
    found = json.loads((told.folder / "methods.json").read_text())
    rows = {row["method"]: row for row in found["rows"]}
    low, middle, high = rows["shake"]["ratio"]
    left_out = {"left out": ", ".join(found["left_out"])} if found["left_out"] else {}
    ours = {"SHAKE / KD": middle, "quartiles": f"{low:.3f} .. {high:.3f}", "KD ms": rows["kd"]["milliseconds"]}
    return {**ours, "methods": len(rows), **left_out}


def peers_run(name: str, *changes: str, **more: Any) -> Row:
    def words(setting: Setting, folder: Path) -> list[str]:
        turns = ["--steps", str(setting.size(50, 1)), "--pairs", str(setting.size(15, 3))]
        return ["kdscale.benchmarks.peers", "--data", setting.cifar, "--device", setting.device, *turns, *changes]

    return Row(name, "peers", words, times_faster, **more)


def times_faster(told: Told) -> Figures:
    quartiles = told.search(r"quartiles (\S+ \.\. \S+)")[1]
    ours, theirs = (told.number(rf"{side} (\S+) ms") for side in ("kdscale", "published style"))
    return {"times faster": told.number(r"faster by (\S+)"), "quartiles": quartiles, "kdscale ms": ours, "published ms": theirs}


def abreast_run(name: str, counts: str, *changes: str, limit: float) -> Row:
    def words(setting: Setting, folder: Path) -> list[str]:
        size = setting.size([counts, "15"], ["2", "4"])
        return [SEVERAL, "abreast", str(folder / "runs"), *size, setting.cifar, setting.device, *changes]

    return Row(name, "peers", words, Told.json, limit)


def resume_run(name: str, *changes: str) -> Row:
    def words(setting: Setting, folder: Path) -> list[str]:
        recipe = [word for word in cifar(setting, "machine.channels_last=true", *changes) if word not in QUIET[:3]]
        return [SEVERAL, "resume", str(folder / "runs"), str(setting.size(400, 24)), *recipe]

    return Row(name, "truth", words, Told.json, limit=200)


def parity_run(name: str) -> Row:
    def words(setting: Setting, folder: Path) -> list[str]:
        steps = ["--steps", str(setting.size(12, 3))]
        own = ["--ranks", "1", "--only", name, *steps, "--out", str(folder / "runs")]
        return ["kdscale", "parity", *cifar(setting, "precision=bf16"), *own]

    return Row(name, "truth", words, lambda told: {"against ddp alone": verdict(told.search(rf"^{name} .*$")[0])}, limit=300)


def verdict(line: str) -> str:
    """Of a line of parity's table: what it concludes, and by how much a loss differs where something was compared."""
    cells = re.split(r"\s{2,}", line)
    return f"{cells[-1]}, a loss by {cells[3]}" if len(cells) > 7 else cells[-1]


def steps_run(name: str, recipe: Callable[..., list[str]], *changes: str) -> Row:
    def words(setting: Setting, folder: Path) -> list[str]:
        return ["kdscale", "bench", "step", *recipe(setting, *changes), "--pairs", str(setting.size(30, 3))]

    def ratio(told: Told) -> Figures:
        quartiles = told.search(r"quartiles (\S+ \.\. \S+)")[1]
        sides = {"engine ms": told.number(r"engine (\S+) ms"), "by hand ms": told.number(r"by hand (\S+) ms")}
        return {"engine / by hand": told.number(r"median (\S+),"), "quartiles": quartiles, **sides}

    return Row(name, "steps", words, ratio)


def profile_words(setting: Setting, folder: Path) -> list[str]:
    return [INSIDE, "profile", str(folder / "profile.txt"), *flagship(setting, "precision=bf16")]


def launched(setting: Setting, folder: Path) -> list[str]:
    run = ["-m", "kdscale", "train", *cifar(setting, f"steps={setting.size(50, 2)}"), "--out", str(folder / "run")]
    return ["accelerate.commands.launch", "--num_processes", "1", *run]


def held(told: Told) -> Figures:
    """The first evaluation may still find its own size; after the second nothing has a reason to grow."""
    reserved = told.json()["reserved"]
    if None in reserved:
        return {"reserved memory": None}
    grown = (reserved[-1] - reserved[1]) / 2**20
    return {
        "reserved MiB after 1, 2, 10 evaluations": " ".join(f"{reserved[n] / 2**20:.0f}" for n in (0, 1, -1)),
        "grown MiB": grown,
    }


ROWS = (
    flagship_run("flagship-bf16", "precision=bf16"),
    flagship_run("flagship-bf16-compile", "precision=bf16", "machine.compile=true", limit=300),
    flagship_run("flagship-fp32", steps=80),
    flagship_run("flagship-bf16-contiguous", "precision=bf16", "machine.channels_last=false"),
    Row("profile", "profile", profile_words, Told.json, keeps={"profile.txt": "profile.txt"}),
    methods_run("methods", limit=240),
    methods_run("methods-compile", "machine.compile=true", kinds="shake", limit=240),
    methods_run("methods-bf16", "precision=bf16", limit=240),
    peers_run("peers"),
    peers_run("peers-compile", "machine.compile=true", limit=240),
    peers_run(
        "peers-compile-graphs", "machine.compile=true", environment={"TORCHINDUCTOR_CUDAGRAPHS": "1"}, limit=240,
        only_cuda="a CPU records no graphs",
    ),
    abreast_run("abreast", "1,2,4,8", limit=300),
    abreast_run("abreast-compile", "4", "machine.compile=true", limit=300),
    Row("launched", "truth", launched, lambda told: {"ended with": told.search(r"^done\b")[0]}),
    parity_run("zero2"),
    parity_run("fsdp2"),
    resume_run("resume-sgd"),
    resume_run("resume-adamw", "optimizer=adamw"),
    Row("evaluations", "truth", lambda setting, _: [INSIDE, "evaluations", *cifar(setting)], held),
    steps_run("steps-cifar", cifar),
    steps_run("steps-flagship", flagship, "precision=bf16"),
)  # fmt: skip
