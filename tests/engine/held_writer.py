"""kdscale, whose save of one step stops half-way until a file is taken away: a process that can be hit in the middle of a write.

python -m tests.engine.held_writer STEP MARK train ...     (MARK appears when all but save.json of that save is written)
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from kdscale.cli.main import main
from kdscale.engine.checkpoint import saving


def hold(step: int, mark: Path) -> None:
    before = saving.write_json

    def instead(path: Path, plain: Any) -> None:
        if saving.name_of(step) in path.parent.name:
            mark.touch()
            while mark.exists():
                time.sleep(0.01)
        before(path, plain)

    saving.write_json = instead  # type: ignore[assignment]


if __name__ == "__main__":
    hold(int(sys.argv[1]), Path(sys.argv[2]))
    sys.argv = ["kdscale", *sys.argv[3:]]
    main()
