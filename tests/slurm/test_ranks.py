"""Ranks by Slurm's variables alone, and the worlds that nobody meant."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from kdscale.engine.parallel import slurm
from kdscale.errors import RunError

# As srun gave them to the third of three tasks on two nodes.
TASK = {
    "SLURM_JOB_ID": "41207",
    "SLURM_STEP_ID": "1",
    "SLURM_NTASKS": "3",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "2,1",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_JOB_NODELIST": "gpu[06-08]",
    "SLURM_NNODES": "2",
}
OURS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment without a word of a launcher; what is adopted is forgotten with it."""
    for name in (*OURS, *(name for name in os.environ if name.startswith(("SLURM_", "TORCHELASTIC_", "GROUP_")))):
        monkeypatch.setenv(name, "")  # so that it is set back even if it was not there
        monkeypatch.delenv(name)
    return monkeypatch


def speak(given: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        given.setenv(name, value)


def adopted() -> dict[str, str]:
    slurm.adopt()
    return {name: os.environ[name] for name in OURS if name in os.environ}


def test_a_task_is_a_rank(given: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The node's address is Slurm's own word; a name that Slurm cannot be asked about stays a name."""
    speak(given, TASK | {"PATH": str(tmp_path)})
    expected = dict(zip(OURS, ("2", "3", "0", "1", "1", "gpu07", "21208"), strict=True))
    assert adopted() == expected
    for name in OURS:
        given.delenv(name)
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho NodeName=$4 NodeAddr=10.1.0.7 NodeHostName=x\n")
    (tmp_path / "scontrol").chmod(0o755)
    assert adopted() == expected | {"MASTER_ADDR": "10.1.0.7"}


def test_a_given_meeting_point_is_kept(given: pytest.MonkeyPatch) -> None:
    speak(given, TASK | {"MASTER_ADDR": "10.0.0.9", "MASTER_PORT": "4000"})
    assert adopted()["MASTER_ADDR"] == "10.0.0.9"
    assert os.environ["MASTER_PORT"] == "4000"


@pytest.mark.parametrize(
    "variables",
    [
        {},
        TASK | {"RANK": "0"},  # a launcher of another kind has spoken
        TASK | {"SLURM_NTASKS": "1"},
        {"SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_NNODES": "1"},  # a batch script
        TASK | {"SLURM_STEP_TASKS_PER_NODE": "1(x2)", "TORCHELASTIC_RUN_ID": "x", "RANK": "5", "GROUP_WORLD_SIZE": "2"},
    ],
)
def test_otherwise_nothing_is_touched(given: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    speak(given, variables)
    before = dict(os.environ)
    slurm.adopt()
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        (
            {k: v for k, v in TASK.items() if k != "SLURM_STEP_ID"},
            "3 tasks on 2 nodes but its batch script started one process",
        ),
        (
            {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_NNODES": "2"},
            "1 tasks on 2 nodes but its batch script started one process",
        ),
        (TASK | {"TORCHELASTIC_RUN_ID": "x", "GROUP_WORLD_SIZE": "2", "RANK": "0"}, "give srun --ntasks-per-node=1"),
        (
            TASK | {"TORCHELASTIC_RUN_ID": "x", "GROUP_WORLD_SIZE": "1", "RANK": "0", "SLURM_STEP_TASKS_PER_NODE": "1(x2)"},
            "on 2 nodes and it was told of 1: give torchrun --nnodes 2",
        ),
        (TASK | {"SLURM_STEP_TASKS_PER_NODE": "2(x3)"}, "name one --ntasks-per-node"),
    ],
)
def test_a_world_that_nobody_meant_is_refused(given: pytest.MonkeyPatch, variables: dict[str, str], words: str) -> None:
    speak(given, variables)
    with pytest.raises(RunError, match=words):
        slurm.adopt()


def test_ranks_that_do_not_see_all_devices_of_their_node_are_refused(given: pytest.MonkeyPatch) -> None:
    speak(given, TASK | {"SLURM_PROCID": "0", "SLURM_NODEID": "0"})
    given.setattr(torch.cuda, "is_available", lambda: True)
    given.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(RunError, match="each sees 1 of its GPUs: ask for --gpus-per-node=2"):
        slurm.adopt()


@pytest.mark.parametrize(
    ("text", "counts"), [("1", [1]), ("4(x3)", [4, 4, 4]), ("2(x2),1", [2, 2, 1]), ("8,4(x2),1", [8, 4, 4, 1])]
)
def test_tasks_of_nodes(text: str, counts: list[int]) -> None:
    assert slurm.tasks_of_nodes(text) == counts


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("n0", "n0"), ("n[0-1]", "n0"), ("a[07-09,12]-x,b1", "a07-x"), ("gpu-3,gpu-7", "gpu-3"), ("r1.site.org", "r1.site.org")],
)
def test_first_node(nodes: str, first: str) -> None:
    assert slurm.first_node(nodes) == first
