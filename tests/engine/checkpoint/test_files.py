"""A file under its name is whole: whoever writes may be killed or run out of room, and the old content stands."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import resource
import signal
import stat
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from kdscale.engine.checkpoint import files
from kdscale.engine.checkpoint.files import awaited, sha256, write_json, write_tensors, write_text

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(3, dtype=torch.int64), "c": torch.rand(4).bfloat16()}


def test_tensors_there_and_back(tmp_path: Path) -> None:
    """A view that is not contiguous and one that wants gradients are written as what they show."""
    path = tmp_path / "t.safetensors"
    given_ = TENSORS | {"turned": torch.rand(3, 2).T, "trained": torch.nn.Parameter(torch.rand(2))}
    write_tensors(path, given_, {"step": "7"})
    read = load_file(path)
    assert read.keys() == given_.keys()
    for name, tensor in given_.items():
        assert torch.equal(read[name], tensor), name
        assert read[name].dtype == tensor.dtype
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"step": "7"}


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_all_files_follow_the_umask(tmp_path: Path, umask: int) -> None:
    """Also those of safetensors, which are for the owner alone by themselves: a group could not read its own runs."""
    former = os.umask(umask)
    try:
        write_tensors(tmp_path / "t.safetensors", TENSORS)
        write_json(tmp_path / "j.json", {})
        write_text(tmp_path / "x.txt", "")
    finally:
        os.umask(former)
    assert {stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()} == {0o666 & ~umask}


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(),
        lambda x: st.lists(x) | st.dictionaries(st.text(), x),
    )
)
def test_json_loses_no_digit(tmp_path_factory: pytest.TempPathFactory, plain: object) -> None:
    path = tmp_path_factory.getbasetemp() / "plain.json"
    write_json(path, plain)
    assert json.loads(path.read_text()) == plain


def refused() -> None:
    """The system refuses files above 2 000 bytes, in the place where a full disk would refuse them."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))


def killed() -> None:
    files.os.replace = lambda *a: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]


@pytest.mark.parametrize("kind", ["text", "tensors"])
@pytest.mark.parametrize("happening", [refused, killed])
def test_what_was_there_stands_when_writing_fails(tmp_path: Path, kind: str, happening) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "file"

    def write(large: bool) -> None:
        if kind == "text":
            write_text(path, "x" * 9000 if large else "before")
        else:
            write_tensors(path, {"a": torch.zeros(9000 if large else 2)})

    def fail() -> None:
        happening()
        try:
            write(large=True)
        except OSError:
            os._exit(17)
        os._exit(1)

    write(large=False)
    before = path.read_bytes()
    process = multiprocessing.get_context("fork").Process(target=fail)
    process.start()
    process.join()
    assert process.exitcode == (17 if happening is refused else -signal.SIGKILL)
    assert path.read_bytes() == before
    if happening is refused:
        assert [p.name for p in tmp_path.iterdir()] == ["file"], "the part that was written is still there"


def test_a_file_that_is_seen_late_is_awaited(tmp_path: Path) -> None:
    threading.Timer(0.3, (tmp_path / "late").touch).start()
    assert awaited(tmp_path / "late", 60.0).exists()
    assert not awaited(tmp_path / "never", 0.0).exists()


def test_sha256_is_that_of_the_bytes(tmp_path: Path) -> None:
    content = os.urandom(300_000)
    (tmp_path / "x").write_bytes(content)
    assert sha256(tmp_path / "x") == hashlib.sha256(content).hexdigest()
