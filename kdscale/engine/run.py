"""A whole run: all phases of a recipe in an output folder, from wherever the folder says that it stands."""

from __future__ import annotations

import gc
import json
import socket
import traceback
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..errors import KdscaleError, RecipeError, RunError
from ..networks import default_floor, preflight, weights_files
from ..recipe import Model, Plateau, Recipe, Stored, resolve, to_plain
from ..recipe.paths import nearest
from ..recipe.resolve import digest, identity, phase_data
from . import checkpoint, faults
from .evaluation import evaluate_frozen
from .faults import Signals, Stopped
from .files import sha256, write_json
from .folder import Folder
from .keeper import Memory, put_weights, restore
from .last_words import LastWords, told
from .loop import Loop
from .meter import Meter
from .parallel import Session
from .phase_file import PhaseFile
from .reporter import Journal, Reporter, Several, Silent, cut_back
from .schedule import TRAINING, over
from .stage import Stage, build_stage, open_data
from .stored import identity_of
from .unity import bits_of
from .upkeep import Upkeep
from .watchdog import CLOSING, Watchdog, end_within

ReporterFactory = Callable[[Recipe, Path], list[Reporter]]


def train(recipe: Recipe, out: Path, session: Session, reporters: ReporterFactory, *, overwrite: bool = False) -> int:
    """Trains a recipe into ``out`` and returns the process's exit code; a KdscaleError is left to the caller to tell.

    A folder that holds this recipe's run is continued at its last complete save.
    """
    recipe = resolve(recipe)
    if recipe.machine.parallel != session.parallel:
        raise RunError(
            f"the ranks were joined for {session.parallel} and the recipe says machine.parallel={recipe.machine.parallel}"
        )
    if recipe.machine.threads:
        torch.set_num_threads(recipe.machine.threads)
    folder = Folder(out)
    with Signals() as signals:
        said = session.once(lambda: _open(folder, recipe, overwrite))
        try:
            return _held(recipe, folder, session, reporters, signals, said)
        finally:
            if session.main:
                folder.lock.release()


def _open(folder: Folder, recipe: Recipe, overwrite: bool) -> list[str]:
    return folder.open(recipe, run_identity(recipe), overwrite)


def run_identity(recipe: Recipe) -> dict[str, Any]:
    """What a resume may not change: the resolved recipe with weights by content and data by manifest."""
    files: dict[str, str] = {}
    data: dict[str, str] = {}
    for phase in recipe.phases:
        source = phase_data(phase).source
        if source not in data:
            train_split, held = open_data(phase)
            data[source] = f"{train_split.info.identity}+{held.info.identity}"
        for network in phase.networks.values():
            if isinstance(network, Stored):
                files[network.name] = identity_of(Path(network.name))
            elif isinstance(network, Model):
                found = weights_files(network)
                if found:
                    files[network.weights if network.weights and Path(network.weights).exists() else network.name] = "+".join(
                        map(sha256, found)
                    )
    return identity(recipe, files, data)


def _held(
    recipe: Recipe, folder: Folder, session: Session, reporters: ReporterFactory, signals: Signals, said: list[str]
) -> int:
    """The run while its folder is ours: every way to end leaves a verdict."""
    start = session.once(lambda: _newest(folder, said, recipe))
    words = LastWords(folder, session, recipe.machine.accumulate)
    signals.abandon = words.abandon
    reporter: Reporter = Silent()
    code, reason = faults.FAULT, "ended without a word"
    try:
        with Watchdog(words, recipe.machine.stall):
            reporter = session.together(
                lambda: Several([Journal(folder.path), *reporters(recipe, folder.path)]) if session.main else Silent()
            )
            for text in said:
                reporter.say(text)
            _phases(recipe, folder, session, reporter, signals, Path(start) if start else None)
        code, reason = faults.DONE, "done"
    except Stopped as stop:
        kept = "saved" if checkpoint.all_saves(folder.checkpoints) else "nothing was trained yet"
        code, reason = faults.STOPPED, f"{stop} asked for a stop; {kept}: the same command continues"
        reporter.say(reason)
    except BaseException as error:
        fault, code, reason = _fallen(error, words, reporter)
        if fault is error:
            raise
        raise fault from error
    finally:
        reporter.close()
        words.verdict(code, reason)
    return code


def _fallen(error: BaseException, words: LastWords, reporter: Reporter) -> tuple[BaseException, int, str]:
    """What the run ends with instead of ``error``, its code and its line; the log has all of it."""
    fault, alone = words.judge(error)
    code, reason = getattr(fault, "code", faults.FAULT), told(fault)
    if not isinstance(fault, KdscaleError):
        reporter.say("".join(traceback.format_exception(error)))
    elif words.session.main:
        words.note(reason)
    if alone:
        end_within(CLOSING, code)
    return fault, code, reason


def _newest(folder: Folder, said: list[str], recipe: Recipe) -> str | None:
    """The save to go on from; the journal is cut back to it."""
    path = checkpoint.newest(folder.checkpoints, said.append, folder.family)
    if path is None and checkpoint.all_saves(folder.checkpoints):
        said.append("no save is whole: beginning anew")
    phase = -1 if path is None else int(checkpoint.read_facts(path)["phase"])
    names = [p.name for p in recipe.phases[: phase + 1]]
    owed = path is not None and checkpoint.read_facts(path)["memory"].get("owed") is not None
    cut_back(folder.path / "metrics.jsonl", 0 if path is None else checkpoint.step_of(path), names, owed)
    return str(path) if path else None


def _phases(recipe: Recipe, folder: Folder, session: Session, reporter: Reporter, signals: Signals, start: Path | None) -> None:
    save = read_together(start, session) if start else None
    first = int(save.facts["phase"]) if save else 0
    done = 0  # global steps of the phases that are done
    for number in range(first + 1, len(recipe.phases)):
        check_names(session.together(partial(build_stage, recipe, number, session, None)))
    for number in range(first, len(recipe.phases)):
        stage = session.together(partial(build_stage, recipe, number, session, folder))
        meter = Meter(session)
        if save:
            put_weights(stage, save)
        agree_on_start(stage)
        memory = restore(stage, save, meter) if save else Memory(global_step=done)
        save = None  # it is as large as the run itself
        upkeep = Upkeep(stage, memory, meter, folder, reporter)
        upkeep.last_save = start
        start_phase(stage, memory, upkeep, reporter)
        if not upkeep.over or memory.owed is not None:
            with closing(upkeep):
                Loop(stage, memory, meter, reporter, upkeep, signals).run()
        elif session.once(partial(_end_step, folder, number, stage)) != memory.step:
            upkeep.finish()  # killed between the last save and the file of the phase's end
        done, start = memory.global_step, upkeep.last_save
        stage.wrapped.release()
        del stage, upkeep
        gc.collect()
        stop_between_phases(session, signals, last=number == len(recipe.phases) - 1)


def read_together(path: Path, session: Session) -> checkpoint.Save:
    """The save that rank 0 chose, on every rank, or its error on all of them."""
    seal = session.once(lambda: checkpoint.read_facts(path).get("sha256"))
    return session.together(lambda: checkpoint.read(path) if session.main else checkpoint.read_on(path, seal))


def _end_step(folder: Folder, number: int, stage: Stage) -> int | None:
    path = folder.phase_path(number, stage.phase.name) / "end.safetensors"
    return PhaseFile(path).step if path.exists() else None


def stop_between_phases(session: Session, signals: Signals, last: bool) -> None:
    """The end of a phase is saved, so a stop that was asked for meanwhile need not wait for the next phase."""
    if not last and session.most_flags([signals.asked is not None])[0]:
        raise Stopped(next(s for s in session.all_of(signals.asked) if s))


def start_phase(stage: Stage, memory: Memory, upkeep: Upkeep, reporter: Reporter) -> None:
    """Shows the phase and how it is computed, and judges names and teachers before the first step."""
    check_names(stage)
    tell_back_end(stage, upkeep.folder, reporter)
    for text in stage.warnings:
        reporter.say(f"warning: {text}")
    reporter.phase(
        {
            "name": stage.phase.name,
            "number": stage.number + 1,
            "phases": len(stage.recipe.phases),
            "steps": stage.plan.total_steps,
            "step": memory.step,
            "batch": stage.plan.batch,
            "images": stage.plan.position(stage.plan.total_steps),
            "at_most": getattr(stage.phase.schedule, "stops", False),
        }
    )
    if memory.step == 0:
        judge_teachers(stage, reporter)
        if stage.recipe.evaluation.teachers:
            upkeep.evaluate_teachers()


def tell_back_end(stage: Stage, folder: Folder, reporter: Reporter) -> None:
    """Ranks, process group and the back-end's whole configuration, into ``parallel.json``; in the log where there is more
    than one process."""
    session = stage.session
    told = {"phase": stage.phase.name, **session.facts(), "configuration": stage.wrapped.configuration()}
    if session.main:
        write_json(folder.path / "parallel.json", told)
    if session.size > 1 or session.parallel != "ddp":
        reporter.say(
            f"{session.parallel} on {session.size} ranks ({session.facts()['group']}), {session.local_size} on this machine"
        )
    devices = torch.cuda.device_count()
    if session.size == 1 and devices > 1:
        reporter.say(
            f"1 process on a machine of {devices} GPUs: torchrun --nproc-per-node {devices} -m kdscale ... uses them all"
        )
    if told["configuration"]:
        reporter.say(f"DeepSpeed: {json.dumps(told['configuration'])}")


def check_names(stage: Stage) -> None:
    """Raises RecipeError where the recipe watches an answer or a score that evaluations of the phase will not have."""
    names = stage.answers
    asked = stage.recipe.evaluation.best_of
    last = stage.number == len(stage.recipe.phases) - 1
    if last and names and asked not in names:
        raise RecipeError(f"evaluation.best_of: phase {stage.phase.name!r} has no answer {asked!r}; {nearest(asked, names)}")
    schedule = stage.phase.schedule
    if isinstance(schedule, Plateau):
        known = [f"{name}.{score}" for name in names for score in ("top1", "top5", "loss")] + [TRAINING]
        if schedule.metric not in known:
            raise RecipeError(f"schedule.metric: there is no {schedule.metric!r} to watch; {nearest(schedule.metric, known)}")
        if over(schedule, stage.phase.optimizer.lr, []):
            raise RecipeError(
                f"schedule.end: phase {stage.phase.name!r} stops at the rate {schedule.end:g} and begins with {stage.phase.optimizer.lr:g}:"
                " set it lower"
            )


def judge_teachers(stage: Stage, reporter: Reporter) -> dict[str, float]:
    """Prints each teacher's accuracy on held-out images. Raises RunError for one that is broken, or below its floor.

    A stored one was judged when it was taught.
    """
    for role, store in stage.stores.items():
        reporter.say(f"{role} {store.words}")
    for role, network in stage.frozen.items():
        for problem in preflight(network, stage.train_split.info):
            raise RunError(f"{role}: {problem}")
    scores = evaluate_frozen(stage, stage.data.held_out) if stage.data.held_out else {}
    for role, entry in scores.items():
        floor = teacher_floor(stage, role)
        reporter.say(
            f"{role} {stage.frozen[role].name}: top1 {100 * entry['top1']:.2f} on {int(entry['count'])} held-out images"
        )
        if entry["top1"] < floor:
            raise RunError(
                f"{role} {stage.frozen[role].name!r} has top1 {100 * entry['top1']:.2f} on {int(entry['count'])} held-out images, below its floor of"
                f" {100 * floor:.2f}: wrong weights, classes or normalisation? to use it all the same, set networks.{role}.floor=0"
            )
    return {role: entry["top1"] for role, entry in scores.items()}


def teacher_floor(stage: Stage, role: str) -> float:
    floor = getattr(stage.phase.networks[role], "floor", "auto")
    return default_floor(stage.train_split.info.classes) if floor == "auto" else float(floor)


def agree_on_start(stage: Stage) -> None:
    """All ranks hold one recipe, one data set, one set of starting weights and the same frozen networks, or none trains."""
    if stage.session.size == 1:
        return
    held = {
        "version": f"{__version__} {torch.__version__}",
        "recipe": digest(to_plain(stage.recipe)),
        "data set": f"{stage.train_split.info.identity} {stage.eval_split.info.identity}",
        "start": bits_of(stage.distiller),
        **{role: bits_of(network) for role, network in stage.frozen.items()},
        **{f"stored {role}": store.identity for role, store in stage.stores.items()},
    }
    said = stage.session.all_of(held)
    for rank, theirs in enumerate(said):
        other = next((name for name in held if theirs.get(name) != said[0].get(name)), None)
        if other is not None:
            host = stage.session.all_of(socket.gethostname())[rank]
            raise RunError(
                f"rank {rank} ({host}) holds another {other} than rank 0: give every rank the same code, recipe and files"
            )
