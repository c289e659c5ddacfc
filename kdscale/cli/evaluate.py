"""``kdscale evaluate``."""

from __future__ import annotations

from typing import Annotated

import typer

from .arguments import quiet_libraries, register_methods

HELP = """Measure a network on a data set.

A run, an exported folder or any model; every image counts once, and the count is proved.

--gap: of a run also the mean of KL(teacher || student) over the same images, in nats, for each teacher, peer and shadow."""

Model = Annotated[str, typer.Argument(metavar="DIR|MODEL", help="A run's folder, an exported folder, or a model's name.")]
DataOption = Annotated[str | None, typer.Option("--data", metavar="SOURCE", help="A packed data set; default: the run's own.")]
Split = Annotated[str | None, typer.Option("--split", help="Its split; default: the run's evaluation split, else 'val'.")]
What = Annotated[str, typer.Option("--what", help="Of a run: student, ema, a role, a phase, or PHASE.ROLE.")]
Weights = Annotated[
    str | None, typer.Option("--weights", help="Of a model's name: 'pretrained', 'random' or a safetensors file.")
]
Crop = Annotated[float | None, typer.Option("--crop", min=0.05, max=1.0, help="Share of the image that the centre crop takes.")]
GapOption = Annotated[bool, typer.Option("--gap", help="Of a run: how far its student is from its teachers.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object.")]


def run(
    model: Model,
    data: DataOption = None,
    split: Split = None,
    what: What = "student",
    weights: Weights = None,
    crop: Crop = None,
    gap: GapOption = False,
    json: JsonOption = False,
) -> None:
    quiet_libraries()
    from ..engine.gap import measure_gaps
    from ..engine.measure import measure
    from ..engine.parallel import connect

    register_methods()

    session = connect()
    try:
        if gap:
            found = measure_gaps(model, session, data=data, split=split, what=what, crop=crop)
        else:
            found = measure(model, session, data=data, split=split, what=what, weights=weights, crop=crop)
    finally:
        session.close()
    if not session.main:
        return
    if json:
        import json as text

        typer.echo(text.dumps(found))
    else:
        part = "" if found["what"] == "student" else f" ({found['what']})"
        typer.echo(
            f"{found['model']}{part} on {found['data']} ({found['split']}): top1 {100 * found['top1']:.2f} top5 {100 * found['top5']:.2f}"
            f" loss {found['loss']:.4f} of {found['count']} images (crop {found['crop']:g})"
        )
        for name, apart in found.get("gaps", {}).items():
            typer.echo(f"gap {apart:.4f} (KL({name} || {found['of']}), temperature 1)")
