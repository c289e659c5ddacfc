"""``kdscale parity``."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .arguments import Assignments, RecipeWord, quiet_libraries, recipe_of

if TYPE_CHECKING:
    from ..engine.parity.runs import Parity, Row

HELP = """Prove that every back-end trains a recipe alike.

The recipe is cut to a few steps a phase: its curves of rates are drawn together to that length, an EMA's decay is at most 0.9, and AdamW's eps at least 1e-4, for with less Adam makes steps of the rounding of gradients near zero. It is trained by one process and then by N ranks under each of ddp, zero1, zero2, zero3 and fsdp2. Losses of every step, final weights and the EMA are compared: ddp with the one process, the others with ddp.

fp32: in the first step a loss may be off by 5e-6 of its size (of 1 where it is smaller) between back-ends on N ranks, by 2e-5 between one process and N ranks, or 5e-5 where a micro-batch counts as a whole over the ranks; that doubles every 2 steps, up to 32 times, as rounding does. The weights of a part (a network, an adapter, the average) may be off by 1e-3, 1e-3 and 5e-3 of their norm. bf16: 5e-3 in all steps, 5e-2. The largest difference of a single weight is printed and not judged.

A back-end that refuses the recipe says why. Ends with 0 where all others are within the tolerance, else with 70 and the runs' folder kept."""

Only = Annotated[str | None, typer.Option("--only", metavar="ddp,zero2", help="These back-ends; default: all.")]
Ranks = Annotated[
    int | None, typer.Option("--ranks", "-n", metavar="N", min=1, help="Default: this machine's GPUs, or 2 where it has none.")
]
Steps = Annotated[int, typer.Option("--steps", min=1, help="Of each phase, at most.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", metavar="DIR", file_okay=False, help="Keep the runs in this folder.")]
HEADS = ("back-end", "ranks", "compared with", "loss differs by", "at step", "a weight by", "a part by", "seconds", "verdict")


def run(
    recipe: RecipeWord,
    assignments: Assignments = None,
    only: Only = None,
    ranks: Ranks = None,
    steps: Steps = 20,
    out: Out = None,
) -> None:
    if os.environ.get("WORLD_SIZE", "1") not in ("", "1"):
        raise typer.BadParameter("parity starts the ranks itself: start it without torchrun")
    quiet_libraries()
    value = recipe_of(recipe, assignments)
    import torch

    from ..engine.parity.runs import Parity

    ranks = ranks or torch.cuda.device_count() or 2
    folder = out or Path(tempfile.mkdtemp(prefix="kdscale-parity-"))
    parity = None
    try:
        parity = Parity(recipe, assignments or [], value, folder, ranks=ranks, steps=steps, only=_words(only), say=typer.echo)
        for line in head(parity):
            typer.echo(line)
        code = parity.run(keep=out is not None)
        for line in (*table(parity.rows), *allowed(parity)):
            typer.echo(line)
    finally:
        if out is None and not (parity and parity.faults):
            shutil.rmtree(folder, ignore_errors=True)
        elif parity:
            typer.echo(f"the runs are in {folder}")
    raise typer.Exit(code)


def _words(only: str | None) -> Sequence[str]:
    from ..engine.parity.runs import BACK_ENDS

    words = BACK_ENDS if only is None else tuple(only.split(","))
    for word in words:
        if word not in BACK_ENDS:
            raise typer.BadParameter(f"{word!r} is no back-end; they are {', '.join(BACK_ENDS)}", param_hint="'--only'")
    return words


def head(parity: Parity) -> Iterator[str]:
    """What is run, and how it was made comparable."""
    terms = parity.terms
    alone = "" if terms.alone is None else f"; one process: {terms.alone}"
    precision = parity.recipe.precision
    yield (
        f"{len(parity.recipe.phases)} phase(s) of {parity.steps} steps, {precision}; {terms.ranks} rank(s) of {terms.accumulate}"
        f" micro-batches a step{alone}; batch_norm {terms.batch_norm}"
    )
    for note in terms.notes:
        yield f"note: {note}"


def table(rows: Sequence[Row]) -> list[str]:
    """In columns, the head first."""
    lines = [HEADS, *map(_line, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def _line(row: Row) -> tuple[str, ...]:
    against = "" if row.against is None else _named(row.against)
    seconds = "" if row.seconds is None else f"{row.seconds:.0f}"
    found = row.difference
    numbers = ("", "", "", "")
    if found is not None:
        numbers = (_number(found.loss), str(found.step or "-"), _number(found.weight), _number(found.part))
    return row.name, str(row.ranks), against, *numbers, seconds, _verdict(row)


def _named(row: Row) -> str:
    return row.name + f" on {row.ranks}" * (row.ranks > 1)


def _number(value: float) -> str:
    return f"{value:.1e}" if value else "0"


def _verdict(row: Row) -> str:
    match row.state:
        case "within":
            return "within tolerance"
        case "apart":
            return f"NOT within tolerance: {row.told}"
        case "failed":
            return f"failed: {row.told}; see {row.log}"
    return f"{row.state}: {row.told}" if row.told else row.state


def allowed(parity: Parity) -> Iterator[str]:
    """The tolerances of the rows there are."""
    from ..engine.parity.likeness import DOUBLING

    found = {row.tolerance: row.against for row in parity.rows if row.tolerance and row.against}
    for tolerance, against in found.items():
        grows = f", doubling every {DOUBLING} steps up to {tolerance.growth:.0f} times" if tolerance.growth > 1 else ""
        yield (
            f"tolerance against {_named(against)}: a loss {tolerance.loss:.0e} of its size (of 1 where it is smaller){grows};"
            f" a part's weights {tolerance.weights:.0e} of their norm"
        )
