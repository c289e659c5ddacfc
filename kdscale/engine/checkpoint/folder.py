"""The output folder: whose run it is, how it was started, how it ended.

OUT/  recipe.json  environment.json  starts.jsonl  metrics.jsonl  log.txt  verdict.json  lock
      checkpoints/step-00012500/   phases/01-teacher/{end, best, epoch-60}.safetensors   export/   best/ -> a checkpoint
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from ... import __version__
from ...data.files import TEMPORARY
from ...errors import RecipeError, RunError
from ...recipe import Recipe, from_json, own, to_plain
from ...recipe.resolve import differences, digest, without_news
from ...recipe.resolve import identity as identity_of
from . import saving
from .files import write_json, write_text
from .lock import Lock, slurm

OURS = {
    "recipe.json",
    "environment.json",
    "starts.jsonl",
    "metrics.jsonl",
    "log.txt",
    "verdict.json",
    "lock",
    "identity.json",
    "parallel.json",
    own.FILE,
}
OF_RANKS = ("fault-*.json", "stacks-*.txt")
SHAPING = ("ACCELERATE_", "CUDA_", "DS_", "FSDP_", "GLOO_", "KDSCALE_", "NCCL_", "OMP_", "SLURM_JOB", "TORCH_")  # variables
FOLDERS = {"checkpoints", "phases", "export", "best", "tracking"}
SHARDS = "shards"  # data that a run may lie beside; never removed
LENGTHS = ("epochs", "steps")


class Folder:
    """OUT, held by rank 0 of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = Lock(path / "lock")
        self.family = ""  # of the recipe, whatever the length of its last phase: a save of another family is not ours

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def phase_path(self, number: int, name: str) -> Path:
        return self.path / "phases" / f"{number + 1:02d}-{name}"

    def open(self, recipe: Recipe, identity: dict[str, Any], overwrite: bool) -> list[str]:
        """Takes the folder for this recipe; returns sentences for the log.

        Raises RunError where it belongs to another recipe (each changed field with both values), to another process, or
        holds files that are no run's.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self._refuse_foreign()
        self.lock.take()
        try:
            if overwrite:
                self._clear()
            identity = self._as_before(identity)
            said = self._compare(identity)
            self.family = family(identity)
            self._sweep()
            self._write_recipe(to_plain(recipe))
            write_json(self.path / "identity.json", identity)
            (self.path / "verdict.json").unlink(missing_ok=True)
            self._note_start(digest(identity))
        except BaseException:
            self.lock.release()
            raise
        return said

    def _write_recipe(self, plain: dict[str, Any]) -> None:
        """The recipe, and beside it where the methods are that only its own files define."""
        write_json(self.path / "recipe.json", plain)
        if foreign := own.origins(plain):
            write_json(self.path / own.FILE, foreign)
        else:
            (self.path / own.FILE).unlink(missing_ok=True)

    def _sweep(self) -> None:
        """Removes what killed processes left half-written. Under the lock."""
        saving.sweep(self.checkpoints)
        left = (f"*{TEMPORARY}*", f"phases/*/*{TEMPORARY}*", ".best-*", "fault-*.json")
        for path in (found for pattern in left for found in self.path.glob(pattern)):
            path.unlink(missing_ok=True)

    def _refuse_foreign(self) -> None:
        present = {p.name for p in self.path.iterdir() if not p.name.startswith(".") and TEMPORARY not in p.name}
        present -= {p.name for pattern in OF_RANKS for p in self.path.glob(pattern)}
        foreign = present - OURS - FOLDERS - {SHARDS}
        if foreign and not (self.path / "recipe.json").exists():
            raise RunError(
                f"{self.path} holds files that are no run's ({', '.join(sorted(foreign)[:3])}): choose an empty folder for --out"
            )

    def _clear(self) -> None:
        """Removes a former run's own files, and nothing else; what says whose they were goes last."""
        if not (self.path / "recipe.json").exists():
            return
        for name in sorted(FOLDERS):
            place = self.path / name
            if place.is_symlink():
                place.unlink()
            elif place.exists():
                shutil.rmtree(place)
        of_ranks = [path.name for pattern in OF_RANKS for path in self.path.glob(pattern)]
        for name in (*of_ranks, *sorted(OURS - {"lock", "identity.json"}), "identity.json"):
            (self.path / name).unlink(missing_ok=True)

    def _before(self) -> dict[str, Any] | None:
        """The identity that the folder's run has had; None where it has left nothing, and has nothing to lose."""
        kept = self.path / "identity.json"
        left = saving.all_saves(self.checkpoints) or any(self.path.glob("phases/*/*.safetensors"))
        return dict(json.loads(kept.read_text())) if left and kept.exists() else None

    def _as_before(self, identity: dict[str, Any]) -> dict[str, Any]:
        """``identity`` as the version told it that began this run: without later fields that say what was done before them.

        That is what the run's recipe means when it is read today.
        """
        identity, before = json.loads(json.dumps(identity)), self._before()
        try:
            meant = identity_of(from_json((self.path / "recipe.json").read_text()), {}, {})
        except (OSError, ValueError, RecipeError):
            return identity
        return identity if before is None else dict(without_news(identity, before, json.loads(json.dumps(meant))))

    def _compare(self, identity: dict[str, Any]) -> list[str]:
        before = self._before()
        if before is None:
            return []
        changed = differences(before, identity)
        if len(before["phases"]) != len(identity["phases"]):
            changed = [("the number of phases", len(before["phases"]), len(identity["phases"]))]
        last = f"phases.{len(identity['phases']) - 1}."
        extended = [c for c in changed if c[0] in {last + name for name in LENGTHS} and _longer(c[1], c[2])]
        refused = [c for c in changed if c not in extended]
        if refused:
            told = "; ".join(f"{path} was {short(old)}, is {short(new)}" for path, old, new in refused[:6])
            more = f" and {len(refused) - 6} more" if len(refused) > 6 else ""
            raise RunError(
                f"{self.path} is the run of another recipe: {told}{more}; set it back, choose another --out, or give --overwrite to begin anew"
            )
        return [f"extended: {path} was {old}, is {new}" for path, old, new in extended]

    def _note_start(self, identity: str) -> None:
        facts = environment()
        write_json(self.path / "environment.json", facts)
        with (self.path / "starts.jsonl").open("a") as file:
            file.write(
                json.dumps(
                    {"time": time.time(), "identity": identity, "command": facts["command"], "host": facts["host"]} | slurm()
                )
                + "\n"
            )

    def verdict(self, code: int, reason: str, **facts: Any) -> None:
        """How the run ended: launchers turn every exit code into 1, so scripts read this file."""
        try:
            write_json(self.path / "verdict.json", {"code": code, "reason": reason, "time": time.time(), **facts})
        except OSError as error:  # a full disk must not hide why the run ended
            sys.stderr.write(f"{self.path / 'verdict.json'} could not be written: {error}\n")

    def best_step(self) -> int:
        """Global step of the save that ``best`` points to; -1 where there is none."""
        best = self.path / "best"
        return saving.step_of(Path(os.readlink(best))) if best.is_symlink() else -1

    def point_best(self, save: Path) -> None:
        """``best`` becomes a link to a checkpoint."""
        aside = self.path / f".best-{os.getpid()}"
        aside.unlink(missing_ok=True)
        aside.symlink_to(Path("checkpoints") / save.name)
        os.replace(aside, self.path / "best")


def family(identity: dict[str, Any]) -> str:
    """Digest of an identity less the length of its last phase, which an extension changes."""
    *phases, last = identity["phases"]
    return digest({**identity, "phases": [*phases, {k: v for k, v in last.items() if k not in LENGTHS}]})


def short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _longer(old: Any, new: Any) -> bool:
    return isinstance(old, (int, float)) and isinstance(new, (int, float)) and new > old


def environment() -> dict[str, Any]:
    from importlib.metadata import version

    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else processor()
    return {
        "kdscale": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "timm", "accelerate", "numpy")},
        "commit": commit(),
        "host": socket.gethostname(),
        "system": platform.platform(),
        "device": device,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "command": shlex.join(["kdscale", *sys.argv[1:]]),
        "variables": {name: value for name, value in sorted(os.environ.items()) if name.startswith(SHAPING)},
    }


def commit() -> str:
    """Of the checkout that this code is run from, with '+' where files differ from it; '' elsewhere."""

    def git(*words: str) -> str:
        told = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *words], capture_output=True, text=True, timeout=10, check=True
        )
        return told.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # an environment may lie in a checkout of something else
        return git("describe", "--always", "--dirty=+", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return ""


def processor() -> str:
    """The processor's name as its maker writes it, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


__all__ = ["Folder", "environment", "write_text"]
