"""Set-ups of processes that run and are not what was asked: each is told in one sentence before anything is built."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from ...errors import RunError
from ...recipe import Machine
from . import contradictions

DRIVER = Path("/dev/nvidia0")  # there where a driver has found a device
TORCHRUN = "torchrun --nproc-per-node {n} -m kdscale ..."


def before(machine: Machine, precision: str) -> None:
    """Judges environment and launcher before a process group exists."""
    _accelerate_on_a_cpu()
    contradictions.refuse(os.environ, machine, precision)
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if ranks > 1 and "RANK" not in os.environ:
        raise RunError(f"WORLD_SIZE is {ranks} but RANK is not set: start the ranks by a launcher, {TORCHRUN.format(n=ranks)}")
    if ranks > 1 and unseen_devices():
        raise RunError(
            "this machine seems to have GPUs and torch finds none of them: see what nvidia-smi says and whether torch.version.cuda fits its driver;"
            " to train on the CPU set CUDA_VISIBLE_DEVICES= (empty)"
        )
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    devices = torch.cuda.device_count()
    if torch.cuda.is_available() and local > devices:
        raise RunError(f"{local} ranks were started on this machine but it has {devices} devices: --nproc-per-node {devices}")
    _restarts()
    nodes = int(os.environ.get("GROUP_WORLD_SIZE", "0"))
    if nodes and nodes * local != ranks:
        raise RunError(
            f"the launcher announced {ranks} ranks, but {nodes} nodes of {local}: a launcher was started inside another; start one a node"
        )


def unseen_devices() -> bool:
    """Whether this machine seems to have GPUs, nobody has put them out of sight, and torch finds none."""
    if torch.cuda.is_available() or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1", "yes"):
        return False
    visible, of_job = os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ.get("SLURM_GPUS_ON_NODE", "0")
    if visible is not None and visible.strip() in ("", "-1", "NoDevFiles"):
        return False
    if "SLURM_JOB_ID" in os.environ:  # whose job may be of this node's cores alone
        return of_job.isdecimal() and int(of_job) > 0
    return DRIVER.exists()


def _restarts() -> None:
    """A second round of torchrun's ranks finds the addresses of the first in the launcher's store, and hangs or dies."""
    rounds = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))
    if rounds > 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        raise RunError(
            f"torchrun was asked for {rounds} restarts, which fail on its shared store: set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1, or take"
            " --max-restarts 0 and start the same command again"
        )


def after(size: int, parallel: str, kind: str) -> None:
    """Compares the world that came about with the one that the launcher announced, and Accelerate's ``kind`` of it."""
    announced = int(os.environ.get("WORLD_SIZE", "1"))
    real = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if not announced == size == real:
        raise RunError(
            f"the launcher announced {announced} ranks, Accelerate sees {size}, torch {real}: start with {TORCHRUN.format(n=announced)}"
        )
    if (kind == "DEEPSPEED") != parallel.startswith("zero"):
        raise RunError(
            f"machine.parallel={parallel} was asked for, and Accelerate set up {kind}: unset its ACCELERATE_ variables"
        )
    group = dist.get_backend() if real > 1 else None
    fits = "nccl" if torch.cuda.is_available() else "gloo"
    if group is not None and fits not in group:
        raise RunError(f"the process group is of {group} and this machine needs {fits}: unset what chooses another")


def _accelerate_on_a_cpu() -> None:
    """On a machine without a GPU `accelerate launch --num_processes 2` starts one process and says nothing."""
    if torch.cuda.is_available() or "WORLD_SIZE" in os.environ:
        return
    asked = _asked_processes(_parent_command())
    if asked > 1:
        raise RunError(
            f"accelerate launch was asked for {asked} processes but starts only one on a machine without a GPU: use {TORCHRUN.format(n=asked)}"
        )


def _asked_processes(command: list[str]) -> int:
    """The N of an `accelerate launch --num_processes N` command line; 1 where it is another command."""
    if not any(Path(word).name in ("accelerate", "accelerate-launch", "accelerate.commands.launch") for word in command[:4]):
        return 1
    for place, word in enumerate(command):
        name, _, value = word.partition("=")
        if name in ("--num_processes", "--num-processes"):
            text = value or (command[place + 1] if place + 1 < len(command) else "")
            return int(text) if text.isdigit() else 1
    told = {word.partition("=")[0] for word in command}
    return 1 if told & {"--cpu", "--config_file", "--config-file"} else _configured_processes()


def _configured_processes() -> int:
    """What `accelerate config` wrote in the user's home, which the launcher takes where it is told nothing else."""
    from accelerate.commands.config.config_args import default_config_file, load_config_from_file

    if not Path(default_config_file).is_file():
        return 1
    try:
        return int(load_config_from_file(None).num_processes)
    except Exception:  # of another version, or damaged: the launcher has read it and says so itself
        return 1


def _parent_command() -> list[str]:
    if not sys.platform.startswith("linux"):
        return []
    try:
        return Path(f"/proc/{os.getppid()}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []
