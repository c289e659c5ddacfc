"""``kdscale quickstart``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .arguments import quiet_libraries

if TYPE_CHECKING:
    from ..engine.parallel import Session

HELP = """Distil and export a small model in five minutes.

On a sample that ships with the package: a CNN learns it, then teaches a small DeiT.

Interrupted and repeated, it continues. --compare also trains the student alone, for the same steps."""

OutOption = Annotated[Path, typer.Option("--out", "-o", metavar="DIR", file_okay=False, help="Where everything goes.")]
Compare = Annotated[bool, typer.Option("--compare", help="Also train the student alone, and say whether distillation helped.")]
SHOWN = 8


def run(out: OutOption = Path("runs/quickstart"), compare: Compare = False) -> None:
    quiet_libraries()
    from ..engine.parallel import connect

    session = connect()
    try:
        _quickstart(out, compare, session)
    finally:
        session.close()


def _quickstart(out: Path, compare: bool, session: Session) -> None:
    from ..data.sample import pack_sample
    from ..engine.trained import open_run, trained
    from ..export.from_run import export_run
    from ..report.quickstart import table, verdict

    pack_sample(out / "shards")
    _train("quickstart:recipe", out, out / "shards", session)
    report = export_run(out)
    typer.echo(f"exported to {report.folder}: plain timm and transformers give the same logits")
    picture = _classify(report.folder, out / "predictions.png")
    scores = trained(open_run(out)).scores
    typer.echo("\n".join(["", *table(scores)]))
    if compare:
        _train("quickstart:alone", out / "alone", out / "shards", session)
        alone = trained(open_run(out / "alone")).scores["student"]
        typer.echo("\n".join([*table({"alone": alone}), verdict(scores["student"], alone)]))
    typer.echo(f"picture: {picture}")


def _train(reference: str, out: Path, shards: Path, session: Session) -> None:
    """Trains, or continues; a stop that was asked for ends the command with its code."""
    from ..engine.run import train
    from .arguments import recipe_of
    from .terminal import reporters

    code = train(recipe_of(reference, [f"data.source={shards}"]), out, session, reporters)
    if code:
        raise typer.Exit(code)


def _classify(export: Path, path: Path) -> Path:
    """Asks the export, through timm alone, about test images of several classes, and draws what it says."""
    from ..data.sample import CLASSES, sheets
    from ..report.quickstart import classify, picture

    images, labels = sheets("test")
    chosen = range(0, len(images), len(images) // SHOWN)[:SHOWN]
    shown: Any = images[list(chosen)].repeat(3, axis=-1)
    truths = [CLASSES[labels[i]] for i in chosen]
    names, chances = classify(export, shown)
    picture(path, shown, truths, names, chances)
    for truth, name, chance in zip(truths, names, chances, strict=True):
        typer.echo(f"  {truth:<12} -> {name} ({100 * chance:.0f} %)")
    return path
