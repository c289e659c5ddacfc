"""On a terminal: live rows that ends cleanly, whatever ends the run."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import termios
from pathlib import Path

from tests.engine import small

HIDE, SHOW = b"\x1b[?25l", b"\x1b[?25h"


def on_a_terminal(*words: str | Path, columns: int = 100, interrupt_at: bytes = b"") -> tuple[int, str]:
    """(exit code, all that the screen got); a Ctrl-C is typed when ``interrupt_at`` is first seen."""
    command = small.command(*words)
    child, screen = pty.fork()
    if child == 0:
        os.execvpe(command[0], command, {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm"})
    fcntl.ioctl(screen, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    seen = b""
    while read := next_of(screen):
        seen += read
        if interrupt_at and interrupt_at in seen:
            os.write(screen, b"\x03")
            interrupt_at = b""
    os.close(screen)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert seen.rfind(SHOW) >= seen.rfind(HIDE), "the cursor stays hidden"
    return code, seen.decode(errors="replace")


def next_of(screen: int) -> bytes:
    """What the child writes next; nothing when it has ended, or is silent for two minutes."""
    if not select.select([screen], [], [], 120)[0]:
        return b""
    try:
        return os.read(screen, 65536)
    except OSError:  # Linux's way to say that the other side is closed
        return b""


def test_ctrl_c_saves_says_so_and_gives_the_terminal_back(recipe: Path, tmp_path: Path) -> None:
    words = ("train", recipe, "steps=4000", "evaluation.every=100", "checkpointing.every_steps=2000", "--out", tmp_path / "out")
    code, screen = on_a_terminal(*words, interrupt_at=b" img/s")
    assert code == 75
    assert "SIGINT asked for a stop; saved: the same command continues" in screen
    assert "Traceback" not in screen
    assert "/4000" in screen
    assert len(list((tmp_path / "out" / "checkpoints").glob("step-*"))) == 1


def test_an_error_comes_after_the_bar_on_a_line_of_its_own(recipe: Path, tmp_path: Path) -> None:
    words = ("train", recipe, "optimizer={kind: sgd, lr: 1e20}", "schedule={kind: constant}", "--out", tmp_path / "out")
    code, screen = on_a_terminal(*words, columns=60)
    assert code == 70
    last = screen.rstrip().rpartition("\n")[2].replace(SHOW.decode(), "").strip()
    assert last.startswith("kdscale: the loss is not finite at step")
    assert "ce " in screen, "a narrow screen still shows the losses by name, over more rows"
