"""The engine's step against the step by hand: they compute the same, or the comparison is refused. Times are not judged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from kdscale.benchmarks import step
from kdscale.benchmarks.handwritten import ByHand
from kdscale.cli.bench import app
from kdscale.engine.parallel import Session, connect
from kdscale.engine.stage import build_stage
from kdscale.errors import KdscaleError, RecipeError
from kdscale.methods import DKD, KD, Deit, Method, Shake, Supervised
from kdscale.recipe import SGD, AdamW, Ema, Model, Part, Phase, Recipe, resolve
from kdscale.recipe.frozen import FrozenDict
from tests.engine import small

CNN = Model("cnn6")
CASES: dict[str, tuple[Method, Model | None]] = {
    "supervised": (Supervised(), None),
    "kd": (KD(), None),
    "kd-cnn": (KD(temperature=3), CNN),
    "deit": (Deit(), None),
    "deit-soft": (Deit(hard=False, reduction="numel"), None),
    "deit-smooth": (Deit(alpha=0.3, teacher_smoothing=0.1), None),
    "shake-token": (Shake(), None),
    "shake-token-soft": (Shake(hard=False, weight=0.5, alpha=0.2, tau=2), None),
    "shake-linear": (Shake(weight=2), CNN),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def session() -> Session:
    return connect()


def recipe_of(data: Path, method: Method, student: Model | None = None, **changes: Any) -> Recipe:
    """Drop-path, mixup, clipping and EMA are the tiny recipe's own."""
    recipe = small.recipe(data, **changes)
    networks = {**recipe.networks} | ({} if student is None else {"student": student})
    return replace(recipe, networks=networks, phases=(replace(recipe.phases[0], method=method),))


@pytest.mark.parametrize("case", CASES)
def test_a_ratio_is_told(case: str, data: Path, session: Session) -> None:
    first, second, third = step.compare(recipe_of(data, *CASES[case]), session, 3)
    assert CASES[case][0].kind in first  # type: ignore[attr-defined]
    assert first.endswith("batch 24 on cpu, threads 1")
    assert "medians of 3 pairs" in second
    assert float(third.split("median ")[1].split(",")[0]) > 0


@pytest.mark.parametrize("case", ["supervised", "deit", "shake-token-soft", "shake-linear"])
@pytest.mark.parametrize("value", [AdamW(1e-3, clip=0.1, parts=FrozenDict({"student": Part(lr=0.5)})), SGD(0.05)])
def test_both_sides_come_to_the_same_weights(
    case: str, value: AdamW | SGD, data: Path, session: Session, tmp_path: Path
) -> None:
    recipe = recipe_of(data, *CASES[case], ema=Ema(0.9, warmup=True))
    recipe = replace(recipe, phases=(replace(recipe.phases[0], optimizer=value),))
    stage = build_stage(step.endless(resolve(recipe)), 0, session, None)
    rival, engine = step.rival_of(stage), step.engine_step(stage, tmp_path)
    for number, batch in enumerate(step.some_batches(stage)):
        engine(number, batch)  # first: the rival draws its masks from the engine's clock
        rival.step(batch)
    ours, theirs = [p for group in stage.groups for p in group["params"]], rival.weights
    torch.testing.assert_close([*ours], [*theirs], rtol=1e-3, atol=2e-4)
    assert stage.ema is not None
    assert rival.average is not None
    torch.testing.assert_close(list(stage.ema.average.values()), rival.average.average, rtol=1e-3, atol=2e-4)


def test_different_work_is_not_compared(data: Path, session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    true = ByHand.kd
    monkeypatch.setattr(ByHand, "kd", lambda *given: true(*given) * 1.001)
    with pytest.raises(KdscaleError, match="the two steps differ"):
        list(step.compare(recipe_of(data, KD()), session, 3))


@pytest.mark.parametrize(
    ("method", "named"),
    [
        (Shake(form="code"), "form='code'"),
        (Shake(head="fused"), "head='fused'"),
        (Shake(proxy_signal="l2"), "proxy_signal='l2'"),
        (Shake(proxy_labels=True), "proxy_labels=True"),
        (Shake(logit_scale=3.0), "logit_scale=3.0"),
        (Shake(detach_features=True), "detach_features=True"),
        (Shake(warmup_epochs=2), "warmup_epochs=2"),
        (DKD(), "dkd"),
    ],
)
def test_what_has_no_twin_is_refused(method: Method, named: str, data: Path, session: Session) -> None:
    with pytest.raises(RecipeError, match=f"no hand-written twin of .*{named}.*: it knows supervised, kd, deit, and shake"):
        list(step.compare(recipe_of(data, method), session, 3))


@pytest.mark.parametrize("setting", [{"accumulate": 2}, {"compile": True}])
def test_a_machine_that_the_rival_has_not_is_refused(setting: dict[str, Any], data: Path, session: Session) -> None:
    recipe = recipe_of(data, Supervised())
    with pytest.raises(RecipeError, match=f"set machine.{next(iter(setting))}="):
        list(step.compare(replace(recipe, machine=replace(recipe.machine, **setting)), session, 3))


def test_the_last_phase_is_measured_without_those_before_it(data: Path, session: Session) -> None:
    lines = list(step.compare(small.two_phases(data), session, 3))
    assert lines[0].startswith("student (shake)")


def test_the_command_prints_the_ratio(data: Path, tmp_path: Path) -> None:
    recipe = replace(small.recipe(data), phases=(Phase(Supervised(), steps=2, name="alone"),))
    said = CliRunner().invoke(app, ["step", str(small.write(tmp_path / "recipe.json", recipe)), "--pairs", "3"])
    assert said.exit_code == 0, said.output
    assert "ratio engine / by hand: median" in said.output
