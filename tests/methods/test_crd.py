from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from kdscale.errors import RecipeError
from kdscale.losses.contrastive import embedding, remembered
from kdscale.methods import Crd
from kdscale.recipe import Augment, Data, Phase
from kdscale.types import Batch, Progress, World

from .small import BATCH, CLOCK, INFO, built, context_of, drawn_batch, taught

METHOD = Crd(negatives=20)


def clock(step: int) -> Progress:
    return replace(CLOCK, step=step)


def rows(batch: Batch, first: int, step: int) -> Batch:
    parts = {name: getattr(batch, name)[first::step] for name in ("images", "labels", "index", "position", "repeat", "valid")}
    return replace(batch, **parts)


def made(method: Crd = METHOD) -> tuple[Any, Any]:
    """Batch norm at rest: what a sample gives does not depend on its batch."""
    distiller, context = built(method, "cnn")
    distiller.student.eval()
    return distiller, context


def seen(distiller: Any, context: Any, batches: list[Batch], step: int = 0) -> list[Tensor]:
    distiller.before_step(clock(step))
    with torch.no_grad():
        losses = [distiller(batch, taught(METHOD, context, batch))["crd"] for batch in batches]
    distiller.after_step(clock(step))
    return losses


def test_a_step_moves_the_rows_of_its_samples_alone() -> None:
    distiller, context = made()
    term, batch = distiller.term, drawn_batch()
    before = {name: term.get_buffer(name).clone() for name in ("memory_student", "memory_teacher")}
    seen(distiller, context, [batch])
    with torch.no_grad():
        student = embedding(term.embed_student(distiller.student(batch.images, ("pooled",)).taps["pooled"]))
        teacher = embedding(term.embed_teacher(taught(METHOD, context, batch)["teacher"].taps["pooled"]))
    others = torch.ones(INFO.samples, dtype=torch.bool)
    others[batch.index] = False
    for name, new in (("memory_student", student), ("memory_teacher", teacher)):
        memory = term.get_buffer(name)
        torch.testing.assert_close(memory[batch.index], remembered(before[name], batch.index, new, 0.5))
        assert torch.equal(memory[others], before[name][others])


def test_micro_batches_compare_with_the_same_memories_and_leave_the_same() -> None:
    batch = drawn_batch()
    (whole, context), (parts, _) = made(), made()
    seen(whole, context, [batch])
    seen(parts, context, [rows(batch, 1, 2), rows(batch, 0, 2)])  # in another order: positions tell
    for name in ("memory_student", "memory_teacher"):
        torch.testing.assert_close(parts.term.get_buffer(name), whole.term.get_buffer(name))
    again = seen(whole, context, [batch], 1)[0]
    parts.term.normalisers.copy_(whole.term.normalisers)
    torch.testing.assert_close(torch.stack(seen(parts, context, [rows(batch, 0, 2), rows(batch, 1, 2)], 1)).mean(), again)


def test_the_later_of_two_positions_is_remembered() -> None:
    batch = drawn_batch()
    batch.index = torch.zeros_like(batch.index)
    distiller, context = made()
    seen(distiller, context, [batch])
    turned, _ = made()
    seen(
        turned,
        context,
        [replace(rows(batch, 0, 1), **{n: getattr(batch, n).flip(0) for n in ("images", "labels", "position")})],
    )
    torch.testing.assert_close(turned.term.memory_student, distiller.term.memory_student)


def test_the_normalisers_are_those_of_the_first_batch() -> None:
    distiller, context = made()
    term = distiller.term
    assert not term.normalisers.any()
    seen(distiller, context, [drawn_batch(0), drawn_batch(1)])
    first = term.normalisers.clone()
    assert (first > 0).all()
    seen(distiller, context, [drawn_batch(2)], 1)
    assert torch.equal(term.normalisers, first)
    fresh, _ = made()
    seen(fresh, context, [drawn_batch(0)])
    assert torch.equal(fresh.term.normalisers, first)


def test_a_resumed_run_takes_the_normalisers_and_memories_of_its_save() -> None:
    distiller, context = made()
    seen(distiller, context, [drawn_batch(0)])
    fresh, _ = made()
    fresh.load_state_dict(distiller.state_dict())
    one, two = (seen(d, context, [drawn_batch(1)], 1)[0] for d in (distiller, fresh))
    assert torch.equal(one, two)
    assert all(torch.equal(t, fresh.state_dict()[n]) for n, t in distiller.state_dict().items())


def test_a_step_that_is_skipped_leaves_nothing_behind() -> None:
    distiller, context = made()
    distiller.before_step(clock(0))
    distiller(drawn_batch(1), taught(METHOD, context, drawn_batch(1)))
    distiller.term.normalisers.zero_()
    fresh, _ = made()
    one, two = (seen(d, context, [drawn_batch(0)], 1)[0] for d in (distiller, fresh))
    assert torch.equal(one, two)
    assert torch.equal(distiller.term.memory_student, fresh.term.memory_student)


def test_a_sample_without_pixels_is_neither_counted_nor_remembered() -> None:
    distiller, context = made()
    batch = drawn_batch()
    batch.valid = torch.arange(BATCH) != 2
    before = distiller.term.memory_student.clone()
    with_bad = seen(distiller, context, [batch])[0]
    changed = distiller.term.memory_student.ne(before).any(1)
    assert changed[batch.index].tolist() == batch.valid.tolist()
    without, _ = made()
    without.term.normalisers.copy_(distiller.term.normalisers)
    good = replace(batch, **{n: getattr(batch, n)[batch.valid] for n in ("images", "labels", "index", "position", "valid")})
    torch.testing.assert_close(seen(without, context, [good])[0], with_bad)


def test_both_embeddings_learn_and_the_memories_do_not() -> None:
    distiller, _ = made()
    assert {n for n, _ in distiller.term.named_parameters()} == {
        f"embed_{side}.{part}" for side in ("student", "teacher") for part in ("weight", "bias")
    }
    saved = set(distiller.state_dict())
    assert {"term.memory_student", "term.memory_teacher", "term.normalisers"} <= saved
    assert not any(name.startswith("term.negatives") for name in saved)


def test_the_first_memories_are_the_same_on_every_rank() -> None:
    context = context_of(METHOD, "cnn")
    other = replace(context, world=World(1, 2, lambda t: t, lambda t: 2 * t))
    with torch.random.fork_rng(devices=[]):
        one, two = (METHOD.build(c).term for c in (context, other))  # type: ignore[attr-defined]
    assert torch.equal(one.memory_teacher, two.memory_teacher)
    assert not torch.equal(one.memory_teacher, one.memory_student)


def test_repeated_views_are_refused() -> None:
    phase = Phase(METHOD, steps=6, data=Data("drawn", repeats=3))
    with pytest.raises(RecipeError, match=r"data\.repeats=3 .*: set data\.repeats=1"):
        built(phase, "cnn")


@pytest.mark.parametrize("mixing", [{"mixup": 0.8}, {"cutmix": 1.0}])
def test_mixing_is_warned_of(mixing: dict[str, float]) -> None:
    with pytest.warns(UserWarning, match="mixed images"):
        built(Phase(METHOD, steps=6, data=Data("drawn", train=Augment(**mixing))), "cnn")
