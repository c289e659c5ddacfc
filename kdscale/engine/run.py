"""A whole run: all phases of a recipe in an output folder, from wherever the folder says that it stands."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..errors import KdscaleError, RunError
from ..networks import weights_files
from ..recipe import Model, Recipe, Stored, resolve
from ..recipe.resolve import identity, phase_data
from .checkpoint import saving
from .checkpoint.files import sha256
from .checkpoint.folder import Folder
from .checkpoint.phase_file import PhaseFile
from .faults import ends
from .faults.ends import Stopped
from .faults.last_words import LastWords, told
from .faults.signals import Signals
from .faults.watchdog import CLOSING, Watchdog, end_within
from .keeper import Memory, put_weights, restore
from .loop import Loop
from .meter import Meter
from .parallel import Session
from .reporter import Journal, Reporter, Several, Silent, cut_back
from .stage import Stage, build_stage, open_data
from .start import agree_on_start, check_names, start_phase
from .stored.store import identity_of
from .upkeep import Upkeep

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
    code, reason = ends.FAULT, "ended without a word"
    try:
        with Watchdog(words, recipe.machine.stall):
            reporter = session.together(
                lambda: Several([Journal(folder.path), *reporters(recipe, folder.path)]) if session.main else Silent()
            )
            for text in said:
                reporter.say(text)
            _phases(recipe, folder, session, reporter, signals, Path(start) if start else None)
        code, reason = ends.DONE, "done"
    except Stopped as stop:
        kept = "saved" if saving.all_saves(folder.checkpoints) else "nothing was trained yet"
        code, reason = ends.STOPPED, f"{stop} asked for a stop; {kept}: the same command continues"
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
    code, reason = getattr(fault, "code", ends.FAULT), told(fault)
    if not isinstance(fault, KdscaleError):
        reporter.say("".join(traceback.format_exception(error)))
    elif words.session.main:
        words.note(reason)
    if alone:
        end_within(CLOSING, code)
    return fault, code, reason


def _newest(folder: Folder, said: list[str], recipe: Recipe) -> str | None:
    """The save to go on from; the journal is cut back to it."""
    path = saving.newest(folder.checkpoints, said.append, folder.family)
    if path is None and saving.all_saves(folder.checkpoints):
        said.append("no save is whole: beginning anew")
    phase = -1 if path is None else int(saving.read_facts(path)["phase"])
    names = [p.name for p in recipe.phases[: phase + 1]]
    owed = path is not None and saving.read_facts(path)["memory"].get("owed") is not None
    cut_back(folder.path / "metrics.jsonl", 0 if path is None else saving.step_of(path), names, owed)
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


def read_together(path: Path, session: Session) -> saving.Save:
    """The save that rank 0 chose, on every rank, or its error on all of them."""
    seal = session.once(lambda: saving.read_facts(path).get("sha256"))
    return session.together(lambda: saving.read(path) if session.main else saving.read_on(path, seal))


def _end_step(folder: Folder, number: int, stage: Stage) -> int | None:
    path = folder.phase_path(number, stage.phase.name) / "end.safetensors"
    return PhaseFile(path).step if path.exists() else None


def stop_between_phases(session: Session, signals: Signals, last: bool) -> None:
    """The end of a phase is saved, so a stop that was asked for meanwhile need not wait for the next phase."""
    if not last and session.most_flags([signals.asked is not None])[0]:
        raise Stopped(next(s for s in session.all_of(signals.asked) if s))
