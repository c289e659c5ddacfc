"""What would make a run shorter, or make it fit, the cheapest first: words for a recipe before work on data before machines.

Each change is computed, not looked up: the step is timed again with it, and what saves little is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from .counted import KINDS
from .known import Known
from .machines import Machines
from .memory import SHARDED, Memory, Parallel
from .times import Job, times

WORTH = 0.05  # of the time, below which a change is not mentioned
RESIZED = 35_000  # bytes of an image of 256 pixels
FUSED_BYTES, FUSED_LAUNCHES = 0.5, 0.3  # what compilation leaves of them
HALF = 0.6  # of the bytes that float32 moves, what autocast does
DECODE_SHARE = 0.48  # of the work on one of ImageNet's originals that goes with its bytes


@dataclass(frozen=True, slots=True)
class Change:
    """``factor``: time of a sample with it, in the time without."""

    words: str
    factor: float


def changes(job: Job, machines: Machines, *, stored: bool) -> Iterator[Change]:
    """What saves at least a twentieth, the cheapest first. ``stored``: the teachers' answers may come from a store."""
    now = times(job, machines).step / job.images
    for words, other, where in _candidates(job, machines, stored):
        factor = times(other, where).step / other.images / now
        if factor <= 1 - WORTH:
            yield Change(words, factor)


def _candidates(job: Job, machines: Machines, stored: bool) -> Iterator[tuple[str, Job, Machines]]:
    if job.probed is None and job.precision == "fp32":
        yield "precision=bf16", replace(job, precision="bf16", moved=HALF * job.moved), machines
    if job.probed is None and job.launched == 1:
        yield "machine.compile=true", compiled(job), machines
    if job.parallel != "ddp":
        yield "machine.parallel=ddp", replace(job, parallel="ddp"), machines
    if job.accumulate > 1:
        yield f"machine.accumulate={job.accumulate // 2}", _split(job, job.accumulate // 2), machines
    if job.size > 2 * RESIZED:
        smaller = 1 - DECODE_SHARE * (1 - RESIZED / job.size)
        resized = replace(job, size=RESIZED, effort=job.effort * smaller)
        yield "shards of 256 pixels (kdscale data pack --short 256)", resized, machines
    if stored and job.counted.frozen:
        yield "a stored teacher (kdscale teach)", _without_teachers(job, machines), machines
    yield "twice the batch, which changes the curve", replace(job, images=2 * job.images, probed=_twice(job)), machines
    if job.size:
        cores = Known(2 * machines.node_cores.value, "assumed")
        yield "twice the cores a node for reading", job, replace(machines, cores=cores)
        yield "twice the disk's speed", job, replace(machines, disk=Known(2 * machines.disk.value, "assumed"))
    if machines.nodes > 1:
        yield "twice the network", job, replace(machines, bandwidth=Known(2 * machines.bandwidth.value, "assumed"))


def compiled(job: Job) -> Job:
    """The same with fused operations."""
    return replace(job, moved=FUSED_BYTES * job.moved, launched=FUSED_LAUNCHES * job.launched)


def _split(job: Job, accumulate: int) -> Job:
    """The same batch in another number of micro-batches."""
    probed = None if job.probed is None else job.probed * job.accumulate / accumulate
    return replace(job, accumulate=accumulate, probed=probed)


def _twice(job: Job) -> float | None:
    return None if job.probed is None else 2 * job.probed


def _without_teachers(job: Job, machines: Machines) -> Job:
    images = job.micro(machines.ranks)
    whole = sum(job.counted.flops(kind, images) for kind in KINDS)
    own = sum(job.counted.of("trained", kind, images) for kind in KINDS)
    return replace(job, counted=job.counted.silent(), probed=None if job.probed is None else job.probed * own / whole)


def fitting(memories: Mapping[Parallel, Memory | str], job: Job, machines: Machines) -> str:
    """The cheapest way to make a step fit, in words of a recipe; '' where it fits."""
    limit, own = 1e9 * machines.gpu.memory, memories[job.parallel]
    if isinstance(own, str) or own.total <= limit:
        return ""
    others = [name for name, m in memories.items() if isinstance(m, Memory) and m.total <= limit]
    if others:
        cheapest = min(others, key=lambda name: (name in SHARDED, name))
        return f"machine.parallel={cheapest}"
    count = job.accumulate
    while job.images % (2 * count * machines.ranks) == 0:
        count *= 2
        share = job.accumulate / count
        if own.total - (1 - share) * (own.activations + own.data) <= limit:
            return f"machine.accumulate={count}"
    return "more GPUs, smaller networks or smaller images: no accumulation of this batch makes it fit"
