from __future__ import annotations

import torch
from torch import Tensor, nn

from kdscale import keys
from kdscale.methods import Distiller
from kdscale.methods.supervised import Supervised
from kdscale.types import Batch, Losses, Progress, Taught

from .small import built, context_of, drawn_batch


class Parts(Distiller):
    """A distiller with a frozen part, a noise layer in a frozen part, and a noise layer without parameters."""

    def __init__(self, frozen_bn: str = "eval") -> None:
        super().__init__(context_of(Supervised(), "cnn"), frozen_bn)  # type: ignore[arg-type]
        self.paraphraser = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Dropout()).requires_grad_(False)
        self.adapter = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, affine=False), nn.Dropout())
        self.mixed = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3).requires_grad_(False))

    def losses(self, batch: Batch, taught: Taught) -> Losses:
        return {"is autocast on": torch.tensor(float(torch.is_autocast_enabled("cpu")))}

    def predictions(self, batch: Batch) -> dict[str, Tensor]:
        return {"student": torch.tensor(float(torch.is_autocast_enabled("cpu")))}


def test_what_has_only_frozen_parameters_stays_in_eval() -> None:
    distiller = Parts().train()
    assert distiller.training
    assert distiller.student.training
    assert not any(m.training for m in distiller.paraphraser.modules())
    assert all(m.training for m in distiller.adapter.modules())
    assert [m.training for m in distiller.mixed] == [True, False]
    assert not any(m.training for m in distiller.eval().modules())


def test_a_method_may_let_frozen_batch_norm_follow_the_batch() -> None:
    assert all(m.training for m in Parts("train").train().paraphraser.modules())


def test_parts_are_the_children_that_are_trained() -> None:
    assert list(Parts().parts()) == ["student", "adapter", "mixed"]


def test_autocast_is_opened_behind_the_door() -> None:
    distiller, batch = Parts(), drawn_batch()
    for precision in (False, True):
        distiller.autocast = precision
        assert float(distiller(batch, {})["is autocast on"]) == precision
        assert float(distiller(batch)["student"]) == precision


def test_without_anything_taught_the_distiller_predicts() -> None:
    distiller, _ = built(Supervised(), "cnn")
    assert set(distiller(drawn_batch())) == {"student"}
    assert set(distiller(drawn_batch(), {})) == {"ce"}


def test_the_noise_key_is_that_of_the_step() -> None:
    distiller, _ = built(Supervised(), "token")
    distiller.before_step(Progress(2, 11, 0, 0.0, 1.0))
    assert int(distiller.noise_key) == keys.signed(keys.key(7, 2, 11))
    assert "noise_key" not in distiller.state_dict()


def test_noise_follows_the_step_and_the_place_in_the_order() -> None:
    """Drop-path on a sample is the same in whatever micro-batch it stands, and another at another step."""
    distiller, _ = built(Supervised(), "token")
    student = distiller.student

    def logits(step: int, batch: Batch) -> Tensor:
        seen: list[Tensor] = []
        handle = student.register_forward_hook(lambda _m, _i, out: seen.append(out.logits))
        distiller.before_step(Progress(0, step, 0, 0.0, 1.0))
        distiller(batch, {})
        handle.remove()
        return seen[0].detach()

    whole = drawn_batch(rows=32)
    half = drawn_batch(rows=32)
    for name in ("images", "labels", "index", "position", "repeat", "valid"):
        setattr(half, name, getattr(half, name)[16:])
    torch.testing.assert_close(logits(3, whole)[16:], logits(3, half), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(logits(3, whole), logits(4, whole), atol=1e-4)
