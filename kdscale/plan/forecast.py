"""A recipe and machines -> what the run would take: a :class:`Forecast`, without a GPU, without data, in seconds.

What a run would refuse (a batch that does not divide, a back-end that a method cannot have) is refused here in the same words.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from .. import keys
from ..data import Plan, check_batch, plan, sequence
from ..engine.parallel import refuse_unfit
from ..errors import RunError
from ..recipe import Phase, Recipe, resolve
from ..recipe.method import kind_of
from ..recipe.resolve import phase_data
from .advice import Change, changes, compiled, fitting
from .building import standing_in
from .counted import Counted, count
from .facts import Facts, effort, facts_of
from .machines import Machines
from .memory import BACKENDS, Memory, Parallel, memory, moments
from .shards import Balance, balance
from .storage import Storage, storage
from .times import Job, Times, times

WALKED = 1 << 18  # positions of the order that a plan looks at

Probe = Callable[[Recipe, int, Facts, float, int], float]
"""(resolved recipe, phase, facts, epochs, images a micro-batch) -> measured seconds of a micro-batch."""


@dataclass(frozen=True, slots=True)
class PhaseForecast:
    """``memories``: back-end -> bytes of a rank, or why it is refused; ``changes``: what would help, the cheapest first."""

    name: str
    kind: str
    facts: Facts
    plan: Plan
    job: Job
    counted: Counted
    times: Times
    memories: dict[Parallel, Memory | str]
    sent: dict[Parallel, float]
    balance: Balance
    storage: Storage
    changes: tuple[Change, ...]
    fitting: str

    @property
    def seconds(self) -> float:
        """Of the whole phase, its saves with it; without evaluation."""
        return self.plan.total_steps * self.times.step

    @property
    def memory(self) -> Memory:
        found = self.memories[self.job.parallel]
        assert isinstance(found, Memory)  # the recipe's own back-end was not refused
        return found


@dataclass(frozen=True, slots=True)
class Forecast:
    recipe: Recipe
    machines: Machines
    phases: tuple[PhaseForecast, ...]

    @property
    def hours(self) -> float:
        return sum(phase.seconds for phase in self.phases) / 3600

    @property
    def cost(self) -> float | None:
        price = self.machines.price
        return None if price is None else price * self.machines.ranks * self.hours

    @property
    def stored(self) -> float:
        """Bytes of saves and of what phases leave, at the end."""
        return max(p.storage.one * p.storage.kept for p in self.phases) + sum(2 * p.storage.left for p in self.phases)


def forecast(
    recipe: Recipe, machines: Machines, *, samples: int | None = None, classes: int | None = None, probe: Probe | None = None
) -> Forecast:
    """Of the whole recipe. ``samples`` and ``classes``: of data that are not here. Raises KdscaleError, in one sentence, for
    what a run would refuse."""
    resolved = standing_in(resolve(recipe))
    made = [_phase(resolved, number, machines, samples, classes, probe) for number in range(len(resolved.phases))]
    return Forecast(resolved, machines, tuple(made))


def _phase(
    recipe: Recipe, number: int, machines: Machines, samples: int | None, classes: int | None, probe: Probe | None
) -> PhaseForecast:
    phase, ranks, accumulate = recipe.phases[number], machines.ranks, recipe.machine.accumulate
    data, needs = phase_data(phase), phase.method.needs()
    facts = facts_of(data, samples, classes)
    schedule = plan(data, facts.info.samples, phase.epochs, phase.steps)
    check_batch(schedule, ranks, accumulate)
    refuse_unfit(recipe.machine.parallel, phase, needs)
    images = schedule.batch // (ranks * accumulate)
    counted = count(recipe, number, facts.info, schedule.epochs, ranks, images)
    job = Job(
        counted=counted,
        precision=recipe.precision,
        parallel=recipe.machine.parallel,
        accumulate=accumulate,
        images=schedule.batch,
        size=0.0 if facts.resident else facts.size.value,
        effort=effort(data, facts.size.value, needs.views),
        probed=None if probe is None else probe(recipe, number, facts, schedule.epochs, images),
    )
    job = compiled(job) if recipe.machine.compile and probe is None else job
    taken = times(job, machines)
    moment = moments(phase.optimizer)
    memories = {backend: _memory(phase, job, backend, machines, moment, facts.resident) for backend in BACKENDS}
    order = sequence(data, schedule, int(keys.key(recipe.seed, number)))
    steps = min(schedule.total_steps, max(1, WALKED // schedule.batch))
    return PhaseForecast(
        name=phase.name,
        kind=kind_of(phase.method),
        facts=facts,
        plan=schedule,
        job=job,
        counted=counted,
        times=taken,
        memories=memories,
        sent={backend: times(replace(job, parallel=backend), machines).sent for backend in BACKENDS},
        balance=balance(order, schedule, facts.counts, ranks, steps * schedule.batch),
        storage=storage(counted, recipe, moment, machines, schedule, schedule.total_steps * taken.step),
        changes=tuple(changes(job, machines, stored=not any(needs.taps.get(role) for role in counted.frozen))),
        fitting=fitting(memories, job, machines),
    )


def _memory(phase: Phase, job: Job, backend: Parallel, machines: Machines, moment: int, resident: float) -> Memory | str:
    try:
        refuse_unfit(backend, phase, phase.method.needs())
    except RunError as error:
        return str(error)
    return memory(
        job.counted,
        backend,
        machines.ranks,
        job.micro(machines.ranks),
        moment,
        resident=resident,
        overhead=1e9 * machines.overhead.value,
        scatter=machines.scatter.value,
    )
