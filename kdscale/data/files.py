"""Files that are complete or do not exist: written aside, flushed to the disk, renamed, and the folder flushed too."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from kdscale.errors import DataError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
MACHINE = 70  # the exit code of what is no fault of the command
TEMPORARY = ".tmp."
"""Every unfinished file has this in its name, so that readers tell an interrupted writer from a foreign folder."""


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A binary file that becomes ``path`` when the block ends well, and vanishes when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}{TEMPORARY}{socket.gethostname()}.{os.getpid()}")
    try:
        with open(aside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    flush_folder(path.parent)


@contextmanager
def room_in(folder: Path) -> Iterator[None]:
    """DataError naming ``folder`` where the disk, a quota or the limit of a file's size ends the block."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        full = DataError(f"{folder} takes no more ({error.strerror}): make room there, and give the same command again")
        full.code = MACHINE
        raise full from None


def flush_folder(folder: Path) -> None:
    """Makes renames inside ``folder`` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
