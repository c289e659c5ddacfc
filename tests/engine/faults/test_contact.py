"""A store that does not answer costs seconds, and answers again when it can."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from kdscale.engine.faults import contact
from kdscale.engine.faults.contact import Contact

STORE = """
import sys, time
import torch.distributed as dist
store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
print(store.port, flush=True)
sys.stdin.read()
"""


def test_a_stopped_store_is_not_waited_for_and_answers_when_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    words = [sys.executable, "-c", STORE]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", process.stdout.readline().strip())
        mine = Contact("run")
        mine.tell("0", "here")
        assert mine.ask(["0"]) == [b"here"]
        monkeypatch.setattr(contact, "ANSWER", 0.5)
        os.kill(process.pid, signal.SIGSTOP)
        assert mine.ask(["0"]) is None
        assert mine.ask(["0"]) is None
        os.kill(process.pid, signal.SIGCONT)
        monkeypatch.setattr(contact, "ANSWER", 30.0)
        assert mine.ask(["0"]) == [b"here"]
        process.kill()
        process.wait()
        monkeypatch.setattr(contact, "ANSWER", 2.0)
        mine.tell("0", "there")
        assert mine.ask(["0"]) is None


def test_without_an_address_nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    assert Contact("run").ask(["0"]) is None
    Contact("run").tell("0", "here")
