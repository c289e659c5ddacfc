"""What a person sees of a run: a live bar on a terminal, plain lines elsewhere, and trackers where the recipe asks for them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ..engine.reporter import Lines, Reporter, Silent, evaluation_text, phase_text

if TYPE_CHECKING:
    from ..recipe import Recipe


def reporters(recipe: Recipe, out: Path) -> list[Reporter]:
    """``KDSCALE_PROGRESS`` = bar, lines or none overrules what the terminal suggests."""
    wish = os.environ.get("KDSCALE_PROGRESS", "bar" if sys.stdout.isatty() else "lines")
    made: list[Reporter] = [] if wish == "none" else [Bar()] if wish == "bar" else [Lines(typer.echo)]
    if recipe.machine.trackers:
        from ..engine.parallel.tracking import Tracking

        made.append(Tracking(recipe.machine.trackers, out / "tracking", recipe.name or "kdscale"))
    return made


class Bar(Silent):
    """Two live rows: bar, steps, time left; below it images/s, share of waiting for data, rate and the losses by name."""

    def __init__(self) -> None:
        from rich.console import Group
        from rich.live import Live
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.text import Text

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        )
        self._told = Text("")
        self._live = Live(Group(self._progress, self._told), refresh_per_second=4)
        self._task: Any = None

    def say(self, text: str) -> None:
        self._live.console.print(text, highlight=False, markup=False)

    def phase(self, facts: dict[str, Any]) -> None:
        self.say(phase_text(facts))
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(facts["name"], total=facts["steps"], completed=facts["step"])
        self._live.start()

    def advance(self, step: int, images: int) -> None:
        if self._task is not None:
            self._progress.update(self._task, completed=step)

    def train(self, line: dict[str, Any]) -> None:
        losses = " ".join(f"{name} {value:.3f}" for name, value in line["losses"].items())
        self._told.plain = (
            f"{line['images_per_second']:.0f} img/s  wait {100 * line['data_wait']:.0f}%  lr {line['lr']:.2g}  {losses}"
        )

    def evaluation(self, line: dict[str, Any]) -> None:
        self.say(evaluation_text(line))

    def close(self) -> None:
        self._live.stop()
