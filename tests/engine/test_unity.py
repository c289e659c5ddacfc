"""A rank that drifts is found and named; what is rightly each rank's own is not."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

from kdscale.engine.faults.ends import FAULT, Drifted
from kdscale.engine.parallel import connect
from kdscale.engine.unity import require_unity
from kdscale.methods import Supervised
from tests.engine import small, stages
from tests.engine.launch import two_ranks


def main(data: Path) -> None:
    torch.set_num_threads(1)
    session = connect()
    (stage,) = stages.stages(stages.recipe_of(Supervised(), "cnn", data), session)
    require_unity(stage, 0)
    named = dict(stage.distiller.named_parameters())
    buffers = dict(stage.distiller.named_buffers())
    statistic = next(name for name in buffers if name.endswith("running_mean"))
    with torch.no_grad():
        buffers[statistic].add_(session.rank)
    require_unity(stage, 0)  # BatchNorm's statistics are of each rank
    name = list(named)[-2]
    with torch.no_grad():
        named[name].view(-1)[3].add_(1e-6 * session.rank)
    with pytest.raises(Drifted, match=f"different '{re.escape(name)}' after step 7 of phase 'phase'") as told:
        require_unity(stage, 7)
    assert told.value.code == FAULT
    stage.wrapped.release()
    session.close()


@pytest.mark.slow
@pytest.mark.ranks
def test_a_rank_that_drifts_is_found_on_both(tmp_path: Path) -> None:
    two_ranks("tests.engine.test_unity", small.shards(tmp_path / "data"))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
