"""Finished runs as rows of a file, and the rows as a table: ours beside what is published.

A row is a JSON object a line: the recipe's name, seed, top-1 of the last and of the best evaluation by name, seconds of training,
device, commit, command, and the whole resolved recipe. Rows of one recipe that differ in the seed alone are one line of the table.
"""

from __future__ import annotations

import datetime
import json
import re
import shlex
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..engine.trained import Run
from ..errors import KdscaleError, RecipeError
from ..recipe import from_plain, to_plain
from ..recipe.resolve import NOT_IDENTITY, digest
from ..recipe.resolve import identity as identity_of

Row = dict[str, Any]
MARKS = ("<!-- results -->", "<!-- end of results -->")
NOT_RUN = "not run yet"
NEEDED = {"recipe", "last", "best", "seconds", "device", "published", "resolved"}  # of a row, for the table
PLACES = {  # of a command's words: what is left of those that name a place of this machine
    r"^data\.source=.*": "data.source=DATA",
    r"^(networks\.\w+)=.*/export$": r"\1=FOLDER",
    r"^(--out|-o)=.*": r"\1=OUT",
}
SAME = ("recipe", "command", "seed", "last", "best", "count", "seconds")


def row_of(run: Run) -> Row:
    """What a finished run has to tell. Raises KdscaleError for one that is not finished."""
    told = _verdict(run.path / "verdict.json")
    if told.get("code") != 0:
        raise KdscaleError(
            f"{run.path} is not finished ({told.get('reason', 'it has no verdict')}): run its train command again"
        )
    last = run.recipe.phases[-1].name
    lines = [line for line in run.lines("evaluation") if line["phase"] == last]
    names = list(dict.fromkeys(line["name"] for line in lines))
    of = {name: [line for line in lines if line["name"] == name] for name in names}
    environment = run.environment
    return {
        "recipe": run.recipe.name,
        "seed": run.recipe.seed,
        "last": {name: round(100 * entries[-1]["top1"], 4) for name, entries in of.items()},
        "best": {name: round(100 * max(entry["top1"] for entry in entries), 4) for name, entries in of.items()},
        "count": lines[-1]["count"] if lines else 0,
        "seconds": round(sum(_seconds(run, phase.name) for phase in run.recipe.phases), 1),
        "device": environment.get("device", ""),
        "cores": environment.get("cores"),
        "commit": environment.get("commit", ""),
        "kdscale": environment.get("kdscale", ""),
        "date": datetime.date.fromtimestamp(told["time"]).isoformat(),
        "command": placeless(run.command),
        "published": dict(run.recipe.published),
        "resolved": _placeless_recipe(run),
    }


def _verdict(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text())) if path.exists() else {}
    except (ValueError, TypeError):
        return {"reason": "its verdict.json is damaged"}


def placeless(command: str) -> str:
    """A command whose paths, which mean nothing elsewhere, are the words DATA, FOLDER and OUT."""
    try:
        words = shlex.split(command)
    except ValueError:  # of a version that did not quote them
        words = command.split()
    said: list[str] = []
    for word in words:
        for written, meant in PLACES.items():
            word = re.sub(written, meant, word, flags=re.S)
        said.append("OUT" if said and said[-1] in ("--out", "-o") else word)
    return shlex.join(said)


def _placeless_recipe(run: Run) -> dict[str, Any]:
    """The resolved recipe, with what its data and local networks are in place of where they lay."""
    plain = to_plain(run.recipe)
    known = run.identity.get("phases", [])
    for phase, identity in zip(plain["phases"], known, strict=False):
        phase["data"]["source"] = identity["data"].get("identity", "")
        for role, source in phase["networks"].items():
            for word in ("name", "weights"):
                if Path(str(source.get(word) or "")).is_absolute():
                    source[word] = identity["networks"][role][word]
    plain["data"]["source"] = plain["phases"][0]["data"]["source"]
    plain["networks"] = {}  # spelt out in the phases
    return plain


def _seconds(run: Run, phase: str) -> float:
    return max((line.get("seconds", 0.0) for line in run.lines("evaluation") if line["phase"] == phase), default=0.0)


def read(path: Path) -> list[Row]:
    """The rows of a file; none where it is missing. Raises KdscaleError for a line that is no row."""
    rows = []
    for number, line in enumerate(path.read_text(errors="replace").splitlines() if path.exists() else [], 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or not row.keys() >= NEEDED:
            raise KdscaleError(f"{path}, line {number}, is no row of results: take the line out")
        rows.append(row)
    return rows


def record(path: Path, row: Row) -> bool:
    """Appends a row, unless the file holds this run already: same command, seed, scores and seconds.

    Date and commit do not tell runs apart: the command of a finished run, repeated, writes them anew.
    """
    if any(all(held.get(name) == row.get(name) for name in SAME) for held in read(path)):
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    ended = not path.exists() or path.read_bytes()[-1:] in (b"", b"\n")
    with path.open("a") as file:
        file.write(("" if ended else "\n") + json.dumps(row, sort_keys=True) + "\n")
    return True


def grouped(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows by recipe; settings that differ in more than the seed stand apart under their name and a number."""
    groups: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        groups.setdefault(row["recipe"], {}).setdefault(digest(_settings(row["resolved"])), []).append(row)
    return {
        name if number == 1 else f"{name} ({number})": held
        for name, kinds in groups.items()
        for number, held in enumerate(kinds.values(), 1)
    }


def _settings(resolved: dict[str, Any]) -> dict[str, Any]:
    """What decides a score, but the seed; fields that are younger than the row are at their defaults."""
    try:
        plain = identity_of(from_plain(resolved), {}, {})
    except RecipeError:  # of another version, whose fields this one has not
        plain = {name: value for name, value in resolved.items() if name not in NOT_IDENTITY}
    return plain | {"seed": 0}


def table(rows: Sequence[Row], expected: Sequence[tuple[str, dict[str, float]]] = ()) -> list[str]:
    """Lines of a Markdown table. ``expected``: (recipe, published) that are shown even where nothing was run."""
    groups = grouped(rows)
    lines = [
        "| recipe | published | ours, last | best | difference | seeds | device, seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, published in expected:
        if name not in groups:
            lines.append(f"| {name} | {_printed(published)} | {NOT_RUN} | {NOT_RUN} | | 0 | |")
    for name, held in groups.items():
        published = held[-1]["published"]
        last = [row["last"]["student"] for row in held if "student" in row["last"]]
        best = [row["best"]["student"] for row in held if "student" in row["best"]]
        if not last:
            continue
        gap = f"{statistics.fmean(last) - max(published.values()):+.2f}" if published else ""
        seconds = statistics.fmean(row["seconds"] for row in held)
        where = f"{held[-1]['device']}, {seconds:.0f}"
        lines.append(f"| {name} | {_printed(published)} | {_spread(last)} | {_spread(best)} | {gap} | {len(held)} | {where} |")
    return lines


def _printed(published: dict[str, float]) -> str:
    return "; ".join(f"{value:.2f} ({where})" for where, value in published.items())


def _spread(values: Sequence[float]) -> str:
    mean = f"{statistics.fmean(values):.2f}"
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean


def rewrite(page: Path, lines: Sequence[str]) -> None:
    """Puts the table between the two marks of a page. Raises KdscaleError where they are not there."""
    text = page.read_text()
    found = re.search(f"{re.escape(MARKS[0])}.*?{re.escape(MARKS[1])}", text, re.S)
    if not found:
        raise KdscaleError(f"{page} has no lines {MARKS[0]!r} and {MARKS[1]!r}: write them where the table belongs")
    made = "\n".join([MARKS[0], *lines, MARKS[1]])
    page.write_text(text[: found.start()] + made + text[found.end() :])
