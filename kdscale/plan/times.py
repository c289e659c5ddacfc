"""Seconds of one step: what the device takes, what the data take, what the network takes, and which of them the step waits for.

The device's time is the largest of three: arithmetic at the share of the peak that is reached, bytes read and written by every
operation (unfused, as torch runs them), and the host's time to launch them. Data are made ready beside it, gradients are sent
beside the backward pass; the optimizer follows both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .counted import KINDS, Counted
from .known import Known, Mark, weakest
from .machines import Machines
from .memory import SHARDED, Parallel, traffic

BACKWARD = 2 / 3  # of the device's time on trained networks, during which gradients are sent
DDP_BUCKET = 25e6  # bytes that are sent together


@dataclass(frozen=True, slots=True)
class Job:
    """What a phase asks of a step. ``images``: of the global batch; ``size``: mean bytes of a stored image, 0 where the set
    is resident; ``effort``: factor on the time to make one image ready; ``probed``: measured seconds of a micro-batch;
    ``moved`` and ``launched``: factors on the bytes and the launches that were counted."""

    counted: Counted
    precision: str
    parallel: Parallel
    accumulate: int
    images: int
    size: float
    effort: float = 1.0
    probed: float | None = None
    moved: float = 1.0
    launched: float = 1.0

    def micro(self, ranks: int) -> float:
        return self.images / (ranks * self.accumulate)


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds a step. ``memory``: reading and writing; ``network``: all of it; ``exposed``: what the backward does not hide."""

    compute: float
    memory: float
    launches: float
    data: float
    network: float
    exposed: float
    optimizer: float
    probed: float | None
    sent: float  # bytes a rank
    mark: Mark

    @property
    def device(self) -> float:
        return max(self.compute, self.memory, self.launches) if self.probed is None else self.probed

    @property
    def step(self) -> float:
        return max(self.device + self.exposed, self.data) + self.optimizer

    @property
    def bound(self) -> str:
        """What the step waits for: 'compute', 'memory', 'launches', 'data' or 'network'."""
        if self.data > self.device + self.exposed:
            return "data"
        if self.exposed > self.device:
            return "network"
        return max(("compute", "memory", "launches"), key=lambda name: float(getattr(self, name)))


def times(job: Job, machines: Machines) -> Times:
    """Of one step of ``job`` on ``machines``."""
    ranks, count = machines.ranks, job.accumulate
    images = job.micro(ranks)
    compute = count * compute_seconds(job, machines, images)
    moved = count * job.moved * job.counted.total("bytes", images)
    launched = count * job.launched * job.counted.total("launches", images)
    sent, network = network_seconds(job, machines, images)
    probed = None if job.probed is None else count * job.probed
    memory, launches = moved / (1e9 * machines.gpu.bandwidth * machines.traffic.value), launched * machines.launch.value
    device = max(compute, memory, launches) if probed is None else probed
    backward = BACKWARD * device * _trained_share(job.counted, images)
    marks: list[Mark] = ["measured"] if probed is not None else [*(use.mark for use in machines.use.values()), "vendor"]
    return Times(
        compute=compute,
        memory=memory,
        launches=launches,
        data=data_seconds(job, machines),
        network=network,
        exposed=max(0.0, network - backward),
        optimizer=32.0 * job.counted.parameters / (_cut(job.parallel, ranks) * 1e9 * machines.gpu.bandwidth),
        probed=probed,
        sent=sent,
        mark=weakest(*marks),
    )


def compute_seconds(job: Job, machines: Machines, images: float) -> float:
    """Of a micro-batch, each kind of work at its share of its own peak."""
    gpu = machines.gpu
    return sum(job.counted.flops(kind, images) / (gpu.peak(kind, job.precision) * machines.use[kind].value) for kind in KINDS)


def data_seconds(job: Job, machines: Machines) -> float:
    """Until the nodes have read and decoded a global batch; nothing for a resident set."""
    if not job.size:
        return 0.0
    decoded = machines.node_cores.value * machines.decode.value / job.effort
    read = 1e9 * machines.disk.value / job.size
    return job.images / (machines.nodes * min(decoded, read))


def network_seconds(job: Job, machines: Machines, images: float) -> tuple[float, float]:
    """(bytes a rank sends in a step, seconds): the back-end's, and the rows that losses gather, there and back."""
    ranks = machines.ranks
    if ranks == 1:
        return 0.0, 0.0
    rows = 2 * job.accumulate * job.counted.gathered.at(images) * (ranks - 1) / ranks
    sent = traffic(job.counted.parameters, job.parallel, ranks, job.accumulate) + rows
    link = machines.gpu.link if machines.nodes == 1 else machines.bandwidth.value
    buckets = math.ceil(4 * job.counted.parameters / DDP_BUCKET) * (1 if job.parallel == "ddp" else job.accumulate)
    hops = 2 * math.log2(ranks) * (buckets + 2 * job.accumulate * job.counted.gathers)
    return sent, sent / (1e9 * link) + hops * machines.latency.value


def link_of(machines: Machines) -> Known:
    """GB/s a GPU sends to another: within a machine the maker's number, between machines that of their ports."""
    return Known(machines.gpu.link, machines.gpu.mark) if machines.nodes == 1 else machines.bandwidth


def _cut(parallel: Parallel, ranks: int) -> int:
    """Over how many ranks the optimizer's work is cut."""
    return ranks if parallel in ("zero1", "zero2", *SHARDED) else 1


def _trained_share(counted: Counted, images: float) -> float:
    everything = sum(counted.flops(kind, images) for kind in KINDS)
    return sum(counted.of("trained", kind, images) for kind in KINDS) / everything if everything else 1.0
