"""Writes a sweep's list of runs for a job array, and tells an element its run.

    python slurm/sweep.py RECIPE[:NAME]... [path=value]... [--grid path=v1,v2]... --out DIR

DIR/sweep.json then holds one run an element, teachers that are missing first, and the lines that submit them are printed. An
element keeps its number whatever has been trained meanwhile; submitted again, finished runs end at once.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from pathlib import Path
from typing import NoReturn

from kdscale.errors import KdscaleError

LIST = "sweep.json"


class Words(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise KdscaleError(f"{message}: python slurm/sweep.py --help tells what it takes")


def main() -> int:
    parser = Words(description="The list of a job array.")
    parser.add_argument("words", nargs="*", metavar="RECIPE[:NAME] | path=value")
    parser.add_argument("--grid", action="append", default=[], metavar="path=v1,v2")
    parser.add_argument("--out", type=Path, metavar="DIR", required=True)
    parser.add_argument("--element", type=int, metavar="I", help="Only tell the words of this run, each ended by a zero byte.")
    try:
        given = parser.parse_args()
        if given.element is None:
            print("\n".join(written(given.words, given.grid, given.out)))
        else:
            sys.stdout.write("".join(f"{word}\0" for word in element(given.out, given.element)))
    except KdscaleError as error:
        print(f"sweep.py: {error}", file=sys.stderr)
        return error.code
    except OSError as error:
        print(f"sweep.py: {error.filename}: {error.strerror}: give a path that can be used", file=sys.stderr)
        return 64
    return 0


def written(words: list[str], grid: list[str], out: Path) -> list[str]:
    """Writes the list; the lines that submit it."""
    from kdscale.cli.arguments import register_methods
    from kdscale.engine.checkpoint.files import write_json
    from kdscale.engine.sweep import jobs

    register_methods()
    todo = jobs([word for word in words if "=" not in word], [word for word in words if "=" in word], grid, out)
    if not todo:
        raise KdscaleError("name at least one recipe: python slurm/sweep.py RECIPE[:NAME] ... --out DIR")
    places = [job.out for job in todo]
    runs = [
        {
            "out": str(job.out),
            "words": [job.reference, *job.words],
            "exported": job.exported,
            "after": [places.index(teacher.out) for teacher in job.after],
        }
        for job in todo
    ]
    out.mkdir(parents=True, exist_ok=True)
    if (out / LIST).exists() and json.loads((out / LIST).read_text()).get("runs") != runs:
        raise KdscaleError(f"{out / LIST} lists other runs, which an array may still ask for: give another --out")
    write_json(out / LIST, {"folder": os.getcwd(), "runs": runs})
    return lines(len(todo), sum(job.exported for job in todo), out)


def lines(runs: int, teachers: int, out: Path) -> list[str]:
    """Teachers that teach each other's pupils come one by one: a chain of them is short, and an array knows no order."""
    script = shlex.join([str(Path(__file__).with_name("sweep.sbatch")), str(out)])
    if not teachers:
        return [f"sbatch --array=0-{runs - 1}%8 {script}"]
    return [
        f"first=$(sbatch --parsable --array=0-{teachers - 1}%1 {script})",
        f"sbatch --array={teachers}-{runs - 1}%8 --dependency=afterany:$first {script}",
    ]


def element(out: Path, number: int) -> list[str]:
    """Folder to run in, folder of the run, 'export' or '', then the words of ``kdscale train``."""
    try:
        told = json.loads((out / LIST).read_text())
        run = dict(enumerate(told["runs"]))[number]
    except (OSError, ValueError, IndexError, KeyError):
        raise KdscaleError(
            f"{out / LIST} has no run {number}: write it by python slurm/sweep.py RECIPE... --out {out}"
        ) from None
    for teacher in (told["runs"][place] for place in run["after"]):
        if not (Path(told["folder"], teacher["out"]) / "export" / "config.json").is_file():
            raise KdscaleError(
                f"{run['out']} needs the teacher in {teacher['out']}, which is not trained: submit its element first"
            )
    return [told["folder"], run["out"], "export" if run["exported"] else "", *run["words"]]


if __name__ == "__main__":
    sys.exit(main())
