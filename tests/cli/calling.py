"""The command line without a new process: importing torch and timm again for every case would take longer than the cases."""

from __future__ import annotations

import contextlib
import io
import sys
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from kdscale.cli.main import main


class Said(NamedTuple):
    code: int
    out: str
    err: str


def kdscale(*words: str | Path) -> Said:
    """Runs ``kdscale WORDS`` here; an exception that leaves it is a traceback that a user would have seen."""
    out, err = io.StringIO(), io.StringIO()
    argv = ["kdscale", *map(str, words)]
    with mock.patch.object(sys, "argv", argv), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
    return Said(code, out.getvalue(), err.getvalue())


def done(*words: str | Path) -> str:
    """What a command that must succeed prints, with nothing on the side of errors."""
    said = kdscale(*words)
    assert said.code == 0, said
    assert said.err == "", said
    return said.out


def refused(*words: str | Path, code: int = 64) -> str:
    """The one line with which a command refuses, without its head."""
    said = kdscale(*words)
    assert said.code == code, said
    assert said.err.startswith("kdscale: "), said
    assert said.err.count("\n") == 1, said
    assert "Traceback" not in said.out
    return said.err.removeprefix("kdscale: ").rstrip("\n")
