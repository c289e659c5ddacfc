"""Set-ups that would train on something else than was meant, told before anything is built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from kdscale.engine.parallel import preflight
from kdscale.errors import RunError
from kdscale.recipe import Machine

GIVEN = ("WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "TORCHELASTIC_MAX_RESTARTS")


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in (*GIVEN, "CUDA_VISIBLE_DEVICES", "SLURM_GPUS_ON_NODE", "SLURM_JOB_ID", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(preflight, "DRIVER", Path("/nowhere"))
    return monkeypatch


@pytest.mark.parametrize(
    ("variables", "unseen"),
    [
        ({}, False),
        ({"SLURM_GPUS_ON_NODE": "4"}, True),
        ({"SLURM_GPUS_ON_NODE": "4", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}, True),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, False),  # without a driver it names nothing
        ({"CUDA_VISIBLE_DEVICES": "", "SLURM_GPUS_ON_NODE": "4"}, False),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, False),
        ({"SLURM_GPUS_ON_NODE": "4", "ACCELERATE_USE_CPU": "true"}, False),
    ],
)
def test_devices_that_torch_does_not_find(given: pytest.MonkeyPatch, variables: dict[str, str], unseen: bool) -> None:
    for name, value in variables.items():
        given.setenv(name, value)
        if name.startswith("SLURM_"):
            given.setenv("SLURM_JOB_ID", "7")
    assert preflight.unseen_devices() == unseen


def test_a_driver_without_a_torch_for_it_is_unseen(given: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given.setattr(preflight, "DRIVER", tmp_path)
    assert preflight.unseen_devices()
    given.setenv("SLURM_JOB_ID", "7")
    assert not preflight.unseen_devices()  # a job of this node's cores alone


def test_several_ranks_do_not_train_on_the_cpu_unasked(given: pytest.MonkeyPatch) -> None:
    """One node of many with a broken driver would join by another kind of group, and all would wait."""
    given.setenv("SLURM_JOB_ID", "7")
    given.setenv("SLURM_GPUS_ON_NODE", "1")
    preflight.before(Machine(), "fp32")
    for name, value in {"WORLD_SIZE": "2", "RANK": "1"}.items():
        given.setenv(name, value)
    with pytest.raises(RunError, match=r"seems to have GPUs and torch finds none .*CUDA_VISIBLE_DEVICES= \(empty\)"):
        preflight.before(Machine(), "fp32")


@pytest.mark.parametrize(
    ("command", "asked"),
    [
        (["accelerate", "launch", "-m", "kdscale"], 3),
        (["accelerate", "launch", "--num_processes", "2", "-m", "kdscale"], 2),
        (["accelerate", "launch", "--config_file", "mine.yaml", "-m", "kdscale"], 1),
        (["accelerate", "launch", "--config_file=mine.yaml", "-m", "kdscale"], 1),
        (["accelerate", "launch", "--cpu", "-m", "kdscale"], 1),
        (["bash"], 1),
    ],
)
def test_what_accelerate_was_told_at_home_counts_too(
    given: pytest.MonkeyPatch, tmp_path: Path, command: list[str], asked: int
) -> None:
    from accelerate.commands.config import config_args

    (tmp_path / "default_config.yaml").write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_CPU\nnum_processes: 3\nmachine_rank: 0\nuse_cpu: true\n"
        "mixed_precision: 'no'\ndebug: false\n"
    )
    place: Any = str(tmp_path / "default_config.yaml")
    for name in ("default_config_file", "default_yaml_config_file"):
        given.setattr(config_args, name, place)
    assert preflight._asked_processes(command) == asked
