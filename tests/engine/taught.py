"""``kdscale teach`` with shards of three small steps, for ranks that a launcher starts: words are a recipe's file and the folder."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from kdscale.engine import teach as teaching
from kdscale.engine.parallel import connect
from kdscale.recipe import from_json
from tests.engine import small

STEPS = 3
BYTES = STEPS * 24 * (12 + 4 * small.CLASSES)  # of 24 rows of float32


def main(recipe: Path, out: Path) -> None:
    torch.set_num_threads(1)
    teaching.SHARD = BYTES
    session = connect()
    teaching.teach(from_json(recipe.read_text()), out, session, lambda text: None, teaching.Wish(type="fp32"))
    session.close()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
