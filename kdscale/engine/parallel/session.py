"""The ranks of this run, found once a process: who am I, how many are we, on which device, and the few collectives we need.

Accelerate makes the process group. Set-ups that run but are not what was asked (one world a rank, a second launcher inside
the first, variables that overrule the recipe) are refused by ``preflight.check`` before any network is built.
"""

from __future__ import annotations

import datetime
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import Tensor

from ...errors import KdscaleError
from ...recipe import Machine
from ...types import World
from . import preflight, slurm

T = TypeVar("T")
joined = False  # whether this process is one of the ranks
TIMEOUT = datetime.timedelta(minutes=20)  # above the stream's own stall limit, so that a data error is what gets told


@dataclass
class Session:
    """One process's place among the ranks. ``local_size``: ranks on this machine; ``first``: rank of a micro-batch's first row."""

    accelerator: Accelerator
    rank: int
    size: int
    local_size: int
    device: torch.device
    host_group: Any = None  # a gloo group where the main one is of a GPU
    parallel: str = "ddp"  # the back-end of machine.parallel
    first: int = 0

    @property
    def main(self) -> bool:
        return self.rank == 0

    def total(self, t: Tensor) -> Tensor:
        """Sum over ranks, without gradient; a new tensor."""
        return self._reduced(t, dist.ReduceOp.SUM)

    def most(self, t: Tensor) -> Tensor:
        return self._reduced(t, dist.ReduceOp.MAX)

    def _reduced(self, t: Tensor, operation: Any) -> Tensor:
        t = t.detach().clone()
        if self.size > 1:
            dist.all_reduce(t, op=operation)
        return t

    def gather(self, t: Tensor) -> Tensor:
        """Rows of all ranks in order of position, with gradient: the ranks take turns, beginning with ``first``."""
        if self.size == 1:
            return t
        from torch.distributed.nn.functional import all_gather

        parts = all_gather(t.contiguous())  # type: ignore[no-untyped-call]
        return torch.stack([*parts[self.first :], *parts[: self.first]], dim=1).flatten(0, 1)

    def rows(self, t: Tensor) -> Tensor:
        """[ranks, ...]: each rank's tensor, without gradient."""
        parts = [torch.empty_like(t) for _ in range(self.size)]
        if self.size == 1:
            return t.detach()[None]
        dist.all_gather(parts, t.detach().contiguous())
        return torch.stack(parts)

    def told(self, thing: Any) -> Any:
        """What rank 0 holds, on every rank (small plain data)."""
        if self.size == 1:
            return thing
        box = [thing]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def all_of(self, thing: Any) -> list[Any]:
        """Each rank's thing, in order of rank."""
        if self.size == 1:
            return [thing]
        box: list[Any] = [None] * self.size
        dist.all_gather_object(box, thing)
        return box

    def wait(self) -> None:
        if self.size > 1:
            dist.barrier()

    def once(self, work: Callable[[], Any]) -> Any:
        """``work()`` on rank 0; its result on every rank, or its error raised on every rank, so that none waits for ever."""
        result: Any = None
        if self.main:
            try:
                result = (True, work())
            except Exception as error:
                result = (False, error)
        done, value = self.told(result)
        if done:
            return value
        raise value

    def together(self, work: Callable[[], T]) -> T:
        """``work()`` on every rank (it must hold no collective); what fails on any rank is raised on all, in its own words."""
        value: T | None = None
        fault: Exception | None = None
        try:
            value = work()
        except Exception as error:
            fault = error
        told = self.all_of(None if fault is None else (_class_of(fault), str(fault), getattr(fault, "code", 70)))
        failed = [(rank, word) for rank, word in enumerate(told) if word]
        if not failed:
            return value  # type: ignore[return-value]
        if fault is not None:
            raise fault
        rank, (known, text, code) = failed[0]
        theirs = known(text) if known else KdscaleError(f"rank {rank} failed: {text}")
        theirs.code = code
        raise theirs

    def most_flags(self, flags: list[bool]) -> list[bool]:
        """Each flag, set where any rank set it. Goes through the CPU: the device is not waited for."""
        if self.size == 1:
            return flags
        word = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(word, op=dist.ReduceOp.MAX, group=self.host_group)
        return [bool(v) for v in word.tolist()]

    def facts(self) -> dict[str, Any]:
        """How the ranks are computed, for logs."""
        group = dist.get_backend() if dist.is_available() and dist.is_initialized() else "none"
        return {"parallel": self.parallel, "ranks": self.size, "ranks_on_this_machine": self.local_size, "group": group}

    def world(self) -> World:
        return World(self.rank, self.size, self.gather, self.total)

    def close(self) -> None:
        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()


def _class_of(fault: Exception) -> type[KdscaleError] | None:
    """Of an error of ours, which every rank raises as what it is: who handles it must do so on all of them."""
    return type(fault) if isinstance(fault, KdscaleError) else None


def connect(machine: Machine | None = None, precision: str = "fp32") -> Session:
    """Joins the ranks that the launcher started. Raises RunError, one sentence, where the set-up is not what was asked.

    ``machine``: of the recipe that will run; ``None`` for work that trains nothing.
    """
    global joined
    machine = machine or Machine()
    slurm.adopt()
    preflight.before(machine, precision)
    cuda = torch.cuda.is_available()
    if machine.parallel != "ddp" and "WORLD_SIZE" not in os.environ:
        world_of_one()
    accelerator = Accelerator(mixed_precision="no", gradient_accumulation_steps=1, **_asked(machine.parallel, cuda))
    session = Session(
        accelerator,
        rank=accelerator.process_index,
        size=accelerator.num_processes,
        local_size=int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes)),
        device=accelerator.device,
        host_group=dist.new_group(backend="gloo", timeout=TIMEOUT) if cuda and accelerator.num_processes > 1 else None,
        parallel=machine.parallel,
    )
    preflight.after(session.size, machine.parallel, str(accelerator.distributed_type.value))
    joined = True
    return session


def _asked(parallel: str, cuda: bool) -> dict[str, Any]:
    """What the Accelerator is told. It takes DeepSpeed only where it is not bound to the CPU, and then asks for a group of
    the kind that is named to it."""
    handlers: list[Any] = [DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)]
    if "WORLD_SIZE" in os.environ:
        handlers.append(InitProcessGroupKwargs(backend="nccl" if cuda else "gloo", timeout=TIMEOUT))
    if not parallel.startswith("zero"):
        return {"cpu": not cuda, "kwargs_handlers": handlers}
    from .zero import plugin

    return {"deepspeed_plugin": plugin(int(parallel[-1]), cuda), "kwargs_handlers": handlers}


def world_of_one() -> None:
    """The variables of a launcher that starts one process, for back-ends that know no run without ranks."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    os.environ.update(alone | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
