"""What a run writes: text, JSON and safetensors that are complete or absent, as all files of the data room are."""

from __future__ import annotations

import hashlib
import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from ...data.files import TEMPORARY, flush_folder, replacing


def write_text(path: Path, text: str) -> None:
    with replacing(path) as file:
        file.write(text.encode())


def write_json(path: Path, plain: Any) -> None:
    write_text(path, json.dumps(plain, indent=1) + "\n")


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """A safetensors file; raises OSError (not the library's own error) where the disk is full."""
    aside = path.with_name(f"{path.name}{TEMPORARY}{os.getpid()}")
    try:
        aside.touch()
        mode = aside.stat().st_mode  # as the umask says: safetensors puts a file of its own in this place, for the owner alone
        try:
            save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, str(aside), metadata)
        except OSError:
            raise
        except Exception as error:  # safetensors wraps the system's error in its own class
            raise OSError(f"{path}: {error}") from None
        aside.chmod(mode)
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    flush_folder(path.parent)


def awaited(path: Path, patience: float) -> Path:
    """``path``, once it is seen here: over a network a file that another machine has written may be late by seconds."""
    end = time.monotonic() + patience
    while not path.exists() and time.monotonic() < end:
        with suppress(OSError):
            os.listdir(path.parent)  # asks the server anew
        time.sleep(0.2)
    return path


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
