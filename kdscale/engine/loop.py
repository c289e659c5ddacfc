"""The loop: one phase, from the step where it stands to its end. No method, back-end or disk is known here by name."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import DataError
from ..types import Batch
from .faults.agreement import Agreement
from .faults.ends import Stopped
from .faults.pulse import beat
from .faults.signals import Signals
from .idle import look_for_idle
from .keeper import Memory
from .meter import Meter, Sums
from .reporter import Reporter
from .stage import Stage
from .unity import require_unity
from .upkeep import Upkeep


@dataclass
class Loop:
    stage: Stage
    memory: Memory
    meter: Meter
    reporter: Reporter
    upkeep: Upkeep  # evaluations, saves, phase files
    signals: Signals
    agreement: Agreement = field(init=False)

    def __post_init__(self) -> None:
        self.agreement = Agreement(self.stage.session, self.signals, self.stage.phase.name)
        self._begun = self.memory.step

    def run(self) -> None:
        """Raises Stopped after saving when a stop was asked for, NonFinite, or, after saving, the DataError of whichever rank had one."""
        stage = self.stage
        stage.distiller.train()
        stream = stage.stream()
        try:
            batches = stream.batches(self.memory.step)
            self.meter.since = time.perf_counter()
            self._make_up()
            while not self.upkeep.over:
                self.step(self.memory.step, batches)
        finally:
            stream.close()
        self.upkeep.save_or_fail()
        self.upkeep.finish()

    def step(self, step: int, batches: Iterator[Batch]) -> None:
        """One optimizer step, and what is due after it."""
        stage, started = self.stage, time.perf_counter()
        beat("reading", phase=stage.phase.name, step=step, global_step=self.memory.global_step)
        micro, fault = self._fetch(batches)
        beat("agreeing")
        self._agree(fault)
        beat("computing")
        progress = stage.progress(step)
        rate = stage.begin_step(progress, self.upkeep.plateau_history())
        total = torch.zeros((), device=stage.session.device, dtype=torch.float64)
        before = self._before() if stage.recipe.nonfinite == "skip" else None
        for number, batch in enumerate(micro):
            stage.begin_micro_batch(progress, number)
            taught = stage.teach(batch, progress)
            losses = stage.wrapped.accumulate(batch, taught, 1.0 / len(micro), last=number == len(micro) - 1)
            total += self.meter.add(losses)
        if step == self._begun:
            look_for_idle(stage, self.reporter.say)
        if self._update(step, micro, total, before):
            stage.distiller.after_step(progress)  # type: ignore[operator]
            if stage.ema:
                stage.ema.update()
        self._account(step, rate, started)

    def _fetch(self, batches: Iterator[Batch]) -> tuple[list[Batch], DataError | None]:
        """The micro-batches of a step; the device waited for them as long as this takes."""
        started = time.perf_counter()
        try:
            micro = [next(batches) for _ in range(self.stage.recipe.machine.accumulate)]
        except DataError as error:
            return [], error
        self.meter.waited += time.perf_counter() - started
        return micro, None

    def _agree(self, fault: DataError | None) -> None:
        """Whether all ranks go on. Where a signal or data forbid it the weights are good and are saved first."""
        try:
            signal = self.agreement.before(fault)
            if signal is not None:
                raise Stopped(signal)
        except (Stopped, DataError):
            if self.memory.step > 0:  # before that the end of the phase before is the save
                self.agreement.settle()
                self.upkeep.save_or_fail()
            raise

    def _maintain(self, rate: float) -> None:
        """What is due after the last step. An evaluation that a signal or data cut short is owed, and made up after a resume."""
        beat("between steps", step=self.memory.step, global_step=self.memory.global_step)
        try:
            self.upkeep.run(self.memory.step - 1, rate)
        except (Stopped, DataError):
            self.memory.owed = rate
            self.upkeep.save_or_fail()
            raise

    def _make_up(self) -> None:
        rate, self.memory.owed = self.memory.owed, None
        if rate is not None:
            self.upkeep.last_save = None  # it knows of no evaluation: where one is due it is written again
            self._maintain(rate)

    def _before(self) -> tuple[list[Tensor], Sums]:
        """Where a step may be skipped: its forward must leave no trace in running statistics and means either."""
        return [buffer.clone() for buffer in self.stage.distiller.buffers()], self.meter.sums_so_far()

    def _update(self, step: int, micro: list[Batch], total: Tensor, before: tuple[list[Tensor], Sums] | None) -> bool:
        """Clips and moves the weights. False when the step is skipped for a gradient that is not finite."""
        norm = self.stage.wrapped.update(self.stage.phase.optimizer.clip, careful=before is not None)
        if before is None:
            self.agreement.judge(step, micro, total, norm)
        elif norm is not None and self.agreement.skips(step, micro, norm):
            self._undo(step, *before)
            return False
        return True

    def _undo(self, step: int, buffers: list[Tensor], sums: Sums) -> None:
        for buffer, kept in zip(self.stage.distiller.buffers(), buffers, strict=True):
            buffer.copy_(kept)
        self.meter.forget(sums)
        self.memory.skipped += 1
        self.reporter.say(f"step {step} is skipped: its gradient is not finite ({self.memory.skipped} skipped so far)")

    def _account(self, step: int, rate: float, started: float) -> None:
        """The step is done: counts it, tells it, and does what is due."""
        stage, memory, upkeep = self.stage, self.memory, self.upkeep
        memory.step, memory.global_step = step + 1, memory.global_step + 1
        size, last = stage.plan.size(step), step + 1 == stage.plan.total_steps
        if step == 0:
            require_unity(stage, step)
        self.meter.images += size
        seconds = time.perf_counter() - started
        memory.seconds += seconds
        self.signals.deadline.step, self.signals.deadline.save = seconds, upkeep.writer.seconds
        self.reporter.advance(memory.step, size)
        if memory.step % stage.recipe.machine.log_every == 0 or last:
            self.agreement.settle()
            upkeep.log(rate)
        if upkeep.due(step):
            self.agreement.settle()
            self._maintain(rate)
            self.meter.since += upkeep.seconds  # not the steps' own time
