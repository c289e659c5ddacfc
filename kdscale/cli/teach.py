"""``kdscale teach``."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .arguments import Assignments, RecipeWord, quiet_libraries, recipe_of

if TYPE_CHECKING:
    from ..engine.stored.answers import Keep

HELP = """Store what a recipe's teachers say of its images.

kdscale teach RECIPE --out DIR, then: kdscale train RECIPE networks.teacher=stored:DIR --out RUN

The same images come again, crop by crop and mixed alike, so the run learns what it would from the network itself. Data, order, augmentation, batch, seed and normalisation must stay as they are; whatever else of the recipe may change.

--keep all: every logit. --keep N: the N largest; the weight of all others is kept as one number and spread evenly. --keep label: the class alone.

The same command continues what was interrupted at the last whole shard, and adds epochs. Several processes share the work: torchrun --nproc-per-node 2 -m kdscale teach ..."""

Out = Annotated[Path, typer.Option("--out", "-o", metavar="DIR", file_okay=False, help="The store's folder.")]
KeepOption = Annotated[str, typer.Option("--keep", metavar="all|N|label", help="What is kept of each answer.")]
Type = Annotated[Literal["fp16", "fp32"], typer.Option("--type", help="Of the numbers.")]
Epochs = Annotated[
    float | None, typer.Option("--epochs", metavar="K", min=0.0, help="Of each phase; default: as many as it has.")
]


def run(
    recipe: RecipeWord,
    out: Out,
    assignments: Assignments = None,
    keep: KeepOption = "all",
    type: Type = "fp16",
    epochs: Epochs = None,
) -> None:
    if epochs == 0:
        raise typer.BadParameter("--epochs must be above 0")
    kept = kept_of(keep)
    quiet_libraries()
    value = recipe_of(recipe, assignments)
    from ..engine.faults.ends import STOPPED, Stopped
    from ..engine.parallel import connect
    from ..engine.teach import Wish, teach

    session = connect()
    say: Callable[[str], None] = typer.echo if session.main else lambda text: None
    try:
        places = teach(value, out, session, say, Wish(kept, type, epochs))
    except Stopped as stop:
        say(f"{stop} asked for a stop: the same command continues")
        raise typer.Exit(STOPPED) from None
    finally:
        session.close()
    roles = dict.fromkeys(place.name.partition("-")[2] for place in places)
    words = [recipe, *(assignments or []), *(f"networks.{role}=stored:{out}" for role in roles)]
    say(f"done: {out}; train with it: kdscale train {shlex.join(words)}")


def kept_of(word: str) -> Keep:
    if word in ("all", "label"):
        return "all" if word == "all" else "label"
    if not word.isdecimal() or int(word) < 1:
        raise typer.BadParameter(f"{word!r} is none of: all, label, the number of logits to keep", param_hint="'--keep'")
    return int(word)
