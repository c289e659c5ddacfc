"""One recipe, cut to a few steps, under every back-end on this machine: are the curve and the weights the same?

Each run is a ``kdscale train`` in processes of its own, as a person would start it; this process only waits and compares.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...data.loading import usable_cores
from ...errors import KdscaleError
from ...recipe import Recipe
from ..faults.ends import ABANDONED, DONE, FAULT, USAGE
from ..faults.signals import Signals
from ..parallel import refuse_unfit
from ..sweep import POLL, stop_with_parent
from .likeness import Difference, Tolerance, compare
from .shortened import shortened, terms

BACK_ENDS = ("ddp", "zero1", "zero2", "zero3", "fsdp2")
ALONE = "one process"
PATIENCE = 40.0  # seconds for a run that was asked to end; its launcher gives its ranks 30
PAGE = '''"""A recipe cut to {steps} steps a phase by `kdscale parity`."""

from kdscale.engine.parity.shortened import shortened
from kdscale.recipe import override
from kdscale.recipe.load import load

recipe = shortened(override(load({reference!r}), {words!r}), {steps})
'''


@dataclass
class Row:
    """One run of the table. ``state``: 'refused', 'failed', 'reference', 'within' or 'apart'."""

    name: str
    parallel: str
    ranks: int
    accumulate: int
    out: Path
    state: str = ""
    told: str = ""  # why, in one line
    seconds: float | None = None
    against: Row | None = None
    tolerance: Tolerance | None = None
    difference: Difference | None = None

    @property
    def log(self) -> Path:
        return self.out.with_name(f"{self.out.name}.log")

    @property
    def done(self) -> bool:
        return self.state in ("reference", "within", "apart")

    @property
    def fault(self) -> bool:
        return self.state in ("failed", "apart")


class Interrupted(KdscaleError):
    code = ABANDONED


class Parity:
    """The runs, one after another, each in processes of its own. ``words``: path=value; ``folder``: where they lie."""

    def __init__(
        self,
        reference: str,
        words: Sequence[str],
        recipe: Recipe,
        folder: Path,
        *,
        ranks: int,
        steps: int,
        only: Sequence[str] = BACK_ENDS,
        say: Callable[[str], None],
    ) -> None:
        self.recipe = shortened(recipe, steps)
        self.terms = terms(self.recipe, ranks)
        self.folder, self.say = folder, say
        self.steps = max(phase.steps or 0 for phase in self.recipe.phases)
        folder.mkdir(parents=True, exist_ok=True)
        self._page = folder / "shortened.py"
        self._page.write_text(PAGE.format(reference=reference, words=list(words), steps=steps))
        self.rows = list(self._rows(only))

    def _rows(self, only: Sequence[str]) -> Iterator[Row]:
        alone, ranks = self.terms.alone, self.terms.ranks
        if alone is not None:
            yield Row(ALONE, "ddp", 1, alone, self.folder / "one")
        for name in BACK_ENDS:
            if name in only or (name == "ddp" and alone is None):
                yield Row(name, name, ranks, self.terms.accumulate, self.folder / name)

    def run(self, keep: bool) -> int:
        """The process's exit code. ``keep=False``: a run that is within its tolerance, and no later one's reference, is removed."""
        with Signals() as signals:
            for row in self.rows:
                self._run(row, signals)
                if row is self.rows[0] and row.state != "reference":
                    raise _unfit(row)
                if not keep and row.state == "within" and row.name != "ddp":
                    shutil.rmtree(row.out)
        return FAULT if self.faults else DONE

    @property
    def faults(self) -> list[Row]:
        return [row for row in self.rows if row.fault]

    def _run(self, row: Row, signals: Signals) -> None:
        row.state, row.told = self._refused(row)
        if row.state:
            return
        built = " (DeepSpeed's first start on a machine builds an operator, which takes a minute or two)"
        first = row.parallel.startswith("zero") and not any(r.done for r in self.rows if r.parallel.startswith("zero"))
        self.say(f"{row.name}{f' on {row.ranks} ranks' * (row.ranks > 1)}: running{built * first}")
        began = time.monotonic()
        code = run_process(self._command(row), row.log, self.terms.ranks, signals)
        row.seconds = time.monotonic() - began
        if code != DONE:
            row.state, row.told = told_of(row, code)
        else:
            self._compare(row)

    def _refused(self, row: Row) -> tuple[str, str]:
        if row.parallel.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
            return "refused", "DeepSpeed is not installed: pip install deepspeed"
        try:
            for phase in self.recipe.phases:
                refuse_unfit(row.parallel, phase, phase.method.needs())
        except KdscaleError as error:
            return "refused", str(error)
        return "", ""

    def _command(self, row: Row) -> list[str]:
        launcher = [sys.executable, "-m"]
        if row.name != ALONE:
            launcher += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(row.ranks), "-m"]
        (row.out / "verdict.json").unlink(missing_ok=True)
        said = {"parallel": row.parallel, "accumulate": row.accumulate}
        words = [f"batch_norm={self.terms.batch_norm}", *(f"machine.{name}={value}" for name, value in said.items())]
        return [*launcher, "kdscale", "train", str(self._page), *words, "--out", str(row.out), "--overwrite"]

    def _compare(self, row: Row) -> None:
        """With ddp on as many ranks where that has run, else with the one process."""
        done = [r for r in self.rows if r.done and r.name in (ALONE, "ddp")]
        if not done:
            row.state = "reference"
            return
        row.against = done[-1]
        equal = self.terms.ranks == 1 or row.against.ranks == row.ranks
        whole = self.terms.alone == self.terms.accumulate  # of a micro-batch over all ranks, in the one process
        row.tolerance = Tolerance.of(self.recipe.precision, equal, alike=equal or not whole)
        statistics = equal or whole
        row.difference = compare(row.out, row.against.out, row.tolerance, statistics)
        row.told = "; ".join(row.difference.wrong)
        row.state = "apart" if row.told else "within"


def run_process(words: Sequence[str], log: Path, ranks: int, signals: Signals) -> int:
    """Runs ``words`` to their end, which is told in ``log``, and returns their exit code.

    Raises Interrupted, when nothing of it runs any more, once a signal has asked this process to stop.
    """
    with log.open("wb") as file:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=_environment(ranks),
            start_new_session=True,
            preexec_fn=stop_with_parent(),
        )
    try:
        while process.poll() is None and not signals.asked:
            time.sleep(POLL)
    finally:
        if process.poll() is None:
            _end(process)
    if signals.asked:
        raise Interrupted(f"{signals.asked} asked for a stop: nothing is compared")
    return int(process.returncode)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _environment(ranks: int) -> dict[str, str]:
    """Of a run: as many threads on either side, full float32, and no job whose tasks it could be taken for."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    kept.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // ranks)))
    return kept | {"NVIDIA_TF32_OVERRIDE": "0", "KDSCALE_PROGRESS": "lines"}


def told_of(row: Row, code: int) -> tuple[str, str]:
    """('refused' or 'failed', why) of a run that has ended with ``code``, by its verdict or else by its log."""
    try:
        verdict = json.loads((row.out / "verdict.json").read_text())
        return ("refused" if verdict["code"] == USAGE else "failed"), " ".join(str(verdict["reason"]).split())
    except (OSError, ValueError, KeyError):
        pass
    lines = row.log.read_text(errors="replace").splitlines()
    known = [line.partition("kdscale: ")[2] for line in lines if re.match(r"(\[\w+\]:)?kdscale: ", line)]
    return ("refused" if code == USAGE else "failed"), known[0] if known else f"it ended with {code}"


def _unfit(row: Row) -> KdscaleError:
    """Without what the others are compared with there is nothing to say."""
    if row.state == "refused":
        return KdscaleError(f"{row.name} cannot train this recipe: {row.told}")
    error = KdscaleError(f"{row.name} failed, and there is nothing to compare with: {row.told}; see {row.log}")
    error.code = FAULT
    return error
