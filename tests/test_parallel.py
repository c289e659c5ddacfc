"""One recipe, every back-end, one curve: twenty steps a phase on two ranks, against one process and against one another.

Tolerances: of losses 1e-4 between one process and two, 2e-5 between back-ends at two ranks; of weights, against the largest of
their tensor, 2e-4 and 1e-4. Back-ends are compared with accumulation; worlds without it, because BatchNorm sees the samples of a micro-batch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kdscale.export.from_run import export_run
from tests import forks
from tests.engine import backends, small

pytestmark = pytest.mark.ranks
WORLDS, BACKENDS = (1e-4, 2e-4), (2e-5, 1e-4)  # of losses, of weights
WHOLE = "machine.accumulate=1"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.shards(tmp_path_factory.mktemp("data"))


def train_all(
    folder: Path, data: Path, parallels: Sequence[str], ranks: int, names: Iterable[str] = backends.CASES, setting: str = ""
) -> None:
    """Every case under every back-end, in one pool of ``ranks`` processes; a run lies in ``<case>/<back-end>-<ranks>``."""
    folder.mkdir(exist_ok=True)
    jobs = []
    for name in names:
        recipe = folder / f"{name}.json"
        small.write(recipe, backends.recipe_of(name, data))
        job = {"recipe": str(recipe), "set": [setting] if setting else []}
        jobs += [{**job, "out": str(folder / name / f"{p}-{ranks}"), "parallel": p} for p in parallels]
    jobs.sort(key=lambda job: job["parallel"])
    path = folder / f"{parallels[0]}-{ranks}.json"
    path.write_text(json.dumps(jobs))
    done = forks.call("tests.engine.backends", path, environment=small.environment(), ranks=ranks, timeout=900)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-5000:]


@pytest.fixture(scope="module")
def pool(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pool")
    train_all(folder, data, ["ddp", "fsdp2"], 2)
    return folder


@pytest.fixture(scope="module")
def zero(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zero")
    train_all(folder, data, ["zero1", "zero2", "zero3"], 2)
    return folder


@pytest.fixture(scope="module")
def worlds(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("worlds")
    for ranks in (1, 2):
        train_all(folder, data, ["ddp"], ranks, setting=WHOLE)
    return folder


def same_curve(a: Path, b: Path, tolerances: tuple[float, float], steps: int = backends.STEPS) -> None:
    """Losses of every step of every phase, and what each phase left: weights, running statistics and the average."""
    tolerance, of_weights = tolerances
    mine, theirs = small.losses(a), small.losses(b)
    assert len(mine) == len(theirs) >= steps
    for x, y in zip(mine, theirs, strict=True):
        assert x[:3] == y[:3]
        assert x[4].keys() == y[4].keys()
        for name, value in x[4].items():
            assert value == pytest.approx(y[4][name], rel=tolerance, abs=tolerance), f"{a.name} {b.name} {x[:2]} {name}"
    files = sorted(p.relative_to(a) for p in a.glob("phases/*/end.safetensors"))
    assert files == sorted(p.relative_to(b) for p in b.glob("phases/*/end.safetensors"))
    for file in files:
        one, other = load_file(a / file), load_file(b / file)
        assert one.keys() == other.keys()
        for name, tensor in one.items():
            limit = of_weights * largest(tensor)
            torch.testing.assert_close(
                tensor.float(), other[name].float(), rtol=0, atol=limit, msg=lambda m, n=name: f"{n}: {m}"
            )


def largest(tensor: torch.Tensor) -> float:
    return max(1.0, float(tensor.float().abs().max())) if tensor.numel() else 1.0


@pytest.mark.parametrize("name", backends.CASES)
def test_fsdp2_gives_the_curve_of_ddp(name: str, pool: Path) -> None:
    same_curve(pool / name / "ddp-2", pool / name / "fsdp2-2", BACKENDS)


def test_one_process_gives_the_curve_of_two(pool: Path, data: Path, tmp_path: Path) -> None:
    """A network without BatchNorm, so with accumulation too."""
    train_all(tmp_path, data, ["ddp"], 1, ["shake"])
    same_curve(tmp_path / "shake" / "ddp-1", pool / "shake" / "ddp-2", WORLDS)


@pytest.mark.slow
@pytest.mark.parametrize("name", backends.CASES)
def test_one_process_gives_the_curve_of_two_for_every_case(name: str, worlds: Path) -> None:
    same_curve(worlds / name / "ddp-1", worlds / name / "ddp-2", WORLDS)


@pytest.mark.slow
def test_bf16_is_one_curve_under_every_back_end(data: Path, tmp_path: Path) -> None:
    """Autocast is the distiller's own and weights stay float32: no back-end rounds more than another."""
    for parallels in (["ddp", "fsdp2"], ["zero1", "zero2", "zero3"]):
        train_all(tmp_path, data, parallels, 2, ["shake", "kd"], "precision=bf16")
    for name in ("shake", "kd"):
        for parallel in ("fsdp2", "zero1", "zero2", "zero3"):
            same_curve(tmp_path / name / "ddp-2", tmp_path / name / f"{parallel}-2", (5e-3, 5e-3))


@pytest.mark.slow
def test_a_step_that_is_skipped_is_skipped_alike(data: Path, tmp_path: Path) -> None:
    """A loss that is no number on one rank, once: no weight moves there, and the steps after it are those of ddp."""
    for parallels in (["ddp", "fsdp2"], ["zero1", "zero2", "zero3"]):
        train_all(tmp_path, data, parallels, 2, ["poison"], "nonfinite=skip")
    for parallel in ("ddp", "fsdp2", "zero1", "zero2", "zero3"):
        run = tmp_path / "poison" / f"{parallel}-2"
        assert "step 3 is skipped" in (run / "log.txt").read_text()
        same_curve(tmp_path / "poison" / "ddp-2", run, BACKENDS, backends.STEPS - 1)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["fsdp2-2", "zero3-2"])
@pytest.mark.parametrize("name", ["kd", "shake"])
def test_what_shards_trained_is_exported_whole_and_in_float32(name: str, parallel: str, pool: Path, zero: Path) -> None:
    """The export proves its logits in fresh processes; the teacher is in no file of the run."""
    run = (pool if parallel.startswith("fsdp2") else zero) / name / parallel
    left = load_file(run / "phases" / "01-phase" / "end.safetensors")
    assert all(n.startswith(("student.", "shadow.", "ema/")) for n in left)
    assert {t.dtype for n, t in left.items() if t.is_floating_point()} == {torch.float32}
    for what in ("student", "ema"):
        written = load_file(export_run(run, run / what, what).folder / "model.safetensors")
        source = "ema/body." if what == "ema" else "student.body."
        held = {n.removeprefix(source): t for n, t in left.items() if n.startswith(source)}
        assert held
        assert all(torch.equal(written[n], t) for n, t in held.items())


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["zero1", "zero2", "zero3"])
@pytest.mark.parametrize("name", backends.CASES)
def test_zero_gives_the_curve_of_ddp(name: str, parallel: str, pool: Path, zero: Path) -> None:
    same_curve(pool / name / "ddp-2", zero / name / f"{parallel}-2", BACKENDS)
