"""A whole run: all phases of a recipe in an output folder, from wherever the folder says that it stands."""

from __future__ import annotations

import gc
import hashlib
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..errors import KdscaleError, RunError
from ..networks import default_floor, weights_files
from ..recipe import FromPhase, Model, Recipe, resolve, to_plain
from ..recipe.resolve import digest, identity, phase_data
from . import checkpoint, faults
from .evaluation import evaluate_frozen
from .faults import Signals, Stopped
from .files import sha256, write_json
from .folder import Folder
from .keeper import Memory, restore
from .loop import Loop
from .meter import Meter
from .parallel import Session
from .reporter import Journal, Reporter, Several, Silent, cut_back
from .stage import Stage, build_stage, open_data
from .upkeep import Upkeep

ReporterFactory = Callable[[Recipe, Path], list[Reporter]]


def train(recipe: Recipe, out: Path, session: Session, reporters: ReporterFactory, *, overwrite: bool = False) -> int:
    """Trains a recipe into ``out`` and returns the process's exit code; a KdscaleError is left to the caller to tell.

    A folder that holds this recipe's run is continued at its last complete save.
    """
    recipe = resolve(recipe)
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
            if isinstance(network, Model):
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
    start = session.once(lambda: _newest(folder, said))
    if session.main:
        cut_back(folder.path / "metrics.jsonl", checkpoint.step_of(Path(start)) if start else 0)
    reporter: Reporter = Several([Journal(folder.path), *reporters(recipe, folder.path)]) if session.main else Silent()
    code, reason = faults.FAULT, "ended without a word"
    try:
        for text in said:
            reporter.say(text)
        _phases(recipe, folder, session, reporter, signals, Path(start) if start else None)
        code, reason = faults.DONE, "done"
    except Stopped as stop:
        code, reason = faults.STOPPED, f"{stop} asked for a stop; saved: the same command continues"
        reporter.say(reason)
    except KdscaleError as error:
        code, reason = error.code, str(error)
        raise
    except torch.cuda.OutOfMemoryError as error:
        code, reason = faults.MEMORY, f"out of memory: {error}"
        raise KdscaleError(
            f"the device is out of memory: double machine.accumulate ({recipe.machine.accumulate}) or use a smaller batch"
        ) from error
    except BaseException as error:
        reason = "".join(traceback.format_exception_only(error)).strip()
        reporter.say(traceback.format_exc())
        raise
    finally:
        reporter.close()
        if session.main:
            folder.verdict(code, reason)
    return code


def _newest(folder: Folder, said: list[str]) -> str | None:
    path = checkpoint.newest(folder.checkpoints, said.append)
    if path is None and checkpoint.all_saves(folder.checkpoints):
        said.append("no save is whole: beginning anew")
    return str(path) if path else None


def _phases(recipe: Recipe, folder: Folder, session: Session, reporter: Reporter, signals: Signals, start: Path | None) -> None:
    save = checkpoint.read(start) if start else None
    first = int(save.facts["phase"]) if save else 0
    before = 0  # global steps of the phases that are done
    for number in range(first, len(recipe.phases)):
        stage = build_stage(recipe, number, session, folder)
        meter = Meter(session)
        memory = restore(stage, save, meter) if save else Memory(global_step=before)
        upkeep = Upkeep(stage, memory, meter, folder, reporter)
        upkeep.last_save = start
        start_phase(stage, memory, upkeep, reporter, folder)
        if memory.step < stage.plan.total_steps:
            Loop(stage, memory, meter, reporter, upkeep, signals).run()
        elif not (folder.phase_path(number, stage.phase.name) / "end.safetensors").exists():
            upkeep.finish()
        before, save, start = memory.global_step, None, upkeep.last_save
        stage.wrapped.release()
        del stage, upkeep
        gc.collect()


def start_phase(stage: Stage, memory: Memory, upkeep: Upkeep, reporter: Reporter, folder: Folder) -> None:
    """Proves that the ranks hold the same thing, shows the phase, and judges the teachers before the first step."""
    agree_on_start(stage, stage.train_split.info.identity + digest(to_plain(stage.recipe)))
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
        }
    )
    if memory.step == 0:
        judge_teachers(stage, reporter, folder)
        if stage.recipe.evaluation.teachers:
            upkeep.evaluate_teachers()


def judge_teachers(stage: Stage, reporter: Reporter, folder: Folder | None) -> dict[str, float]:
    """Prints each teacher's accuracy on held-out images. Raises RunError below its floor."""
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
    if folder is not None and scores and stage.session.main:
        write_json(folder.path / "phases" / f"teachers-{stage.number + 1:02d}.json", scores) if (
            folder.path / "phases"
        ).is_dir() else None
    return {role: entry["top1"] for role, entry in scores.items()}


def teacher_floor(stage: Stage, role: str) -> float:
    source: Model | FromPhase = stage.phase.networks[role]
    return default_floor(stage.train_split.info.classes) if source.floor == "auto" else float(source.floor)


def agree_on_start(stage: Stage, identity: str) -> None:
    """All ranks hold one recipe, one data set (``identity``) and one set of starting weights, or none trains."""
    hasher = hashlib.sha256(f"{identity} {__version__} {torch.__version__}".encode())
    for parameter in stage.distiller.parameters():
        hasher.update(parameter.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    said = stage.session.all_of(hasher.hexdigest())
    if len(set(said)) > 1:
        other = next(rank for rank, word in enumerate(said) if word != said[0])
        raise RunError(
            f"rank {other} holds another recipe, data set, version or start than rank 0: give every rank the same code and files"
        )
