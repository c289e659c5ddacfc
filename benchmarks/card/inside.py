"""What is measured within the process that does the work.

    python -m kdscale.benchmarks.card.inside peak FILE MODULE words ...      MODULE as ``python -m`` runs it, its peak in FILE
    python -m kdscale.benchmarks.card.inside profile FILE RECIPE path=value ...     the largest kernels of a step, in FILE
    python -m kdscale.benchmarks.card.inside evaluations RECIPE path=value ...      reserved memory over ten evaluations
    python -m kdscale.benchmarks.card.inside facts                                  what this machine is

All but the first say their figures as JSON in the last line that they print. Of a step nothing is read or augmented: a few
batches are fetched beforehand and taken in turn.
"""

from __future__ import annotations

import json
import platform
import resource
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

WARM, TIMED, RECORDED = 5, 10, 5  # steps
LARGEST = 10
EVALUATIONS, BETWEEN = 10, 3  # steps between two evaluations
ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")  # categories of torch's traces

Span = tuple[str, float, float]  # name, beginning and end in microseconds


def peak(file: Path, module: str, words: Sequence[str]) -> None:
    """Runs ``module`` as a person would. FILE: bytes allocated and reserved on the device, or resident where torch saw none."""
    sys.argv = [module, *words]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        file.write_text(json.dumps(peaks()))


def peaks() -> dict[str, int]:
    """Of this process alone. A module that never asked for torch is not made to."""
    found = {"resident": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        found |= {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
    return found


@contextmanager
def engine_of(words: Sequence[str]) -> Iterator[tuple[Any, Callable[[int], None]]]:
    """(stage, its step by number) of the last phase of a recipe and its assignments."""
    from kdscale import methods  # noqa: F401
    from kdscale.benchmarks.step import endless, engine_step, some_batches
    from kdscale.engine.parallel import connect
    from kdscale.engine.stage import build_stage
    from kdscale.recipe import override, resolve
    from kdscale.recipe.load import load

    recipe = endless(resolve(override(load(words[0]), list(words[1:]))))
    session = connect(recipe.machine, recipe.precision)
    try:
        with tempfile.TemporaryDirectory() as folder:
            stage = build_stage(recipe, len(recipe.phases) - 1, session, None)
            batches, step = some_batches(stage), engine_step(stage, Path(folder))
            yield stage, lambda number: step(number, batches[number % len(batches)])
    finally:
        session.close()


def profile(file: Path, words: Sequence[str]) -> dict[str, Any]:
    """Milliseconds of a step without the profiler; with it, what kept the device busy. FILE: the largest kernels as a table.

    The share of idle time compares the two, for recording slows the host and with it the device's pauses.
    """
    import torch

    with engine_of(words) as (stage, step), tempfile.TemporaryDirectory() as folder:
        cuda = stage.session.device.type == "cuda"
        milliseconds = timed(step, torch.cuda.synchronize if cuda else lambda: None)
        activities = [torch.profiler.ProfilerActivity.CPU, *([torch.profiler.ProfilerActivity.CUDA] if cuda else [])]
        with torch.profiler.profile(activities=activities) as recorded:
            for number in range(RECORDED):
                step(WARM + TIMED + number)
            if cuda:
                torch.cuda.synchronize()
        trace = Path(folder, "trace.json")
        recorded.export_chrome_trace(str(trace))
        spans = device_spans(json.loads(trace.read_text())["traceEvents"])
        own = {event.key: event.self_cpu_time_total for event in recorded.key_averages()}
    totals = by_name(spans) if cuda else own
    what = "kernels by their time on the device" if cuda else "operators by their own time on the CPU"
    file.write_text("\n".join(ranking(totals, what)) + "\n")
    busy = busy_microseconds(spans) / 1000 / RECORDED if cuda else None
    idle = None if busy is None else 100 * max(0.0, 1 - busy / milliseconds)
    return {"ms a step": milliseconds, "device busy ms": busy, "device idle %": idle}


def timed(step: Callable[[int], None], wait: Callable[[], object]) -> float:
    """Milliseconds a step, after a few that are not counted."""
    for number in range(WARM):
        step(number)
    wait()
    started = time.perf_counter()
    for number in range(WARM, WARM + TIMED):
        step(number)
    wait()
    return 1000 * (time.perf_counter() - started) / TIMED


def device_spans(events: Iterable[Mapping[str, Any]]) -> list[Span]:
    """What ran on the device, of a trace in Chrome's format. Named ranges lie there too, over kernels and pauses alike."""
    return [(e["name"], e["ts"], e["ts"] + e["dur"]) for e in events if e.get("ph") == "X" and e.get("cat") in ON_DEVICE]


def by_name(spans: Iterable[Span]) -> dict[str, float]:
    """Microseconds of all spans of a name."""
    totals: dict[str, float] = {}
    for name, start, end in spans:
        totals[name] = totals.get(name, 0.0) + end - start
    return totals


def busy_microseconds(spans: Iterable[Span]) -> float:
    """The length of the union: what several streams do at once counts once."""
    total, reached = 0.0, float("-inf")
    for _, start, end in sorted(spans, key=lambda span: span[1]):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def ranking(totals: Mapping[str, float], what: str) -> Iterator[str]:
    """Lines of the largest of ``totals``, in microseconds of all recorded steps."""
    whole = sum(totals.values()) or 1.0
    yield f"the {LARGEST} largest {what}, of {RECORDED} steps"
    yield f"{'ms a step':>10} {'share':>7}  name"
    for name, taken in sorted(totals.items(), key=lambda item: -item[1])[:LARGEST]:
        yield f"{taken / 1000 / RECORDED:10.3f} {100 * taken / whole:6.1f}%  {name}"


def evaluations(words: Sequence[str]) -> dict[str, Any]:
    """Bytes that torch holds of the device after each of ten evaluations with steps between them; none on a CPU."""
    import torch

    from kdscale.engine.evaluation import evaluate_stage

    held = []
    with engine_of(words) as (stage, step):
        for number in range(EVALUATIONS * BETWEEN):
            step(number)
            if number % BETWEEN == BETWEEN - 1:
                evaluate_stage(stage)
                held.append(torch.cuda.memory_reserved() if stage.session.device.type == "cuda" else None)
    return {"reserved": held}


def facts() -> dict[str, Any]:
    """Device, its driver, and versions; ``cuda`` is none where torch sees no device."""
    import torch

    cuda = torch.cuda.is_available()
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = ""
    with suppress(OSError, subprocess.SubprocessError):
        driver = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=30).stdout.split("\n")[0].strip()
    return {
        "device": torch.cuda.get_device_name() if cuda else f"cpu ({platform.machine()})",
        "cuda": torch.version.cuda if cuda else None,
        "driver": driver if cuda else "",
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def main(words: list[str]) -> None:
    what, *rest = words
    if what == "peak":
        peak(Path(rest[0]), rest[1], rest[2:])
        return
    figures = {
        "profile": lambda: profile(Path(rest[0]), rest[1:]),
        "evaluations": lambda: evaluations(rest),
        "facts": facts,
    }[what]()
    sys.stdout.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
