"""Between a stage and its saves: what goes into one, and how a stage takes it up again, bit by bit."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import RunError
from .checkpoint.files import awaited, write_tensors
from .checkpoint.folder import Folder
from .checkpoint.saving import LATE, Save
from .faults.ends import SaveFailed
from .meter import Meter
from .stage import Stage, student_of

STATISTICS = ("running_mean", "running_var")


@dataclass
class Memory:
    """What a run remembers besides tensors: where it is, what evaluations said, which save is best."""

    step: int = 0  # of the phase
    global_step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)  # evaluation lines of this phase
    best: float | None = None
    best_step: int | None = None  # global
    kept: list[int] = field(default_factory=list)  # global steps of saves that stay for good
    skipped: int = 0  # steps skipped for a non-finite loss
    seconds: float = 0.0  # of training, over all starts
    owed: float | None = None  # rate of the last step, where the run was left before what is due after it was done


def statistic_names(module: nn.Module) -> list[str]:
    return [name for name, _ in module.named_buffers() if name.rpartition(".")[2] in STATISTICS]


def rank_statistics(stage: Stage) -> Tensor | None:
    """[ranks, n]: BatchNorm statistics of every rank, flattened; None on one rank or without any. A collective."""
    names = statistic_names(stage.distiller)
    if stage.session.size == 1 or not names:
        return None
    buffers = dict(stage.distiller.named_buffers())
    return stage.session.rows(torch.cat([buffers[name].flatten() for name in names]))


@torch.no_grad()
def set_statistics(stage: Stage, flat: Tensor) -> None:
    buffers = dict(stage.distiller.named_buffers())
    at = 0
    for name in statistic_names(stage.distiller):
        target = buffers[name]
        target.copy_(flat[at : at + target.numel()].view_as(target))
        at += target.numel()


class averaged_statistics:
    """While it lasts every rank carries the mean of all ranks' BatchNorm statistics: evaluation and saves agree everywhere."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.rows: Tensor | None = None

    def __enter__(self) -> Tensor | None:
        self.rows = rank_statistics(self.stage)
        if self.rows is not None:
            set_statistics(self.stage, self.rows.double().mean(0).to(self.rows.dtype))
        return self.rows

    def __exit__(self, *_: object) -> None:
        if self.rows is not None:
            set_statistics(self.stage, self.rows[self.stage.session.rank])


def collect(stage: Stage, memory: Memory, meter: Meter) -> Save:
    """Everything of a stage after its last step, whole; on rank 0, which writes it, in copies on the CPU. Every rank calls it."""
    weights = stage.wrapped.weights()
    moments, numbers = stage.wrapped.optimizer_state()
    with averaged_statistics(stage) as rows:
        buffers = {f"buffer/{name}": b for name, b in buffers_of(stage.distiller).items()}
    trained = {f"param/{name}": p for name, p in weights.items()} | moments
    if stage.ema:
        trained |= {f"ema/{name}": average for name, average in stage.ema.whole().items()}
    facts = {
        "phase": stage.number,
        "phase_name": stage.phase.name,
        "memory": memory.__dict__,
        "sums": meter.state(),
        "optimizer": numbers,
        "ema_updates": stage.ema.updates if stage.ema else 0,
        "world": {
            "ranks": stage.session.size,
            "accumulate": stage.recipe.machine.accumulate,
            "parallel": stage.session.parallel,
        },
    }
    return Save(facts, trained, buffers, {} if rows is None else {"ranks": rows.cpu()})


def buffers_of(module: nn.Module) -> dict[str, Tensor]:
    """Copies, on the CPU, of what a state holds besides parameters."""
    state = module.state_dict(keep_vars=True)
    return {name: t.detach().to("cpu", copy=True) for name, t in state.items() if not isinstance(t, nn.Parameter)}


def put_weights(stage: Stage, save: Save) -> None:
    """Parameters and buffers of a save, into a fresh stage that is not wrapped yet: back-ends start from what they find."""
    module = stage.distiller
    state = {name.partition("/")[2]: t for name, t in (*_with(save.trained, "param"), *_with(save.buffers, "buffer"))}
    missing, unexpected = module.load_state_dict(state, strict=False)
    second = {name for name, p in module.named_parameters(remove_duplicate=False)} - dict(module.named_parameters()).keys()
    missing = [name for name in missing if name not in second]
    if missing or unexpected:
        raise RunError(f"the save does not fit phase {stage.phase.name!r}: missing {missing[:3]}, unexpected {unexpected[:3]}")


def restore(stage: Stage, save: Save, meter: Meter) -> Memory:
    """What a save holds besides weights, after :func:`put_weights`; any number of ranks, any back-end."""
    rows = save.statistics.get("ranks")
    if rows is not None and len(rows) == stage.session.size:
        set_statistics(stage, rows[stage.session.rank].to(stage.session.device))
    world, now = save.facts.get("world", {}), (stage.session.size, stage.recipe.machine.accumulate)
    before = world.get("ranks", now[0]), world.get("accumulate", now[1])
    if math.prod(before) != math.prod(now) and stage.recipe.batch_norm == "local" and statistic_names(stage.distiller):
        stage.warnings.append(
            f"the save is of {before[0]} ranks x {before[1]} micro-batches and this is {now[0]} x {now[1]}: each BatchNorm sees another"
            " number of images from here, so the curve is not the one that it would have been"
        )
    others = {name: t for name, t in save.trained.items() if name.partition("/")[0] not in ("param", "ema")}
    stage.wrapped.load_optimizer_state(others, save.facts["optimizer"])
    if stage.ema:
        average = {name.partition("/")[2]: t for name, t in _with(save.trained, "ema")}
        if not average:
            raise RunError("the save holds no EMA weights but the recipe asks for an EMA")
        stage.ema.load(average, save.facts["ema_updates"])
    meter.load(save.facts["sums"], stage.session.device)
    return Memory(**save.facts["memory"])


def _with(tensors: dict[str, Tensor], head: str) -> list[tuple[str, Tensor]]:
    return [(name, t) for name, t in tensors.items() if name.startswith(f"{head}/")]


def write_phase_file(stage: Stage, folder: Folder, name: str, memory: Memory) -> None:
    """``phases/NN-name/<name>.safetensors``: all weights of the distiller, which of them are whose, and the EMA. A collective."""
    tensors = stage.wrapped.weights()
    with averaged_statistics(stage):
        tensors |= buffers_of(stage.distiller)
    if stage.ema:
        tensors |= {f"ema/{n}": t for n, t in stage.ema.whole().items()}
    metadata = {"roles": json.dumps(role_prefixes(stage)), "step": str(memory.step), "phase": stage.phase.name, "format": "pt"}

    def write() -> None:
        path = folder.phase_path(stage.number, stage.phase.name)
        try:
            path.mkdir(parents=True, exist_ok=True)
            write_tensors(path / f"{name}.safetensors", tensors, metadata)
        except OSError as error:
            raise SaveFailed(f"{path / name}.safetensors could not be written ({error}): make room and start again") from None

    stage.session.once(write)
    awaited(folder.phase_path(stage.number, stage.phase.name) / f"{name}.safetensors", LATE)


def role_prefixes(stage: Stage) -> dict[str, str]:
    """role -> prefix of its body's keys in the distiller's state; the student's is always there."""
    names = {id(module): name for name, module in stage.distiller.named_modules()}
    roles = {role: f"{names[id(n)]}.body." for role, n in stage.trained.items() if id(n) in names}
    roles["student"] = f"{names[id(student_of(stage.distiller))]}.body."
    return roles
