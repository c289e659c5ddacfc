"""A step of every registered method against a step of KD on the same pair: time, trained parameters, memory.

    python -m kdscale.benchmarks.methods --data PACKED_CIFAR [--pair wrn_40_2:wrn_16_2] [--batch 64] [--rounds 15]
        [--methods shake,crd] [--device cpu] [--out FILE] [machine.channels_last=true ...]

Included is what the engine does between two batches: clocks and rates, the frozen networks, forward, backward, the optimizer,
what a method does after a step. Not included: reading, decoding and augmenting (a few batches are fetched beforehand and
taken in turn), evaluations and saves. A method that expands to phases has a line for each, on untrained networks;
several teachers are as many networks of the one architecture. One that needs a distillation token is held against KD on the
tiny distilled DeiT. All networks stand in one process, a round is a step of each in an order that is drawn anew, and a ratio
is within a round, so what slows the machine for longer than a round falls on all alike.

Memory, beyond KD's: `held` are parameters and buffers of all networks, the trained parts and the optimizer's state; `step` is,
on the CPU, what a forward keeps for its backward (the storages that autograd saves, each once), and on a GPU the peak of a
step above what stood before it. Gradients are a `trained` more.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdscale.benchmarks.step import endless, engine_step, some_batches
from kdscale.engine.parallel import Session, connect
from kdscale.engine.stage import Stage, build_stage
from kdscale.errors import KdscaleError, RecipeError
from kdscale.methods import KD
from kdscale.recipe import SGD, Augment, Data, FromPhase, Method, Model, Recipe, override, resolve
from kdscale.recipe.method import kind_of, method_of_kind
from kdscale.report.methods import beside_student, recipe_of

WARM = 2  # rounds not counted
RATE = SGD(1e-3)  # small: untrained networks are to stay finite
UNITS = ("held MB", "step MB")


@dataclass(frozen=True)
class Setting:
    """What all methods of a run share."""

    data: str
    teacher: str = "wrn_40_2"
    student: str = "wrn_16_2"
    batch: int = 64
    assignments: tuple[str, ...] = ()  # path=value of every recipe


@dataclass
class Entrant:
    """One phase of a method. ``base``: the entrant that is KD on the same student."""

    stage: Stage
    step: Callable[[int, Any], None]
    batches: list[Any]
    student: str
    base: Entrant | None = None
    seconds: list[float] = field(default_factory=list)
    held: int = 0  # bytes
    kept: int = 0  # bytes of a step

    @property
    def kind(self) -> str:
        return kind_of(self.stage.phase.method)

    @property
    def beside(self) -> int:
        """Trained parameters that are not the student's."""
        return beside_student(self.stage.distiller, self.stage.trained.get("student"))

    def turn(self, number: int) -> None:
        """A step, timed on a device that has nothing else to do."""
        device = self.stage.session.device
        settle(device)
        started = time.perf_counter()
        self.step(number, self.batches[number % len(self.batches)])
        settle(device)
        self.seconds.append(time.perf_counter() - started)


def prepared(method: Method, setting: Setting) -> Recipe:
    """The method's recipe in this setting. Frozen roles of one source would share a network: their floors, which nobody
    asks after here, are made to differ."""
    made = recipe_of(method, setting.teacher, setting.student, setting.data)
    models = [(role, source) for role, source in made.networks.items() if isinstance(source, Model)]
    networks = {role: replace(source, floor=1e-6 * number) for number, (role, source) in enumerate(models)}
    data = Data(setting.data, batch=setting.batch, train=Augment.cifar(), eval_crop=1.0, workers=0)
    phases = tuple(replace(phase, optimizer=RATE) for phase in made.phases)
    return override(replace(made, networks=networks, data=data, phases=phases), list(setting.assignments))


def student_of(recipe: Recipe) -> str:
    source = recipe.networks["student"]
    if isinstance(source, FromPhase):
        raise RecipeError(f"the student is that of phase {source.phase}, and no phase has run: name its architecture")
    return source.name


def recipes(kinds: Iterable[str], setting: Setting) -> dict[tuple[str, str], Recipe]:
    """(kind, student) -> recipe; each student's KD stands before what is held against it."""
    found: dict[tuple[str, str], Recipe] = {}
    kd = prepared(KD(), setting)
    for kind in (kind_of(KD()), *kinds):
        made = prepared(method_of_kind(kind)(), setting)
        student = student_of(made)
        base = replace(kd, networks={**kd.networks, "student": made.networks["student"]})
        found.setdefault((kind_of(KD()), student), base)
        found.setdefault((kind, student), made)
    return found


def enter(recipe: Recipe, session: Session, folder: Path) -> list[Entrant]:
    """An entrant for each phase that a recipe expands to. Raises KdscaleError for networks that the method does not take."""
    whole, entered = resolve(recipe), []
    for number in range(len(whole.phases)):
        upto = endless(replace(whole, phases=whole.phases[: number + 1]))
        stage = build_stage(upto, number, session, None)
        step = engine_step(stage, folder / f"{stage.phase.name}-{student_of(recipe)}")
        entered.append(Entrant(stage, step, [], student_of(recipe)))
    return entered


def field_of(kinds: Sequence[str], setting: Setting, session: Session, folder: Path) -> tuple[list[Entrant], dict[str, str]]:
    """(all entrants with their batches, kind -> why it is left out)."""
    entered: list[Entrant] = []
    left_out: dict[str, str] = {}
    batches: dict[int, list[Any]] = {}  # by views
    bases: dict[str, Entrant] = {}
    for (kind, student), recipe in recipes(kinds, setting).items():
        try:
            phases = enter(recipe, session, folder)
        except KdscaleError as error:
            if kind == kind_of(KD()):
                raise
            left_out[kind] = str(error)
            continue
        for entrant in phases:
            views = entrant.stage.phase.method.needs().views
            entrant.batches = batches.setdefault(views, batches.get(views) or some_batches(entrant.stage))
            entrant.base = bases.setdefault(student, entrant)
        entered += phases
    return entered, left_out


def settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def race(entrants: Sequence[Entrant], rounds: int) -> None:
    """Fills each entrant's seconds and bytes. The first rounds make the optimizers' state and are not counted."""
    for number in range(WARM + rounds):
        order = list(entrants)
        random.Random(number).shuffle(order)
        for entrant in order:
            entrant.turn(number)
    for entrant in entrants:
        del entrant.seconds[:WARM]
        entrant.held = held_bytes(entrant.stage)
        entrant.kept = step_bytes(entrant)


def held_bytes(stage: Stage) -> int:
    """Of everything that stands between two steps, shared storages once."""
    modules = {id(module): module for module in (stage.distiller, *stage.frozen.values())}.values()
    standing = [t for module in modules for t in (*module.parameters(), *module.buffers())]
    return sum(storages(standing).values()) + sum(t.nbytes for t in stage.wrapped.optimizer_state()[0].values())


def step_bytes(entrant: Entrant) -> int:
    """What a step needs beyond that: see this file's head."""
    device, batch = entrant.stage.session.device, entrant.batches[0]
    if device.type == "cuda":
        settle(device)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        entrant.step(0, batch)
        settle(device)
        return torch.cuda.max_memory_allocated() - before
    saved: list[Tensor] = []  # held to the end, so that no address is given out twice

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor.detach())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        entrant.step(0, batch)
    modules = (entrant.stage.distiller, *entrant.stage.frozen.values())
    standing = [batch.images, *(t for module in modules for t in (*module.parameters(), *module.buffers()))]
    known = storages(standing)
    return sum(size for place, size in storages(saved).items() if place not in known)


def storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Address -> bytes of what the tensors lie in."""
    return {(s := tensor.untyped_storage()).data_ptr(): s.nbytes() for tensor in tensors}


def row(entrant: Entrant) -> dict[str, Any]:
    """Plain data of an entrant; ``ratio``: lower quartile, median, upper quartile. What is beyond KD's may be less than it."""
    base = entrant.base or entrant
    ratios = [mine / theirs for mine, theirs in zip(entrant.seconds, base.seconds, strict=True)]
    return {
        "method": entrant.kind,
        "phase": entrant.stage.phase.name,
        "student": entrant.student,
        "milliseconds": 1000 * statistics.median(entrant.seconds),
        "ratio": statistics.quantiles(ratios, n=4),
        "trained_beside_student": entrant.beside,
        "held_bytes": entrant.held - base.held,
        "step_bytes": entrant.kept - base.kept,
        "seconds": entrant.seconds,
    }


def table(rows: Sequence[dict[str, Any]], student: str) -> Iterator[str]:
    """Markdown, in columns that are aligned for reading as it is. ``student``: the pair's, which is not named again."""
    cells = [("method", "phase", "ms", "ratio to KD", "quartiles", "trained beside", *UNITS)]
    for told in rows:
        method = told["method"] + ("" if told["student"] == student else f" ({told['student']})")
        lower, median, upper = told["ratio"]
        size = [f"{round(told[name] / 1e6, 1) + 0:+.1f}" for name in ("held_bytes", "step_bytes")]
        time_columns = (f"{told['milliseconds']:.1f}", f"{median:.2f}", f"{lower:.2f} .. {upper:.2f}")
        cells.append((method, told["phase"], *time_columns, f"{told['trained_beside_student']:,}", *size))
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    lines = [
        f"| {' | '.join(c.rjust(w) if n > 1 else c.ljust(w) for n, (c, w) in enumerate(zip(line, widths, strict=True)))} |"
        for line in cells
    ]
    rule = "|".join(f"{'-' * (w + 1)}{':' if n > 1 else '-'}" for n, w in enumerate(widths))
    yield from (lines[0], f"|{rule}|", *lines[1:])


def measure(setting: Setting, kinds: Sequence[str], rounds: int) -> dict[str, Any]:
    """Everything that is told of a run, as plain data."""
    session = connect()
    try:
        with tempfile.TemporaryDirectory() as folder:
            threads = prepared(KD(), setting).machine.threads
            torch.set_num_threads(threads or torch.get_num_threads())
            entrants, left_out = field_of(kinds, setting, session, Path(folder))
            race(entrants, rounds)
        cuda = session.device.type == "cuda"
        return {
            "pair": f"{setting.teacher}:{setting.student}",
            "batch": setting.batch,
            "rounds": rounds,
            "set": list(setting.assignments),
            "device": torch.cuda.get_device_name() if cuda else "cpu",
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "step_bytes_are": "peak of the device above what stood before" if cuda else "saved for the backward",
            "rows": [row(entrant) for entrant in entrants],
            "left_out": left_out,
        }
    finally:
        session.close()


def page(told: dict[str, Any]) -> list[str]:
    head = f"{told['pair'].replace(':', ' -> ')}, batch {told['batch']} on {told['device']}, threads {told['threads']}, torch"
    lines = [
        f"{head} {told['torch']}; medians of {told['rounds']} rounds; memory beyond KD's, {UNITS[1]}: {told['step_bytes_are']}"
    ]
    lines += ["", *table(told["rows"], told["pair"].partition(":")[2])]
    reasons = [f"- {kind}: {' '.join(reason.split())}" for kind, reason in told["left_out"].items()]
    return [*lines, *(["", "Left out:", "", *reasons] if reasons else [])]


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m kdscale.benchmarks.methods")
    parser.add_argument("--data", required=True, help="packed images of 32 pixels")
    parser.add_argument("--pair", default="wrn_40_2:wrn_16_2", metavar="TEACHER:STUDENT")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15, help="counted, 2 or more")
    parser.add_argument("--methods", default="", metavar="KIND,...", help="all registered ones, if not given")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="what the machine has, if not given")
    parser.add_argument("--out", type=Path, metavar="FILE", help="FILE.json and FILE.md are written")
    parser.add_argument("set", nargs="*", metavar="path=value", help="fields of every recipe")
    read = parser.parse_args(words)
    teacher, _, student = read.pair.partition(":")
    if not student or read.rounds < 2 or (read.device == "cuda" and not torch.cuda.is_available()):
        parser.error("--pair is TEACHER:STUDENT, --rounds 2 or more, and --device one that this machine has")
    if read.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before anything asks for a GPU
    kinds = read.methods.split(",") if read.methods else sorted(Method.registry)
    told = measure(Setting(read.data, teacher, student, read.batch, tuple(read.set)), kinds, read.rounds)
    text = "\n".join(page(told)) + "\n"
    sys.stdout.write(text)
    if read.out:
        read.out.parent.mkdir(parents=True, exist_ok=True)
        Path(f"{read.out}.json").write_text(json.dumps(told, indent=1) + "\n")
        Path(f"{read.out}.md").write_text(text)


if __name__ == "__main__":
    main(sys.argv[1:])
