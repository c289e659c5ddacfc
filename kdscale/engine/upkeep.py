"""What is due between steps: evaluations, saves, the files of a phase. Every call is made by all ranks after the same step."""

from __future__ import annotations

import math
import socket
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from ..recipe import FromPhase, Plateau
from ..types import Progress
from .checkpoint import saving
from .checkpoint.folder import Folder
from .evaluation import evaluate_frozen, evaluate_stage
from .faults.ends import NonFinite
from .faults.pulse import beat
from .keeper import Memory, averaged_statistics, collect, write_phase_file
from .meter import Meter
from .reporter import Reporter
from .schedule import TRAINING, over
from .stage import Stage
from .stragglers import Stragglers
from .unity import require_unity
from .writer import TRIES, Writer

WORTH_TELLING = 1.0  # seconds that a save waited for the one before it


class Upkeep:
    def __init__(self, stage: Stage, memory: Memory, meter: Meter, folder: Folder, reporter: Reporter) -> None:
        self.stage, self.memory, self.meter, self.folder, self.reporter = stage, memory, meter, folder, reporter
        self.last_save: Path | None = None  # complete, of this run
        self.seconds = 0.0  # that the last call of run() took
        self.writer = Writer(folder, stage.recipe.checkpointing.keep, reporter)
        self._stragglers = Stragglers()
        self._under_way: int | None = None  # global step of the save that is being written
        self._file_epochs = self._epochs_named_later()

    def plateau_history(self) -> list[float]:
        """The values of the metric that a plateau schedule watches, oldest first."""
        schedule = self.stage.phase.schedule
        if not isinstance(schedule, Plateau):
            return []
        name, _, field = schedule.metric.rpartition(".")
        return [line[field] for line in self.memory.history if line["name"] == name]

    @property
    def over(self) -> bool:
        """Whether the phase has come to its end: its last step, or the last cut of a plateau that stops."""
        phase = self.stage.phase
        done = self.memory.step >= self.stage.plan.total_steps
        return done or over(phase.schedule, phase.optimizer.lr, self.plateau_history())

    def due(self, step: int) -> bool:
        return bool(
            self._evaluation_due(step) or self._save_due(step) or self._epoch_files_due(step) or self._epoch_mean_due(step)
        )

    def run(self, step: int, rate: float) -> None:
        """Whatever is due after step number ``step``: evaluation first, so that the save knows what it said."""
        started = time.perf_counter()
        self.settle(wait=False)
        if self._epoch_mean_due(step):
            self._record_epoch()
        improved = self.evaluate() if self.over or self._evaluation_due(step) else False
        ends = self.over  # an evaluation may have been the one that a plateau waited for
        if ends:
            self.log(rate)
        # Files that later phases read come before the save: a run that is killed between the two writes them again.
        if improved or self._epoch_files_due(step):
            refuse_poison(self.stage, self.memory)
        for epoch in self._epoch_files_due(step):
            write_phase_file(self.stage, self.folder, f"epoch-{epoch}", self.memory)
        if improved and self._best_named:
            write_phase_file(self.stage, self.folder, "best", self.memory)
        self._keep_for_good(step)
        if ends or improved or self._save_due(step):
            self.save()
        self.seconds = time.perf_counter() - started

    def _crossed(self, step: int, every: float) -> bool:
        """Whether a multiple of ``every`` epochs lies in step number ``step``; the last step of whole epochs counts as their end."""
        plan = self.stage.plan
        before, after = plan.epoch(step), plan.epoch(step + 1)
        if step + 1 == plan.total_steps:
            after = max(after, plan.epochs)
        return math.floor(after / every + 1e-9) > math.floor(before / every + 1e-9)

    def _evaluation_due(self, step: int) -> bool:
        return step + 1 == self.stage.plan.total_steps or self._crossed(step, self.stage.recipe.evaluation.every)

    def _save_due(self, step: int) -> bool:
        setting = self.stage.recipe.checkpointing
        if step + 1 == self.stage.plan.total_steps:
            return True
        if setting.every_steps:
            return (step + 1) % setting.every_steps == 0
        return setting.every_epochs is not None and self._crossed(step, setting.every_epochs)

    def _epoch_mean_due(self, step: int) -> bool:
        schedule = self.stage.phase.schedule
        return isinstance(schedule, Plateau) and schedule.metric == TRAINING and self._crossed(step, 1.0)

    def _record_epoch(self) -> None:
        """The epoch's mean training loss, for a plateau that watches it."""
        mean, epoch = self.meter.epoch_mean(), self.stage.progress(self.memory.step).epoch
        if mean is not None:
            self.memory.history.append({"step": self.memory.step, "epoch": epoch, "name": "train", "loss": mean})

    def _epochs_named_later(self) -> set[int]:
        """Epochs of this phase from which a later phase takes a network."""
        later = self.stage.recipe.phases[self.stage.number + 1 :]
        sources = [
            s
            for phase in later
            for s in phase.networks.values()
            if isinstance(s, FromPhase) and s.phase == self.stage.phase.name
        ]
        self._best_named = any(source.at == "best" for source in sources)
        return {source.at for source in sources if isinstance(source.at, int)}

    def _epoch_files_due(self, step: int) -> list[int]:
        before = math.floor(self.stage.plan.epoch(step) + 1e-9)
        after = self.stage.plan.epoch_after(step)
        return [] if after is None else [e for e in sorted(self._file_epochs) if before < e <= after]

    def evaluate(self) -> bool:
        """Measures the split; True when the deciding answer is better than ever in this phase."""
        require_unity(self.stage, self.memory.step - 1)
        with averaged_statistics(self.stage):
            scores = evaluate_stage(self.stage)
        progress = self.stage.progress(self.memory.step)
        for name, entry in scores.items():
            line = {"name": name, **entry}
            self.memory.history.append({"step": self.memory.step, "epoch": progress.epoch, **line})
            self._evaluation_line(line, progress)
        deciding = self.stage.recipe.evaluation.best_of
        if deciding not in scores:
            return False
        value = scores[deciding]["top1"]
        if self.memory.best is not None and value <= self.memory.best:
            return False
        self.memory.best, self.memory.best_step = value, self.memory.global_step
        return True

    def evaluate_teachers(self) -> None:
        """Once, before the first step of a phase, on the whole split."""
        progress = self.stage.progress(0)
        for role, entry in evaluate_frozen(self.stage).items():
            self._evaluation_line({"name": role, **entry}, progress)

    def _evaluation_line(self, line: dict[str, Any], progress: Progress) -> None:
        self.reporter.evaluation(self._place(progress) | line | {"seconds": self.memory.seconds})

    def log(self, rate: float) -> None:
        """The line of means since the last one. A collective."""
        self.settle(wait=False)
        line = self.meter.line()
        if not line:
            return
        plan, progress = self.stage.plan, self.stage.progress(self.memory.step)
        left = (plan.position(plan.total_steps) - progress.position) / max(line["images_per_second"], 1e-9)
        at_most = {"at_most": True} if getattr(self.stage.phase.schedule, "stops", False) else {}
        self.reporter.train(self._place(progress) | {"steps": plan.total_steps, "lr": rate, "eta": left} | at_most | line)
        self._name_slow_ranks()

    def _name_slow_ranks(self) -> None:
        slow = self._stragglers.found(self.meter.waits)
        if not slow:
            return
        machines, waits = self.stage.session.all_of(socket.gethostname()), self.meter.waits
        for rank in slow:
            self.reporter.say(
                f"rank {rank} ({machines[rank]}) waits for data {100 * waits[rank]:.0f} % of the time, and the others with it; they"
                f" themselves wait {100 * statistics.median(waits):.0f} %: look at that machine's storage and cores"
            )

    def _place(self, progress: Progress) -> dict[str, Any]:
        return {
            "phase": self.stage.phase.name,
            "step": progress.step,
            "global_step": self.memory.global_step,
            "epoch": progress.epoch,
        }

    def save(self) -> None:
        """Begins a save, after the one that is still being written; :meth:`settle` says what became of it.

        Raises NonFinite for weights that are not finite, which are never saved, and SaveFailed as :meth:`settle` does.
        """
        self._wait_for_the_one_before()
        if self._saved_here:
            return
        refuse_poison(self.stage, self.memory)
        require_unity(self.stage, self.memory.step - 1)
        save = collect(self.stage, self.memory, self.meter)
        epoch = self.stage.progress(self.memory.step).epoch
        save.facts |= {"family": self.folder.family, "epoch": epoch, "time": time.time()}
        self.stage.session.once(lambda: self.writer.begin(save))
        self._under_way = self.memory.global_step

    def _wait_for_the_one_before(self) -> None:
        started, before = time.perf_counter(), self._under_way
        self.settle(wait=True)
        seconds = time.perf_counter() - started
        if before not in (None, self.memory.global_step) and seconds > WORTH_TELLING:
            self.reporter.say(f"waited {seconds:.1f} s for the save of step {before}: the disk is slower than the saves come")

    @property
    def saving(self) -> bool:
        """Whether a save is still being written, as far as the ranks have agreed."""
        return self._under_way is not None

    @property
    def _saved_here(self) -> bool:
        return self.last_save is not None and saving.step_of(self.last_save) == self.memory.global_step

    def settle(self, wait: bool) -> None:
        """Learns on every rank what became of the save under way, if any. A collective.

        Raises SaveFailed after three failures in a row, with the last save intact.
        """
        if not self.saving:
            return
        beat("waiting for a save" if wait else "asking for a save")
        busy, self.last_save = self.stage.session.once(lambda: self.writer.outcome(self.last_save, wait))
        if not busy:
            self._under_way = None

    def save_or_fail(self) -> None:
        """Before the run or the phase is left: a complete save, as often as a failing one may be tried."""
        for _ in range(TRIES):
            self.save()
            self.settle(wait=True)
            if self._saved_here:
                return

    def close(self) -> None:
        """However the phase is left: the save under way is finished while the folder is still ours."""
        self.writer.close()

    def _keep_for_good(self, step: int) -> None:
        every, epoch = self.stage.recipe.checkpointing.keep_every_epochs, self.stage.plan.epoch_after(step)
        if every is not None and epoch is not None and epoch % every == 0:
            self.memory.kept.append(self.memory.global_step)

    def finish(self) -> None:
        """The end of the phase: its own file, which later phases and the export read."""
        write_phase_file(self.stage, self.folder, "end", self.memory)


def refuse_poison(stage: Stage, memory: Memory) -> None:
    """A finite loss can have a gradient that is not: what it made of the weights must not replace a save that can be used.

    Every rank calls it, and looks at what lies there.
    """
    parts = (*map(stage.wrapped.part, stage.distiller.parameters()), *stage.distiller.buffers())
    norms = torch._foreach_norm([t.detach() for t in parts if t.is_floating_point()])
    mine = not bool(torch.stack([n.float() for n in norms]).isfinite().all())
    if stage.session.most_flags([mine])[0]:
        raise NonFinite(
            f"the weights are not finite after step {memory.step - 1} of phase {stage.phase.name!r}; the last save is kept:"
            " lower the learning rate, set optimizer.clip, or go on with nonfinite=skip"
        )
