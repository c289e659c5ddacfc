"""Proof before an export is given its name: strangers load it and must answer as the student did.

Each loader runs in a fresh interpreter that cannot import kdscale, has no network, no accelerator, no variable of a
launcher and one thread; all loaders at once. What the training process holds in memory can thus not help the folder along.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file

from ..errors import ExportError

if TYPE_CHECKING:
    from torch import Tensor

TOLERANCE = 1e-5  # of the largest logit, at least of one: rounding of float32 in another order of threads
LIMIT = 900.0  # seconds for all loaders together; a cold file system may need minutes for its first import
LAUNCHER = (
    "PYTHON",
    "TORCHELASTIC",
    "ACCELERATE",
    "FSDP",
    "DEEPSPEED",
    "MASTER_",
    "RANK",
    "WORLD_SIZE",
    "LOCAL_",
    "GROUP_",
    "ROLE_",
)


def questions(input_size: tuple[int, int, int], count: int = 3) -> Tensor:
    """Images ``[count, *input_size]`` of normal noise, the same for the same size."""
    generator = torch.Generator().manual_seed(20200)
    return torch.randn(count, *input_size, generator=generator)


def verify(folder: Path, loaders: tuple[str, ...], images: Tensor, logits: Tensor) -> dict[str, float]:
    """Largest difference from ``logits [N,C]`` by loader, relative to the larger of one and the largest logit.

    Raises ExportError where a loader fails, or answers otherwise than by rounding.
    """
    if not torch.isfinite(logits).all():
        raise ExportError("the student's own logits are not finite: choose an earlier save")
    scale = max(1.0, float(logits.abs().max()))
    found: dict[str, float] = {}
    for loader, answers in _ask(folder, loaders, images).items():
        difference = float((answers - logits).abs().max()) / scale if answers.shape == logits.shape else float("inf")
        if not difference <= TOLERANCE:
            raise ExportError(
                f"the folder loaded by {loader} answers otherwise than the student (relative difference {difference:.2g},"
                f" allowed {TOLERANCE:.0e}): nothing was exported"
            )
        found[loader] = difference
    return found


def _ask(folder: Path, loaders: tuple[str, ...], images: Tensor) -> dict[str, Tensor]:
    with tempfile.TemporaryDirectory(prefix="kdscale-export-") as place:
        room = Path(place)
        save_file({"images": images.contiguous()}, room / "questions.safetensors")
        running: dict[str, subprocess.Popen[bytes]] = {}
        try:
            for loader in loaders:
                running[loader] = _start(loader, folder.resolve(), room)
            _wait(running, room)
        finally:
            for process in running.values():
                process.kill()
                process.wait()
        return {loader: load_file(room / f"{loader}.safetensors")["logits"] for loader in loaders}


def _start(loader: str, folder: Path, room: Path) -> subprocess.Popen[bytes]:
    words = [str(Path(__file__).with_name("fresh.py")), loader, str(folder), str(room / "questions.safetensors")]
    with (room / f"{loader}.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-P", "-B", *words, str(room / f"{loader}.safetensors")],
            cwd=room,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def _environment() -> dict[str, str]:
    kept = {name: text for name, text in os.environ.items() if not name.startswith(LAUNCHER)}
    return kept | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


def _wait(running: dict[str, subprocess.Popen[bytes]], room: Path) -> None:
    end = time.monotonic() + LIMIT
    for loader, process in running.items():
        try:
            code = process.wait(timeout=max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise ExportError(f"loading the folder by {loader} took more than {LIMIT:.0f} s: nothing was exported") from None
        if code != 0:
            said = (room / f"{loader}.log").read_text(errors="replace").split("\n")
            last = next((line.strip() for line in reversed(said) if line.strip()), f"exit code {code}")
            raise ExportError(f"{loader} cannot load the folder ({last}): nothing was exported")
