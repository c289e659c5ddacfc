"""What is judged and told before the first step of a phase: ranks, names, teachers."""

from __future__ import annotations

import json
import socket

import torch

from .. import __version__
from ..errors import RecipeError, RunError
from ..networks import default_floor, preflight
from ..recipe import Plateau, Recipe, to_plain
from ..recipe.paths import nearest
from ..recipe.resolve import digest
from .checkpoint.files import write_json
from .checkpoint.folder import Folder
from .evaluation import evaluate_frozen
from .keeper import Memory
from .reporter import Reporter
from .schedule import TRAINING, over
from .stage import Stage
from .unity import bits_of
from .upkeep import Upkeep


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
    check_best(stage.recipe, stage.number, names)
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


def check_best(recipe: Recipe, number: int, names: tuple[str, ...]) -> None:
    """Raises RecipeError where phase ``number`` is the last and has answers, and not the one that decides."""
    asked = recipe.evaluation.best_of
    if number == len(recipe.phases) - 1 and names and asked not in names:
        name = recipe.phases[number].name
        raise RecipeError(f"evaluation.best_of: phase {name!r} has no answer {asked!r}; {nearest(asked, names)}")


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
