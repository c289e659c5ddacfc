"""A phase that is over holds no weights: under ZeRO-3 DeepSpeed's own hooks keep its engine alive."""

from __future__ import annotations

import gc
import json
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from kdscale.engine.optim import build_optimizer
from kdscale.engine.parallel import Session, connect, wrap
from kdscale.recipe import AdamW, Machine
from tests.engine import small
from tests.engine.launch import ROOT

SIDE, LAYERS = 256, 4


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(SIDE, SIDE) for _ in range(LAYERS)))

    def forward(self, batch: Tensor, taught: object) -> dict[str, Tensor]:
        return {"task": self.layers(batch).square().mean()}


def phase(session: Session) -> None:
    """One that trains a step."""
    module = Layers()
    named = dict(module.named_parameters())
    groups = [{"names": list(named), "params": list(named.values()), "scale": 1.0, "weight_decay": 0.0}]
    wrapped = wrap(session, module, groups, lambda groups: build_optimizer(groups, value=AdamW(1e-3)), batch=4)
    wrapped.accumulate(torch.randn(4, SIDE), {}, 1.0, last=True)  # type: ignore[arg-type]
    wrapped.update(None)
    wrapped.release()


def held() -> int:
    """Bytes of all tensors that are alive, each storage once."""
    gc.collect()
    tensors = [o for o in gc.get_objects() if isinstance(o, Tensor)]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def main(parallel: str) -> None:
    session = connect(Machine(parallel=parallel))  # type: ignore[arg-type]
    bytes_after = []
    for _ in range(4):
        phase(session)
        bytes_after.append(held())
    session.close()
    sys.stdout.write(f"\nheld {json.dumps(bytes_after)}\n")


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "zero1", "zero3", "fsdp2"])
def test_what_a_phase_held_is_free_after_it(parallel: str) -> None:
    words = [sys.executable, "-m", "tests.engine.parallel.test_release", parallel]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=small.environment(), cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    told = next(line for line in done.stdout.splitlines() if line.startswith("held "))
    after = json.loads(told.removeprefix("held "))
    assert after[-1] - after[0] < SIDE * SIDE * 4, after  # less than one layer's weights in three phases


if __name__ == "__main__":
    main(sys.argv[1])
