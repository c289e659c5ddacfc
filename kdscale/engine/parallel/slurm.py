"""Slurm as a launcher: ranks for tasks that srun started one a rank, and the ways in which it starts another world than asked.

Only within a step is a task a rank: a batch script carries the same variables, and would wait for ranks that never come.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping

import torch

from ...errors import RunError

PORTS = 20000  # the first of 10 000 below those that systems give to connections of their own


def adopt() -> None:
    """Gives this process its rank where srun started it as one task of several and no launcher has spoken.

    Sets RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE and GROUP_RANK, and where they are not given MASTER_ADDR and
    MASTER_PORT. Raises RunError, one sentence, where the tasks cannot be the world that was meant.
    """
    given = os.environ
    if "SLURM_STEP_ID" in given and "TORCHELASTIC_RUN_ID" in given:
        _judge_launcher(given)
    elif "RANK" in given or "SLURM_PROCID" not in given:
        return
    elif "SLURM_STEP_ID" in given:
        if _number(given, "SLURM_NTASKS") > 1:
            given.update(ranks(given))
            _judge_devices(given)
    elif max(_number(given, "SLURM_NTASKS"), _number(given, "SLURM_NNODES")) > 1:
        raise RunError(
            f"this job has {_number(given, 'SLURM_NTASKS')} tasks on {_number(given, 'SLURM_NNODES')} nodes but its batch script started one"
            " process: start the ranks by srun, as slurm/train.sbatch does, or ask for one node and one task"
        )


def ranks(given: Mapping[str, str]) -> dict[str, str]:
    """The variables that torch reads, from those that srun gives to a task. ``given``: an environment."""
    node = _number(given, "SLURM_NODEID", 0)
    local = tasks_of_nodes(given.get("SLURM_STEP_TASKS_PER_NODE") or given.get("SLURM_TASKS_PER_NODE", "1"))
    if sum(local) != _number(given, "SLURM_NTASKS"):
        raise RunError(f"Slurm tells of {given['SLURM_NTASKS']} tasks but of {local} on the nodes: name one --ntasks-per-node")
    found = {
        "RANK": given["SLURM_PROCID"],
        "WORLD_SIZE": given["SLURM_NTASKS"],
        "LOCAL_RANK": given["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": str(local[node]),
        "GROUP_RANK": str(node),
    }
    if "MASTER_ADDR" in given:
        found["MASTER_ADDR"] = given["MASTER_ADDR"]
    else:
        found["MASTER_ADDR"] = address_of(first_node(given.get("SLURM_STEP_NODELIST") or given["SLURM_JOB_NODELIST"]))
    port = PORTS + (_number(given, "SLURM_JOB_ID") + _number(given, "SLURM_STEP_ID", 0)) % 10000
    return {**found, "MASTER_PORT": given.get("MASTER_PORT", str(port))}


def tasks_of_nodes(text: str) -> list[int]:
    """'2(x3),1' -> [2, 2, 2, 1]."""
    found: list[int] = []
    for part in text.split(","):
        tasks, _, times = part.strip(")").partition("(x")
        found += [int(tasks)] * int(times or 1)
    return found


def first_node(nodes: str) -> str:
    """'a[07-09,12]-x,b1' -> 'a07-x'."""
    head = re.match(r"([^\[,]*)(?:\[(\w+)[^\]]*\]([^,]*))?", nodes)
    return "".join(part or "" for part in head.groups()) if head else nodes


def address_of(node: str) -> str:
    """The address that Slurm reaches a node by; its name where Slurm cannot be asked. The name alone need not resolve."""
    try:
        told = subprocess.run(
            ["scontrol", "--oneliner", "show", "node", node], capture_output=True, text=True, timeout=30, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return node
    found = re.search(r"\bNodeAddr=(\S+)", told)
    return found.group(1) if found else node


def _judge_launcher(given: Mapping[str, str]) -> None:
    """A launcher in every task of a step: several whole worlds would write one folder."""
    tasks = tasks_of_nodes(given.get("SLURM_STEP_TASKS_PER_NODE", "1"))
    groups = _number(given, "GROUP_WORLD_SIZE")
    if max(tasks) > 1:
        raise RunError(f"srun started {max(tasks)} tasks on a node and each runs torchrun: give srun --ntasks-per-node=1")
    if len(tasks) != groups:
        raise RunError(
            f"srun started torchrun on {len(tasks)} nodes and it was told of {groups}: give torchrun --nnodes {len(tasks)}"
        )


def _judge_devices(given: Mapping[str, str]) -> None:
    local = _number(given, "LOCAL_WORLD_SIZE")
    if torch.cuda.is_available() and torch.cuda.device_count() < local:
        raise RunError(
            f"srun started {local} ranks on this node and each sees {torch.cuda.device_count()} of its GPUs: ask for --gpus-per-node={local}"
            " and not for --gpus-per-task, so that every rank sees all of them"
        )


def _number(given: Mapping[str, str], name: str, otherwise: int = 1) -> int:
    text = given.get(name, "")
    return int(text) if text.isdecimal() else otherwise
