"""Two ranks are one, for the memories too: several steps over the end of an epoch whose last batch is smaller."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from kdscale.engine.parallel import Session, connect
from kdscale.methods import Crd
from tests.engine.launch import two_ranks
from tests.engine.tails import TAILS, pack, stage_of

STEPS = 6
KEPT = ("memory_student", "memory_teacher", "normalisers")


def trained(folder: Path, tail: str, session: Session) -> dict[str, Tensor]:
    """What the steps leave: memories, normalisers, an embedding; and the loss of each, the mean over ranks."""
    stage = stage_of(Crd(negatives=40), folder, tail, session)
    stage.distiller.train()
    losses, batches = [], stage.stream().batches(0)
    for step, batch in enumerate(itertools.islice(batches, STEPS)):
        progress = stage.progress(step)
        stage.begin_step(progress, [])
        stage.begin_micro_batch(progress, 0)
        said = stage.wrapped.accumulate(batch, stage.teach(batch, progress), 1.0, last=True)
        losses.append(session.total(said["crd"]) / session.size)
        stage.wrapped.update(None)
        stage.distiller.after_step(progress)  # type: ignore[operator]
    term: Any = stage.distiller.term
    left = {name: term.get_buffer(name).clone() for name in KEPT}
    stage.wrapped.release()
    return left | {"losses": torch.stack(losses), "embedding": term.embed_teacher.weight.detach().clone()}


def all_tails(folder: Path, session: Session) -> dict[str, Tensor]:
    return {f"{tail} {name}": t for tail in TAILS for name, t in trained(folder / tail, tail, session).items()}


def main(folder: Path) -> None:
    session = connect()
    left = all_tails(folder, session)
    for name, tensor in left.items():
        assert (session.rows(tensor) == tensor).all(), f"the ranks disagree on {name}"
    if session.main:
        save_file(left, folder / "left.safetensors")
    session.close()


@pytest.mark.ranks
def test_two_ranks_leave_the_memories_of_one(tmp_path: Path) -> None:
    for tail, (samples, _) in TAILS.items():
        pack(tmp_path / tail, samples)
    two_ranks("tests.methods.test_crd_ranks", tmp_path)
    two, one = load_file(tmp_path / "left.safetensors"), all_tails(tmp_path, connect())
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=3e-4, msg=lambda told, name=name: f"{name}: {told}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
