"""``kdscale plan``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .arguments import Assignments, RecipeWord, quiet_libraries, recipe_of

if TYPE_CHECKING:
    from ..plan import Forecast, Gpu, Machines
    from ..plan.tell import Table

HELP = """Forecast a run on machines that are elsewhere.

Needs neither a GPU nor the data. Work is counted on the recipe's own networks; each number says whether it is counted, given,
measured, stated by a vendor, or assumed. --gpu cpu measures this machine's processor instead."""

Nodes = Annotated[int, typer.Option("--nodes", min=1, help="Machines.")]
Gpus = Annotated[int, typer.Option("--gpus-per-node", min=1, help="GPUs (processes) of each machine.")]
GpuName = Annotated[str, typer.Option("--gpu", metavar="NAME", help="h200, h100, a100, a100-40gb, l40s, l4, rtx4090, or cpu.")]
Price = Annotated[float | None, typer.Option("--price", min=0, help="Of a GPU-hour.")]
Bandwidth = Annotated[float | None, typer.Option("--bandwidth", min=1e-3, help="GB/s a GPU to other machines.")]
Cores = Annotated[int | None, typer.Option("--cores", min=1, help="Cores of a machine that make data ready.")]
Decode = Annotated[float | None, typer.Option("--decode", min=1e-3, help="Images/s of a core, with DeiT's augmentation.")]
Disk = Annotated[float | None, typer.Option("--disk", min=1e-3, help="GB/s of a machine's storage.")]
FaultHours = Annotated[float | None, typer.Option("--fault-hours", min=1e-3, help="GPU-hours between two faults.")]
Samples = Annotated[int | None, typer.Option("--samples", min=1, help="Of data that are not here.")]
Classes = Annotated[int | None, typer.Option("--classes", min=2, help="Of data that are not here.")]
Probe = Annotated[bool, typer.Option("--probe", help="Time steps on this machine's GPU, which is of the named kind.")]
JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", dir_okay=False, help="Write the tables there too.")]


def run(
    recipe: RecipeWord,
    assignments: Assignments = None,
    nodes: Nodes = 1,
    gpus: Gpus = 1,
    gpu: GpuName = "h100",
    price: Price = None,
    bandwidth: Bandwidth = None,
    cores: Cores = None,
    decode: Decode = None,
    disk: Disk = None,
    fault_hours: FaultHours = None,
    samples: Samples = None,
    classes: Classes = None,
    probe: Probe = False,
    json_file: JsonFile = None,
) -> None:
    quiet_libraries()
    value = recipe_of(recipe, assignments)
    from ..plan import Known, Machines, forecast
    from ..plan.gpus import CPU
    from ..plan.probe import seconds_of
    from ..plan.tell import tables

    settings = {"bandwidth": bandwidth, "cores": cores, "decode": decode, "disk": disk, "fault_hours": fault_hours}
    given: dict[str, Any] = {name: Known(float(number), "given") for name, number in settings.items() if number is not None}
    machines = Machines(nodes, gpus, _gpu(gpu, probe), price, **given)
    measured = partial(seconds_of, "cpu" if gpu == CPU else "cuda") if probe or gpu == CPU else None
    made = forecast(value, machines, samples=samples, classes=classes, probe=measured)
    told = list(tables(made))
    if json_file is not None:
        json_file.write_text(json.dumps(_plain(made, told), indent=1) + "\n")
    for line in _head(made, machines):
        typer.echo(line)
    _show(told)


def _gpu(name: str, probe: bool) -> Gpu:
    """The named GPU. Raises RunError for a name that is unknown, and for a probe where there is nothing to probe."""
    from ..errors import RunError
    from ..plan.gpus import CPU, gpu_named

    if name == CPU:
        from ..plan.probe import this_processor

        return this_processor()
    found = gpu_named(name)
    if probe:
        import torch

        if not torch.cuda.is_available():
            raise RunError("--probe times steps on this machine's GPU, and there is none: leave it out, or take --gpu cpu")
    return found


def _head(forecast: Forecast, machines: Machines) -> Iterator[str]:
    recipe = forecast.recipe
    yield (
        f"{recipe.name}: {machines.nodes} x {machines.gpus} {machines.gpu.name}, {recipe.machine.parallel}, {recipe.precision}"
        + (f", accumulation {recipe.machine.accumulate}" if recipe.machine.accumulate > 1 else "")
        + (", compiled" if recipe.machine.compile else "")
    )


def _plain(forecast: Forecast, told: list[Table]) -> dict[str, object]:
    tables = {table.title: [dict(zip(table.columns, row, strict=True)) for row in table.rows] for table in told}
    return {"recipe": forecast.recipe.name, "hours": forecast.hours, "cost": forecast.cost, "tables": tables}


def _show(told: list[Table]) -> None:
    if sys.stdout.isatty():
        _drawn(told)
        return
    for table in told:
        typer.echo(f"\n{table.title}")
        rows = (table.columns, *table.rows)
        widths = [max(len(row[column]) for row in rows) for column in range(len(table.columns))]
        for row in rows:
            typer.echo("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _drawn(told: list[Table]) -> None:
    from rich.console import Console
    from rich.table import Table as Drawn

    console = Console()
    for table in told:
        drawn = Drawn(*table.columns, title=table.title, title_justify="left", title_style="bold")
        for row in table.rows:
            drawn.add_row(*row)
        console.print(drawn, markup=False)
