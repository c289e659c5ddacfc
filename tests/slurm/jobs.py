"""Jobs of the small cluster: submitted, watched by the lines that their runs write, and hurried where Slurm makes them wait."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from kdscale.recipe import Evaluation, override
from tests.engine import small

from .cluster import Cluster, wait_until

SCRIPTS = Path(__file__).resolve().parents[2] / "slurm"
STEPS = 240
CLEANING = 8  # seconds: a job that is started again before its nodes are rid of it fails at once
SETTLED = 2.0  # seconds: a job that is requeued may seem to have ended for a moment
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}


class Place:
    """The cluster, a recipe of some seconds (``recipe``), and what the runs in ``folder`` have done."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        self.data = small.shards(folder / "data")
        recipe = small.recipe(self.data, evaluation=Evaluation(every=30))
        self.recipe = small.write(folder / "r.json", override(recipe, [f"steps={STEPS}", "checkpointing.every_steps=20"]))

    def train(self, out: Path, *options: str, launch: str = "torchrun", recipe: Path | None = None, **variables: str) -> str:
        """Submits slurm/train.sbatch on two nodes; the job's number."""
        words: list[str | Path] = [
            "--nodes=2",
            *options,
            "--chdir",
            self.folder,
            "--output",
            self.folder / "job-%j.txt",
            SCRIPTS / "train.sbatch",
        ]
        return self.cluster.submit(*words, recipe or self.recipe, "--out", out, KDSCALE_LAUNCH=launch, **variables)

    def said(self, job: str) -> str:
        path = self.folder / f"job-{job}.txt"
        return path.read_text() if path.exists() else ""

    def wait_for_step(self, job: str, out: Path, step: int) -> None:
        def there() -> bool:
            assert self.cluster.state(job) not in ENDED, self.told(job, out)
            return newest_step(out) >= step

        self._wait(there, job, out, f"job {job} did not reach step {step}")

    def wait_for_end(self, job: str, out: Path, *states: str, seconds: float = 300) -> None:
        """Waits for a state (COMPLETED if none is named); a job that waits to be started again is started at once."""
        waits_since, ended_since = 0.0, time.monotonic()

        def ended() -> bool:
            nonlocal waits_since, ended_since
            facts = self.cluster.facts(job)
            if facts["JobState"] not in ENDED:
                ended_since = time.monotonic()
            if (facts["JobState"], facts["Reason"]) != ("PENDING", "BeginTime"):
                waits_since = time.monotonic()
            elif time.monotonic() > waits_since + CLEANING:
                self.hurry(job)
            return time.monotonic() > ended_since + SETTLED

        self._wait(ended, job, out, f"job {job} did not end", seconds)
        state = self.cluster.state(job)
        assert state in (states or ("COMPLETED",)), f"{self.cluster.facts(job)}\n{self.told(job, out)}"

    def hurry(self, job: str) -> None:
        """Slurm starts a requeued job after two minutes; this one need not wait for its nodes to be looked after."""
        with contextlib.suppress(subprocess.CalledProcessError):
            self.cluster("scontrol", "update", f"JobId={job}", "StartTime=now")

    def told(self, job: str, out: Path) -> str:
        """All that a failed test wants to see."""
        logs = sorted(Path(f"{out}.slurm").glob("*/*.log"))
        return "\n".join([self.said(job), *(f"== {log}\n{log.read_text()[-1500:]}" for log in logs)])

    def _wait(self, true: Callable[[], bool], job: str, out: Path, otherwise: str, seconds: float = 300) -> None:
        try:
            wait_until(true, seconds, otherwise)
        except TimeoutError as error:
            raise AssertionError(f"{error}\n{self.cluster.facts(job)}\n{self.told(job, out)}") from None


def newest_step(out: Path) -> int:
    """The last step in the run's journal; 0 before there is one."""
    try:
        lines = (out / "metrics.jsonl").read_text().splitlines()
    except OSError:
        return 0
    for line in reversed(lines):
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
            if entry["event"] == "train":
                return int(entry["step"])
    return 0


def process_of_rank(out: Path, rank: int) -> int:
    """Process id of a rank of the run in ``out``."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            command = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else []
            if command[1:3] == [b"-m", b"kdscale"] and os.fsencode(out) in command:
                words = (entry / "environ").read_bytes().split(b"\0")
                if f"RANK={rank}".encode() in words or f"SLURM_PROCID={rank}".encode() in words:
                    return int(entry.name)
    raise AssertionError(f"rank {rank} of {out} is not running")
