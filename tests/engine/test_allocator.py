"""Freed memory stays with the process: what is allocated again costs no page faults."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from kdscale.engine.allocator import keep_freed_memory

FAULTS = """
import resource, sys
import torch
from kdscale.engine.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def use():
    tensors = [torch.ones(12_000_000) for _ in range(3)]
for _ in range(12):
    use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_memory_that_is_used_again_takes_no_page_faults() -> None:
    faults = {
        how: int(subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True).stdout)
        for how in ("keep", "as it is")
    }
    assert faults["keep"] < 100
    assert faults["as it is"] > 100


def test_it_says_whether_it_could_be_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert not keep_freed_memory()
