"""DeepSpeed's one compiled operation for ranks on a CPU: built once for a user, by g++ and ninja, in about a minute.

Ranks that need it at once wait for one another on a lock file without a word.
``python -m kdscale.engine.parallel.operation`` builds it beforehand.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path

from ...errors import RunError

STALE = 600.0  # seconds; a build takes about one minute


def build() -> None:
    """Raises RunError where it cannot be built."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    _find_ninja()
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder
    from torch.utils import cpp_extension

    builder = ShareMemCommBuilder()
    folder = Path(cpp_extension._get_build_directory(builder.name, False))
    if hasattr(cpp_extension, "FileBaton"):  # later versions of torch have locks that end with their holder
        _refuse_stale(folder / "lock")
    if not list(folder.glob("*.so")):
        sys.stderr.write(f"building DeepSpeed's operation for the CPU, once, about a minute: {folder}\n")
    try:
        builder.load(verbose=False)
    except (RuntimeError, OSError) as error:
        raise RunError(
            f"DeepSpeed's operation for the CPU could not be built ({str(error).splitlines()[0]}): install g++ and ninja, or take"
            " machine.parallel=ddp or fsdp2"
        ) from None


def _refuse_stale(lock: Path) -> None:
    """A build that was killed leaves its lock, and every later one would wait for it for ever."""
    try:
        age = time.time() - lock.stat().st_mtime
    except OSError:
        return
    if age > STALE:
        raise RunError(
            f"{lock} is of a build that began {age / 60:.0f} minutes ago and never ended: delete it and start the same command again"
        )


def _find_ninja() -> None:
    """The one that was installed beside this Python, where the user's path has none."""
    beside = str(Path(sys.executable).parent)
    if shutil.which("ninja") is None:
        os.environ["PATH"] = f"{beside}{os.pathsep}{os.environ.get('PATH', '')}"


if __name__ == "__main__":
    build()
