"""A forecast as tables of text: what was asked, what a step takes and why, memory, bytes, data, saves, and what would help."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from .forecast import Forecast, PhaseForecast
from .known import Known, Mark, weakest
from .memory import Memory
from .times import link_of

REASONS = {
    "compute": "arithmetic at the share of the peak that is reached",
    "memory": "reading and writing of every operation, unfused",
    "launches": "the host's time to launch operations",
    "data": "reading and decoding of images",
    "network": "gradients and weights between GPUs",
}


@dataclass(frozen=True, slots=True)
class Table:
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def tables(forecast: Forecast) -> Iterator[Table]:
    for number, phase in enumerate(forecast.phases):
        yield from _phase(forecast, phase, number)
    yield _inputs(forecast)
    yield _total(forecast)


def _phase(forecast: Forecast, phase: PhaseForecast, number: int) -> Iterator[Table]:
    machines = forecast.machines
    head = f"phase {number + 1} {phase.name} ({phase.kind})"
    yield Table(
        f"{head}: a step on {machines.ranks} x {machines.gpu.name}", ("what", "number", "known"), tuple(_step(forecast, phase))
    )
    yield Table(f"{head}: memory of a GPU", ("GB", *phase.memories), tuple(_memory(phase, machines.gpu.memory)))
    yield Table(f"{head}: data and saves", ("what", "number", "known"), tuple(_around(phase)))
    yield Table(f"{head}: what would help, the cheapest first", ("change", "time with it"), tuple(_help(phase)))


def _step(forecast: Forecast, phase: PhaseForecast) -> Iterator[tuple[str, str, str]]:
    times, ranks, job = phase.times, forecast.machines.ranks, phase.job
    images, mark = job.micro(ranks), times.mark
    length: Mark = weakest("counted", phase.facts.samples.mark if phase.plan.asked_epochs is not None else "counted")
    yield "steps", f"{phase.plan.total_steps:,} of {job.images} images", length
    yield "samples a rank", f"{phase.plan.total_steps * job.images // ranks:,}, {images:g} a micro-batch", length
    trained, frozen = _work(phase, images)
    yield "work an image", f"{trained / 1e9:.2f} GFLOP trained, {frozen / 1e9:.2f} frozen", "counted"
    if times.probed is None:
        yield "arithmetic", _milliseconds(times.compute), mark
        yield "reading and writing", _milliseconds(times.memory), mark
        yield "launches", _milliseconds(times.launches), "assumed"
    else:
        yield "forward and backward", _milliseconds(times.probed), "measured"
    resident = " (resident on the GPU)" if phase.facts.resident else ""
    yield "data", _milliseconds(times.data) + resident, "counted" if resident else "assumed"
    hidden = f", {_milliseconds(times.exposed)} of it not hidden" if times.exposed else ", hidden" if times.network else ""
    yield (
        "network",
        f"{times.sent / 1e6:.1f} MB a rank, {_milliseconds(times.network)}{hidden}",
        link_of(forecast.machines).mark,
    )
    others = ", ".join(f"{name} {sent / 1e6:.1f}" for name, sent in phase.sent.items())
    yield "network, MB by back-end", others, "counted"
    yield "optimizer", _milliseconds(times.optimizer), forecast.machines.gpu.mark
    yield "a step", f"{_milliseconds(times.step)}, {job.images / times.step:,.0f} images/s", mark
    bound = (
        REASONS[times.bound]
        if times.probed is None or times.bound in ("data", "network")
        else "the measured forward and backward"
    )
    yield (
        "bound by",
        f"{times.bound if times.probed is None or times.bound in ('data', 'network') else 'device'}: {bound}",
        mark,
    )
    yield "time", f"{phase.seconds / 3600:.2f} h without evaluation", mark


def _work(phase: PhaseForecast, images: float) -> tuple[float, float]:
    counted = phase.counted
    trained = sum(counted.of("trained", kind, images) for kind in ("convolution", "matmul")) / images
    whole = sum(counted.flops(kind, images) for kind in ("convolution", "matmul")) / images
    return trained, whole - trained


def _memory(phase: PhaseForecast, limit: float) -> Iterator[tuple[str, ...]]:
    found = list(phase.memories.values())
    for name in Memory.__slots__:
        row = [f"{getattr(m, name) / 1e9:.3f}" if isinstance(m, Memory) else "-" for m in found]
        if any(float(cell) for cell in row if cell != "-"):
            yield (name, *row)
    yield ("all", *(f"{m.total / 1e9:.2f} of {limit:.4g}" if isinstance(m, Memory) else "refused" for m in found))


def _around(phase: PhaseForecast) -> Iterator[tuple[str, str, str]]:
    seen, facts, saves = phase.balance, phase.facts, phase.storage
    yield "samples", f"{facts.info.samples:,} of {facts.info.classes} classes", facts.samples.mark
    yield "shards", f"{seen.shards:,}, {facts.size.value / 1e3:.3g} kB an image", facts.counts_mark
    yield "order walked", f"{seen.positions:,} positions: {_ends(seen.samples_a_rank)} samples a rank", "counted"
    yield "shards a rank", f"{_ends(seen.shards_a_rank)}; a step reads {_ends(seen.shards_a_step)}", facts.counts_mark
    yield "requests a block", f"{seen.requests:.2f}" + _lanes(phase), "counted"
    yield (
        "a save",
        f"{saves.one / 1e9:.3f} GB, {saves.kept} kept, {saves.write:.2f} s to write, {saves.stall:.3f} s stall",
        "assumed",
    )
    yield "between saves", f"{_span(saves.every)}; with such faults best {_span(saves.interval)}", "assumed"
    yield "faults", f"{saves.faults:.2g} expected, which cost {_span(saves.lost)}", "assumed"


def _lanes(phase: PhaseForecast) -> str:
    """A block that several ranks read is read several times, unless the lanes divide among them."""
    return (
        ""
        if phase.balance.requests < 1.5 or phase.balance.shards < 2
        else " (data.order.lanes a multiple of the ranks makes it less)"
    )


def _help(phase: PhaseForecast) -> Iterator[tuple[str, str]]:
    if phase.fitting:
        yield f"it does not fit: {phase.fitting}", "-"
    for change in phase.changes:
        yield change.words, f"{100 * change.factor:.0f} %, {change.factor * phase.seconds / 3600:.2f} h"
    if not phase.fitting and not phase.changes:
        yield "nothing that was tried saves a twentieth", "-"


def _inputs(forecast: Forecast) -> Table:
    machines = forecast.machines
    gpu = machines.gpu
    named: list[tuple[str, str, Known, str]] = [
        (
            "peak of matrix products, TFLOP/s",
            "--gpu",
            Known(gpu.peak("matmul", forecast.recipe.precision) / 1e12, gpu.mark),
            "g",
        ),
        ("memory of a GPU, GB", "--gpu", Known(gpu.memory, gpu.mark), "g"),
        ("bandwidth of it, GB/s", "--gpu", Known(gpu.bandwidth, gpu.mark), ".0f"),
        *((f"share of the peak, {kind}", "--probe", use, "g") for kind, use in machines.use.items()),
        ("share of the bandwidth", "--probe", machines.traffic, "g"),
        ("a launch, microseconds", "--probe", Known(1e6 * machines.launch.value, machines.launch.mark), "g"),
        ("from GPU to GPU, GB/s", "--bandwidth", link_of(machines), "g"),
        ("cores a node for data", "--cores", machines.node_cores, "g"),
        ("images/s a core, DeiT's augmentation", "--decode", machines.decode, "g"),
        ("disk of a node, GB/s", "--disk", machines.disk, "g"),
        ("GPU-hours between faults", "--fault-hours", machines.fault_hours, "g"),
    ]
    rows = tuple((what, f"{known.value:{form}}", known.mark, option) for what, option, known, form in named)
    return Table("taken for granted", ("what", "number", "known", "changed by"), rows)


def _total(forecast: Forecast) -> Table:
    ranks, mark = forecast.machines.ranks, weakest(*(phase.times.mark for phase in forecast.phases))
    rows = [
        ("time", f"{forecast.hours:.2f} h", mark),
        ("GPU-hours", f"{ranks * forecast.hours:.1f}", mark),
        ("storage", f"{forecast.stored / 1e9:.3f} GB", "counted"),
    ]
    if forecast.cost is not None:
        rows.append(("cost", f"{forecast.cost:,.2f}", mark))
    return Table("the whole run", ("what", "number", "known"), tuple(rows))


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.2f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _ends(pair: tuple[int, int]) -> str:
    return f"{pair[0]:,}" if pair[0] == pair[1] else f"{pair[0]:,} to {pair[1]:,}"


def _span(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "for ever"
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.2g} s"
