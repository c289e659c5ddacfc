"""What is left of a rank that ends alone, and what the others make of it: ``fault-<rank>.json`` and ``verdict.json``.

When a rank is killed, the others see no more than a closed connection, often before its cause is in any log. So whoever fails
leaves a file first; whoever loses contact looks for the cause (such a file, a process that is gone, a machine that is silent),
ends with its code and its words, and the first of the ranks that live writes the verdict.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
import traceback
from collections.abc import Collection
from typing import Any

import torch.distributed as dist

from ...errors import KdscaleError
from ..checkpoint import saving
from ..checkpoint.files import write_json
from ..checkpoint.folder import Folder
from ..checkpoint.lock import slurm, started
from ..parallel import Session
from .ends import ABANDONED, FAULT, USAGE, OutOfMemory, RankLost
from .pulse import BEAT, Pulse

PATIENCE = 20.0  # seconds that a rank looks for the cause: a machine is silent after three beats
JUDGES = 8  # ranks, and machines by their first rank, that look for it; of thousands the others take their word
CONTACT = ("gloo", "onnection closed", "onnection reset", "onnection refused", "roken pipe", "timed out")
MEMORY_FULL = ("out of memory", "can't allocate memory", "annot allocate memory", "not enough memory")


class LastWords:
    """``members``: host, pid and time of start of each rank, by which its death is known."""

    def __init__(self, folder: Folder, session: Session, accumulate: int) -> None:
        """A collective."""
        self.folder, self.session, self.accumulate = folder, session, accumulate
        me = {"host": socket.gethostname(), "pid": os.getpid(), "started": started(os.getpid())}
        self.members: list[dict[str, Any]] = session.all_of(me)
        self.pulse = Pulse(session)

    @property
    def judging(self) -> bool:
        """Whether this rank looks for what became of others: whichever machine is lost, a judge is left."""
        hosts = [member["host"] for member in self.members]
        firsts = [hosts.index(host) for host in dict.fromkeys(hosts)]
        return self.session.rank < JUDGES or self.session.rank in firsts[:JUDGES]

    def judge(self, error: BaseException) -> tuple[BaseException, bool]:
        """What this rank ends with, and whether it ends alone, without the others' having agreed on it.

        That is ``error`` itself, out of memory in a sentence, or the fault of the rank that was lost.
        """
        if self._contact_lost(error):
            self.leave_word(FAULT, str(error), lost=True)
            return self._cause(str(error)), True
        known = self._memory(error) or error
        self.leave_word(getattr(known, "code", FAULT), told(known), trace=traceback.format_exception(error))
        return known, self.session.size > 1 and (known is not error or not isinstance(known, KdscaleError))

    def abandon(self, signal: str) -> None:
        """A second signal: nothing is waited for."""
        text = f"a second signal ({signal}) ended the run at once; {self.last_save()}: the same command continues"
        self.leave_word(ABANDONED, text)
        if self.session.main:
            self.verdict(ABANDONED, text)

    def verdict(self, code: int, reason: str, gone: Collection[int] = (), aloud: bool = False) -> None:
        """Written by the first rank that is not among those ``gone`` or dead; ``aloud``: told as well."""
        dead = {*gone, *self._dead()}
        first = next((rank for rank in range(self.session.size) if rank not in dead), self.session.rank)
        if self.session.rank != first or (first and self._written()):
            return
        saves = saving.all_saves(self.folder.checkpoints)
        facts = self.pulse.place | {"last_save": saves[-1].name if saves else None, "ranks": self.session.size}
        self.folder.verdict(code, reason, **facts, **slurm())
        if aloud or first:  # the reporters are rank 0's
            self.tell(reason)

    def tell(self, text: str) -> None:
        """Onto stderr and into the log, where no reporter can."""
        sys.stderr.write(f"kdscale: {text}\n")
        self.note(text)

    def note(self, text: str) -> None:
        """Into the log alone: the command line tells the error itself."""
        with contextlib.suppress(OSError), (self.folder.path / "log.txt").open("a") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S%z')} {text}\n")

    def named(self, rank: int) -> str:
        """A rank as messages call it; a run of one process has no need of a number."""
        member = self.members[rank]
        who = f"rank {rank} on {member['host']}" if self.session.size > 1 else f"the run on {member['host']}"
        return f"{who} (process {member['pid']})"

    def last_save(self) -> str:
        saves = saving.all_saves(self.folder.checkpoints)
        return f"the last save is {saves[-1].name}" if saves else "there is no save yet"

    def _contact_lost(self, error: BaseException) -> bool:
        """A collective failed for what another rank did: torch says it in many classes and one sentence."""
        if self.session.size == 1 or not isinstance(error, RuntimeError):
            return False
        return isinstance(error, dist.DistError) or any(word in str(error) for word in CONTACT)

    def _memory(self, error: BaseException) -> OutOfMemory | None:
        full = isinstance(error, RuntimeError | OSError) and any(word in str(error) for word in MEMORY_FULL)
        if not (full or isinstance(error, MemoryError)):
            return None
        where = "the device" if "CUDA" in str(error) or "HIP" in str(error) else self.members[self.session.rank]["host"]
        first = (str(error).splitlines() or ["MemoryError"])[0]
        return OutOfMemory(
            f"{where} is out of memory: double machine.accumulate ({self.accumulate}) or use a smaller batch ({first})"
        )

    def leave_word(self, code: int, reason: str, lost: bool = False, trace: list[str] | None = None) -> None:
        rank = self.session.rank
        word = {"rank": rank, **self.members[rank], "time": time.time(), "lost_contact": lost, "code": code, "reason": reason}
        with contextlib.suppress(OSError):
            path = self.folder.path / f"fault-{rank}.json"
            write_json(path, word | self.pulse.place | {"traceback": "".join(trace or []), "doing": self.pulse.doing})

    def words(self) -> list[dict[str, Any]]:
        """What the ranks of this start left, earliest first."""
        found = []
        for path in self.folder.path.glob("fault-*.json"):
            with contextlib.suppress(OSError, ValueError, KeyError, IndexError):
                word = json.loads(path.read_text())
                if self.members[word["rank"]] == {name: word[name] for name in ("host", "pid", "started")}:
                    found.append(word)
        return sorted(found, key=lambda word: word["time"])

    def _dead(self, besides: Collection[int] = ()) -> list[int]:
        """Ranks of this machine whose process is gone."""
        here = self.members[self.session.rank]["host"]
        alive = [member["host"] != here or started(member["pid"]) == member["started"] for member in self.members]
        return [rank for rank in range(len(alive)) if not alive[rank] and rank not in besides]

    def _cause(self, error: str) -> RankLost:
        """Waits for it, no longer than PATIENCE."""
        begun, first = time.monotonic(), self._beats()
        while time.monotonic() < begun + PATIENCE:
            words = self.words()
            told = next((word for word in words if not word["lost_contact"]), None)
            if told is not None:
                return self._lost(f"{self.named(told['rank'])}: {told['reason']}", told["code"])
            gone = self._dead({word["rank"] for word in words})
            if gone:
                return self._lost(f"{self.all_named(gone)} died without a word: killed, perhaps for memory")
            silent = self._silent(first, words) if time.monotonic() > begun + 3 * BEAT else []
            if silent:
                return self._lost(f"nothing is heard of {self.all_named(silent)}: is the machine down?")
            written = self._written()
            if written is not None:
                return RankLost(written["reason"], written["code"])
            time.sleep(0.1)
        return self._lost(f"contact with the other ranks was lost ({error.splitlines()[0]})")

    def _lost(self, text: str, code: int = FAULT) -> RankLost:
        return RankLost(text if code == USAGE else f"{text}; {self.last_save()}: the same command continues", code)

    def _written(self) -> dict[str, Any] | None:
        """The verdict, where another rank was quicker."""
        with contextlib.suppress(OSError, ValueError):
            return dict(json.loads((self.folder.path / "verdict.json").read_text()))
        return None

    def _beats(self) -> list[dict[str, Any]] | None:
        return self.pulse.all() if self.judging else None

    def _silent(self, before: list[dict[str, Any]] | None, words: list[dict[str, Any]]) -> list[int]:
        """Ranks that have not told a beat since ``before``. A store that does not answer was on rank 0's machine."""
        now, heard = self._beats(), {self.session.rank, *(word["rank"] for word in words)}
        if before is None or now is None:
            elsewhere = self.members[0]["host"] != self.members[self.session.rank]["host"]
            return [0] if elsewhere and self.judging and 0 not in heard else []
        return [r for r, (a, b) in enumerate(zip(before, now, strict=True)) if a["tick"] == b["tick"] and r not in heard]

    def all_named(self, ranks: list[int]) -> str:
        more = f" and {len(ranks) - 3} more" if len(ranks) > 3 else ""
        return ", ".join(map(self.named, ranks[:3])) + more


def told(error: BaseException) -> str:
    """An error in one line: ours are sentences, others need their class."""
    return str(error) if isinstance(error, KdscaleError) else "".join(traceback.format_exception_only(error)).strip()
