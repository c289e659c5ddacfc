"""A run in seconds: 16-pixel noise in real shards, a tiny DeiT with drop-path, mixup, EMA and a CNN teacher."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file
from torch import Tensor

from kdscale.data import pack_arrays
from kdscale.methods import Shake, Supervised
from kdscale.recipe import (
    AdamW,
    Augment,
    Checkpointing,
    Cosine,
    Data,
    Ema,
    Evaluation,
    FromPhase,
    Machine,
    Model,
    Phase,
    Recipe,
    to_json,
)
from tests import forks

CLASSES, SIDE, TRAIN, VAL = 4, 16, 120, 50
TINY = {"img_size": SIDE, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
Started = subprocess.Popen[str] | forks.Forked


def shards(folder: Path) -> Path:
    """Packed data whose classes can be learned: each has a colour of its own."""
    rng = np.random.default_rng(7)
    for split, count in (("train", TRAIN), ("val", VAL)):
        labels = np.arange(count) % CLASSES
        images = rng.integers(0, 120, (count, SIDE, SIDE, 3), dtype=np.uint8)
        images[..., 0] += (labels * 40).astype(np.uint8)[:, None, None]
        pack_arrays(images, labels, str(folder), split=split, name="tiny", names=tuple("abcd"))
    return folder


def recipe(data: Path, **changes: Any) -> Recipe:
    """SHAKE on a DeiT of two blocks, 22 steps that do not end with an epoch; saves every 3 steps."""
    settings: dict[str, Any] = {
        "networks": {
            "student": Model("deit_tiny_distilled_patch16_224", drop_path=0.2, args=TINY),
            "teacher": Model("cnn6", floor=0),
        },
        "data": Data(
            str(data),
            batch=24,
            train=Augment(size=SIDE, crop="pad", pad=2, mixup=0.8, cutmix=1.0, smoothing=0.1),
            eval_crop=1.0,
            workers=0,
        ),
        "phases": (Phase(Shake(), steps=22, name="student", optimizer=AdamW(1e-3, clip=1.0), schedule=Cosine(warmup=1)),),
        "ema": Ema(0.9),
        "evaluation": Evaluation(every=2),
        "checkpointing": Checkpointing(every_steps=3),
        "machine": Machine(log_every=1, threads=1),
    }
    return Recipe(**(settings | changes))


def two_phases(data: Path, **changes: Any) -> Recipe:
    """A teacher is trained first, then teaches."""
    one = recipe(data)
    return recipe(
        data,
        networks={"student": one.networks["student"], "teacher": FromPhase("teacher", floor=0)},
        phases=(
            Phase(Supervised(), steps=7, name="teacher", networks={"student": Model("cnn6")}, optimizer=AdamW(1e-3)),
            Phase(Shake(), steps=8, name="student", optimizer=AdamW(1e-3)),
        ),
        **changes,
    )


def write(path: Path, recipe: Recipe) -> Path:
    path.write_text(to_json(recipe))
    return path


def command(*words: str | Path, ranks: int = 1) -> list[str]:
    launcher = [sys.executable, "-m"]
    if ranks > 1:
        launcher += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m"]
    return [*launcher, "kdscale", *map(str, words)]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "KDSCALE_PROGRESS": "lines"}


def kdscale(
    *words: str | Path, ranks: int = 1, expect: int | None = 0, launched: bool = False
) -> subprocess.CompletedProcess[str]:
    """Runs the command line in a process of its own; ``launched``: in an interpreter of its own, of several ranks torchrun's."""
    if launched:
        done = subprocess.run(
            command(*words, ranks=ranks),
            capture_output=True,
            text=True,
            check=False,
            env=environment(),
            timeout=300,
            stdin=subprocess.DEVNULL,
        )
    else:
        done = forks.call("kdscale", *words, environment=environment(), ranks=ranks)
    if expect is not None:
        assert done.returncode == expect, done.stdout[-3000:] + done.stderr[-5000:]
    return done


def start(*words: str | Path, ranks: int = 1, launched: bool = False) -> Started:
    if not launched:
        return forks.Forked("kdscale", *words, environment=environment(), ranks=ranks)
    return subprocess.Popen(
        command(*words, ranks=ranks),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
        stdin=subprocess.DEVNULL,
    )


def wait_for_step(process: Started, step: int) -> None:
    """Returns when the run has told of ``step``."""
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if f" step {step}/" in line:
            return
    raise AssertionError("".join(seen))


def lines(out: Path, event: str = "train") -> list[dict[str, Any]]:
    return [entry for line in (out / "metrics.jsonl").read_text().splitlines() if (entry := json.loads(line))["event"] == event]


def losses(out: Path) -> list[tuple[Any, ...]]:
    """Everything in the train lines that must not depend on interruptions."""
    return [
        (entry["phase"], entry["step"], entry["epoch"], entry["loss"], entry["losses"], entry["lr"]) for entry in lines(out)
    ]


def weights(out: Path, phase: str = "01-student") -> dict[str, Tensor]:
    return load_file(out / "phases" / phase / "end.safetensors")


def verdict(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "verdict.json").read_text()))
