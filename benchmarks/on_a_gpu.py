"""Everything that one GPU can tell of kdscale, in one command: a row a measurement, the most wanted first.

    python -m kdscale.benchmarks.on_a_gpu --cifar PACKED_CIFAR --images PACKED_IMAGES --out DIR [--device cpu] [--minutes 9]
        [--only flagship,peers-compile]

Each row is a process with a limit of its own, killed at it with everything that it started, so one that fails, hangs or runs
out of memory costs itself alone. DIR gets NAME.json and NAME.log of each row, rows.jsonl (plain data) and table.md; copied to
another machine, DIR lets the same command go on there: rows that ended well with the same words on the same device are not run
again, nor those that failed, unless --only names them. PACKED_IMAGES are of ImageNet's size; a thousand are enough, and one
split. The network is never asked. --device cpu runs all of it small, to see that it works.

Ends with 75 where rows did not fit into --minutes (the same command goes on), else with 70 where one failed, else with 0.

From a checkout that is not installed, ``kdscale.benchmarks`` and ``kdscale.recipes`` are not where Python looks:
``python -m pip install --no-index --no-deps --no-build-isolation --target SITE .`` and PYTHONPATH=SITE put them there.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from kdscale.benchmarks.card.rows import INSIDE, ROWS, Row, Setting, Told
from kdscale.benchmarks.card.several import ended_within
from kdscale.data.locate import find
from kdscale.data.manifest import read_manifest
from kdscale.errors import KdscaleError
from kdscale.recipe.paths import nearest

LEAST = 0.25  # of a row's limit: with less left it is not begun
Outcome = dict[str, Any]


def run(row: Row, setting: Setting, out: Path, seconds: float) -> Outcome:
    """The row's figures, or why there are none. ``seconds``: that are left for it."""
    folder, log = out / "work" / row.name, out / f"{row.name}.log"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    words = row.words(setting, folder)
    command = [sys.executable, "-m", INSIDE, "peak", str(folder / "peak.json"), *words]
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if setting.device == "cpu" else {}
    said = {"HF_HUB_OFFLINE": "1", "KDSCALE_PROGRESS": "lines", "PYTHONUNBUFFERED": "1"}
    started, limit = time.monotonic(), min(row.limit, seconds)
    code = ended_within(limit, command, {**os.environ, **said, **hidden, **row.environment}, log)
    outcome: Outcome = {"name": row.name, "group": row.group, "seconds": round(time.monotonic() - started, 1), "code": code}
    told = Told(folder, log.read_text(errors="replace"))
    outcome |= judged(row, told, code, limit)
    for file, name in row.keeps.items():
        with suppress(FileNotFoundError):
            shutil.copyfile(folder / file, out / name)
    shutil.rmtree(folder.parent, ignore_errors=True)
    return outcome


def judged(row: Row, told: Told, code: int | None, limit: float) -> Outcome:
    """What ended badly may have told its figures before that."""
    figures, unread = {}, ""
    try:
        figures = row.read(told)
    except (ArithmeticError, LookupError, OSError, TypeError, ValueError) as error:
        unread = f"ended well, and its figures cannot be read: {type(error).__name__}: {error}"
    if code is None:
        state = "out of time" if limit < row.limit else "failed"
        return {"state": state, "why": f"killed after {limit:.0f} s: {last_word(told.text)}", "figures": figures}
    why = f"ended with {code}: {last_word(told.text)}" if code else unread
    return {"state": "failed" if why else "done", "why": why, "figures": figures}


def last_word(text: str) -> str:
    """The command's own line, where there is one; else the last that is not empty."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line for line in lines[::-1] if "kdscale: " in line), lines[-1] if lines else "it said nothing")


def shown(row: Row, setting: Setting) -> str:
    """The command as a person would type it, with names in place of folders."""
    words = row.words(Setting("CIFAR", "IMAGES", setting.device, setting.eval_split), Path("OUT"))
    front = [f"{name}={value}" for name, value in row.environment.items()]
    typed = words if words[0] == "kdscale" else ["python", "-m", *words]
    return shlex.join([*front, *typed])


def measure(rows: Sequence[Row], setting: Setting, here: Outcome, out: Path, minutes: float, named: Sequence[Row]) -> int:
    """Runs what is not there yet, of ``named`` if any are; tells and writes each row at once, those of earlier calls too.

    ``here``: :func:`facts`. Returns the exit code.
    """
    until, told = time.monotonic() + 60 * minutes, []
    now = {"date": time.strftime("%Y-%m-%d", time.gmtime()), **here}
    for row in rows:
        command, left = shown(row, setting), until - time.monotonic()
        outcome = kept(out / f"{row.name}.json", command, here["device"], row in named)
        if outcome is None and named and row not in named:
            continue
        if outcome is None:
            outcome = due(row, setting, out, left) | {"command": command, **now}
            if outcome["state"] in ("done", "failed"):
                (out / f"{row.name}.json").write_text(json.dumps(outcome, indent=1) + "\n")
            say(f"{row.name}: {result(outcome)}\n")
        told.append(outcome)
        write(out, told, here)
    say("\n" + (out / "table.md").read_text())
    states = {outcome["state"] for outcome in told}
    return 75 if "out of time" in states else 70 if "failed" in states else 0


def say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def due(row: Row, setting: Setting, out: Path, left: float) -> Outcome:
    if row.only_cuda and setting.device == "cpu":
        return {"name": row.name, "group": row.group, "state": "only on a GPU", "why": row.only_cuda}
    if left < LEAST * row.limit:
        return {"name": row.name, "group": row.group, "state": "out of time"}
    return run(row, setting, out, left)


def kept(file: Path, command: str, device: str, again: bool) -> Outcome | None:
    """What an earlier call found with the same words on the same device; ``again``: only where it ended well."""
    try:
        found: Outcome = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    same = found.get("command") == command and found.get("device") == device
    return found if same and not (again and found["state"] == "failed") else None


def facts(setting: Setting) -> Outcome:
    """Of the machine, asked in a process of its own: this one is to hold nothing of the device. KdscaleError: no GPU is seen."""
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if setting.device == "cpu" else {}
    done = subprocess.run([sys.executable, "-m", INSIDE, "facts"], capture_output=True, text=True, env={**os.environ, **hidden})
    if done.returncode:
        raise KdscaleError(f"this machine cannot be asked what it is: {last_word(done.stderr)}")
    found: Outcome = json.loads(done.stdout.strip().rpartition("\n")[2])
    if setting.device == "cuda" and found["cuda"] is None:
        raise KdscaleError("--device is cuda and torch sees no GPU here: see what nvidia-smi says, or take --device cpu")
    return found


def result(outcome: Outcome) -> str:
    state = {"done": "", "failed": "failed"}.get(outcome["state"], f"not run: {outcome['state']}")
    bad = ": ".join(word for word in (state, outcome.get("why")) if word)
    figures = [f"{name} {number(value)}" for name, value in outcome.get("figures", {}).items()]
    return "; ".join([bad, *figures] if bad else figures)


def number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return "- (a figure of a GPU)" if value is None else str(value)


def write(out: Path, told: Sequence[Outcome], here: Outcome) -> None:
    """After every row, so that what ends this process leaves the rows before it."""
    (out / "rows.jsonl").write_text("".join(json.dumps(outcome) + "\n" for outcome in told))
    (out / "table.md").write_text("\n".join(table(told, here)) + "\n")


def table(told: Sequence[Outcome], here: Outcome) -> Iterator[str]:
    """Markdown. A row that was found elsewhere or on another day says so itself, in rows.jsonl."""
    cuda = f", CUDA {here['cuda']}, driver {here['driver'] or 'unknown'}" if here["cuda"] else ""
    yield f"{here['device']}, torch {here['torch']}{cuda}, Python {here['python']}, {time.strftime('%Y-%m-%d', time.gmtime())}"
    yield from ("", "| row | result | seconds | command |", "|---|---|---:|---|")
    for outcome in told:
        cells = (outcome["name"], result(outcome), outcome.get("seconds", ""), f"`{outcome['command']}`")
        yield f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in cells)} |"


class Words(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise KdscaleError(message)


def setting_of(cifar: str, images: str, device: str) -> Setting:
    """Raises KdscaleError for a folder that is not there, not packed, or without the splits that the rows read."""
    splits = {}
    for word, source, needed in (("--cifar", cifar, {"train", "val"}), ("--images", images, {"train"})):
        manifest = read_manifest(find(source))
        if manifest is None:
            raise KdscaleError(
                f"{word}: {source} has no manifest.json: kdscale data pack {source} OUT makes one of pictures, kdscale data index of tars"
            )
        splits[word] = set(manifest.splits)
        if lacking := needed - splits[word]:
            raise KdscaleError(
                f"{word}: {source} has no split {', '.join(sorted(lacking))}: kdscale data pack SRC {source} --split {min(lacking)}"
            )
    cifar, images = (str(find(source).resolve()) for source in (cifar, images))
    return Setting(cifar, images, device, "val" if "val" in splits["--images"] else "train")


def chosen(only: str) -> list[Row]:
    """The rows that --only names, by name or by group. Raises KdscaleError for a word that is neither."""
    words = [word for word in only.split(",") if word]
    known = list(dict.fromkeys([*(row.group for row in ROWS), *(row.name for row in ROWS)]))
    for word in words:
        if word not in known:
            raise KdscaleError(f"--only: there is no row {word!r}; {nearest(word, known)}")
    return [row for row in ROWS if row.name in words or row.group in words]


def main(words: list[str]) -> int:
    parser = Words(prog="python -m kdscale.benchmarks.on_a_gpu")
    parser.add_argument("--cifar", required=True, help="packed CIFAR-100")
    parser.add_argument("--images", required=True, help="packed images of ImageNet's size")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--minutes", type=float, default=9, help="of all rows together")
    parser.add_argument("--only", default="", metavar="ROW,...", help="rows or groups of them")
    read = parser.parse_args(words)
    if not 0 < read.minutes < float("inf"):
        raise KdscaleError(f"--minutes is {read.minutes:g}: give a number above 0")
    named, setting = chosen(read.only), setting_of(read.cifar, read.images, read.device)
    here = facts(setting)
    read.out.mkdir(parents=True, exist_ok=True)
    return measure(ROWS, setting, here, read.out, read.minutes, named)


def command() -> int:
    """:func:`main`, where an error of the user's is a line and 64, and a request to end takes the row under way with it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return main(sys.argv[1:])
    except KdscaleError as error:
        sys.stderr.write(f"kdscale: {' '.join(str(error).splitlines())}\n")
        return error.code
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        if error.filename is None:
            raise
        sys.stderr.write(f"kdscale: {error.filename}: {error.strerror}: give a path that can be used\n")
        return 64


if __name__ == "__main__":
    sys.exit(command())
