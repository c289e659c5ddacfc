"""``kdscale data pack`` and ``kdscale data index``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Pack images into shards, or index shards that exist.")

Jobs = Annotated[int | None, typer.Option("--jobs", "-j", min=1, help="Processes; default: the usable cores.")]
SplitName = Annotated[str, typer.Option("--split", help="The split's name: train, val.")]
Classes = Annotated[str | None, typer.Option("--classes", metavar="FILE", help="JSON or text list of class names, in order.")]


@app.command("pack")
def pack(
    src: Annotated[
        str,
        typer.Argument(
            metavar="SRC", help="A folder of class folders or of class strips, an .npz, or two .npy as IMAGES,LABELS."
        ),
    ],
    dst: Annotated[str, typer.Argument(metavar="DST", help="The data set's folder; several splits share it.")],
    split: Annotated[
        str | None, typer.Option("--split", help="The split's name; default: train, or each that SRC itself holds.")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="Of the data set; default: DST's last word.")] = None,
    shard_mb: Annotated[int, typer.Option("--shard-mb", min=1, help="Size of a shard.")] = 256,
    shuffle_seed: Annotated[int, typer.Option("--shuffle-seed", min=0, help="Of the order in the shards.")] = 0,
    keep_order: Annotated[bool, typer.Option("--keep-order", help="Do not shuffle.")] = False,
    classes: Annotated[
        str | None,
        typer.Option("--classes", metavar="N|FILE", help="Only the first N classes; or a list of class names, in order."),
    ] = None,
    per_class: Annotated[
        int | None, typer.Option("--per-class", min=1, metavar="N", help="Only the first N training images of each class.")
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="List unreadable images in rejected-SPLIT.txt and go on.")
    ] = False,
    jobs: Jobs = None,
) -> None:
    """Write shards, a manifest and an offset index.

    The shards are webdataset tars. Repeated, it gives the same bytes; interrupted, it continues. Each folder of SRC is a class
    and must hold images, unless --classes lists it; links are followed, names that begin with a dot left out.
    """
    from ..data import pack_all

    number = int(classes) if classes is not None and classes.isdecimal() else None
    with _progress("packing") as told:
        for report in pack_all(
            src,
            dst,
            split=split,
            name=name,
            shard_mb=shard_mb,
            shuffle_seed=None if keep_order else shuffle_seed,
            jobs=jobs or _cores(),
            classes_file=classes if number is None else None,
            first_classes=number,
            per_class=per_class,
            skip_bad=skip_bad,
            on_progress=told,
        ):
            typer.echo(str(report))


@app.command("index")
def index(
    shards: Annotated[str, typer.Argument(metavar="DIR|TARS", help="A folder, glob or brace list of webdataset tars.")],
    split: SplitName = "train",
    out: Annotated[str | None, typer.Option("--out", help="Folder for manifest and index; default: beside the tars.")] = None,
    label: Annotated[str, typer.Option("--label", help="auto, cls, or json:FIELD.")] = "auto",
    no_crc: Annotated[
        bool, typer.Option("--no-crc", help="Read the headers alone; damaged bytes are then not noticed.")
    ] = False,
    classes: Classes = None,
    jobs: Jobs = None,
) -> None:
    """Write a manifest and an index for existing tars.

    Anybody's webdataset tars then are a data set like any other, read by offset.
    """
    from ..data import index as work

    with _progress("indexing") as told:
        report = work(
            shards,
            split=split,
            jobs=jobs or _cores(),
            crc=not no_crc,
            label=label,
            out=out,
            classes_file=classes,
            on_progress=told,
        )
    typer.echo(str(report))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal; nothing elsewhere."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True, disable=not Console(stderr=True).is_terminal) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
