"""``kdscale``: the commands, and the one place where an error becomes a line and an exit code."""

from __future__ import annotations

import errno
import os
import socket
import sys
import traceback

import typer

from .. import __version__
from ..errors import KdscaleError
from . import (
    bench,
    check,
    checkpoints,
    data,
    evaluate,
    export,
    parity,
    plan,
    publish,
    quickstart,
    results,
    show,
    sweep,
    teach,
    train,
)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="One engine on which every distillation method is one short file.",
)
# typer brings its own copy of click in some versions: the root of its usage errors is found, not imported
USAGE: type[Exception] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
UNHEARD = "PacifyFlushWrapper"  # what click puts in stdout's place when nobody reads it any more, before it ends with 1
INTERRUPTED = 130
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
app.command("train", help=train.HELP)(train.run)
app.command("check", help=check.HELP)(check.run)
app.command("evaluate", help=evaluate.HELP)(evaluate.run)
app.add_typer(data.app, name="data")
app.add_typer(bench.app, name="bench")
app.command("show", help=show.HELP)(show.run)
app.command("checkpoints", help=checkpoints.HELP)(checkpoints.run)
app.command("plan", help=plan.HELP)(plan.run)
app.command("export", help=export.HELP)(export.run)
app.command("publish", help=publish.HELP)(publish.run)
app.command("sweep", help=sweep.HELP)(sweep.run)
app.command("results", help=results.HELP)(results.run)
app.command("teach", help=teach.HELP)(teach.run)
app.command("parity", help=parity.HELP)(parity.run)
app.command("quickstart", help=quickstart.HELP)(quickstart.run)


@app.callback(invoke_without_command=True)
def version(show_version: bool = typer.Option(False, "--version", help="Print the version and end.")) -> None:
    if show_version:
        typer.echo(f"kdscale {__version__}")
        raise typer.Exit


def main() -> None:
    """Exit codes: 0 done, 75 stopped and saved, 76 stopped at once, 70 fault, 71 out of memory, 72 a rank hung, 64 input that
    cannot be used, 130 interrupted."""
    open_streams()
    try:
        code = app(prog_name="kdscale", standalone_mode=False)
        if code == INTERRUPTED:  # some versions of typer answer Ctrl-C with a code, others with an error
            raise KeyboardInterrupt
    except KdscaleError as error:
        code = fail(str(error), error.code)
    except (typer.Abort, KeyboardInterrupt):
        code = fail("interrupted: the same command goes on from what is complete", INTERRUPTED)
    except USAGE as error:
        code = misused(error)
    except BrokenPipeError:
        code = unheard()
    except SystemExit:
        if type(sys.stdout).__name__ != UNHEARD:
            raise
        code = unheard()
    except OSError as error:
        code = unreachable(error)
    except Exception:
        traceback.print_exc()
        code = 70
    sys.exit(code if isinstance(code, int) else 0)


def open_streams() -> None:
    """Of a command that was started with closed ones (``>&-``): what it says goes nowhere."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))


def unheard() -> int:
    """Whoever read our lines has had enough of them (``| head -1``): no fault."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno())  # type: ignore[union-attr]
    return 0


def misused(error: Exception) -> int:
    """A group of commands without a command is answered with its help, and any other misuse with its line."""
    text = error.format_message()  # type: ignore[attr-defined]
    if type(error).__name__ == "NoArgsIsHelpError":
        typer.echo(text, err=True)
        return 64
    return fail(text, 64)


def unreachable(error: OSError) -> int:
    """A path of the user's that cannot be read or written, or a disk that is full; any other error of the system is a fault of ours."""
    if error.errno in FULL:
        where = f"{error.filename}: " if error.filename else ""
        return fail(f"{where}{error.strerror}: make room and give the same command again", 70)
    if error.filename is None:
        traceback.print_exception(error)
        return 70
    return fail(f"{error.filename}: {error.strerror}: give a path that can be used", 64)


def fail(text: str, code: int) -> int:
    """One line on rank 0: every rank that has joined the others raises the same error. Before that a machine may be the only
    one that has it, and its first rank tells."""
    given, line = os.environ, " ".join(text.splitlines())
    if given.get("RANK", "0") == "0":
        typer.echo(f"kdscale: {line}", err=True)
    elif given.get("LOCAL_RANK") == "0" and not _joined():
        typer.echo(f"kdscale: rank {given['RANK']} on {socket.gethostname()}: {line}", err=True)
    return code


def _joined() -> bool:
    """Looked up, not imported: torch is not needed to say that a word is wrong."""
    session = sys.modules.get("kdscale.engine.parallel.session")
    return session is not None and session.joined
