"""FitNets, attention transfer and CRD as parts of a training: what they add to it, and what they refuse."""

from __future__ import annotations

import pytest
import torch

from kdscale.errors import NetworkError
from kdscale.methods import AT, Crd, FitNets
from kdscale.methods.terms import TermMethod
from kdscale.networks import Network
from kdscale.recipe import Model, Phase
from kdscale.tasks import Classification
from kdscale.types import Context, DatasetInfo

from .small import ALONE, CLOCK, NORMALISATION, built, drawn_batch, network, taught, total

EXTRA = {
    ("wrn_40_2", "wrn_16_2"): (4_288, 33_024),
    ("wrn_40_2", "wrn_40_1"): (2_240, 24_832),
    ("resnet56", "resnet20"): (1_120, 16_640),
    ("resnet110", "resnet32"): (1_120, 16_640),
    ("resnet32x4", "resnet8x4"): (16_768, 65_792),
    ("vgg13", "vgg8"): (66_304, 131_328),
    ("vgg13", "MobileNetV2"): (4_864, 229_632),
    ("ResNet50", "MobileNetV2"): (132_608, 426_240),
    ("ResNet50", "vgg8"): (2_098_688, 327_936),
    ("resnet32x4", "ShuffleV1"): (983_424, 155_904),
    ("resnet32x4", "ShuffleV2"): (475_520, 164_096),
    ("wrn_40_2", "ShuffleV1"): (491_712, 139_520),
    ("wrn_40_2", "ShuffleV2"): (237_760, 147_712),
}
"""(teacher, student) of the benchmark -> parameters beside the student of FitNets and of CRD."""


def shaped(name: str) -> Network:
    """A network that has shapes and no weights."""
    with torch.device("meta"):
        return network(Model(name), trained=False)


@pytest.mark.parametrize(("pair", "counts"), EXTRA.items(), ids=[f"{t}-{s}" for t, s in EXTRA])
def test_extra_parameters_of_the_benchmark(pair: tuple[str, str], counts: tuple[int, int]) -> None:
    networks = {"teacher": shaped(pair[0]), "student": shaped(pair[1])}
    info = DatasetInfo("drawn", 10, 100, torch.arange(10).int().numpy(), *NORMALISATION, 32)
    for method, count in zip((FitNets(), Crd(negatives=1)), counts, strict=True):
        context = Context(networks, None, info, ALONE, Classification(), Phase(method, steps=1), 0)  # type: ignore[arg-type]
        assert sum(p.numel() for p in method.term(context).parameters()) == count
    assert not list(AT().term(context).parameters())


@pytest.mark.parametrize("method", [FitNets(), AT(), Crd(negatives=20)], ids=lambda m: m.kind)
def test_the_paper_s_combination_with_kd(method: TermMethod) -> None:
    together = type(method)(**{"kd": 1.0} | ({"negatives": 20} if isinstance(method, Crd) else {}))
    losses = []
    for each in (method, together):
        distiller, context = built(each, "cnn")
        distiller.before_step(CLOCK)
        losses.append(distiller(drawn_batch(), taught(each, context, drawn_batch())))
    alone, both = losses
    assert list(alone) == ["ce", method.kind]
    assert list(both) == ["ce", "kd", method.kind]
    assert all(torch.equal(both[name], loss) for name, loss in alone.items())
    total(both).backward()


def test_a_hint_of_another_stage_and_without_relu() -> None:
    method = FitNets(tap="stage1", teacher_tap="stage2", regressor_relu=False)
    distiller, context = built(method, "cnn")
    assert method.needs().taps == {"student": ("stage1",), "teacher": ("stage2",)}
    assert distiller.term.regressor.conv.kernel_size == (3, 3)
    assert distiller(drawn_batch(), taught(method, context, drawn_batch()))["fitnets"].isfinite()


def test_a_stage_that_a_network_has_not() -> None:
    with pytest.raises(NetworkError, match="has no tap 'stage7'"):
        built(FitNets(tap="stage7"), "cnn")


def test_a_transformer_s_map_is_no_quarter_of_a_teacher_s() -> None:
    with pytest.raises(NetworkError, match="no regressor brings a map of 4x4 to 16x16"):
        built(FitNets(), "token")


def test_images_of_another_size_that_break_the_rule() -> None:
    """A student of twice the teacher's side at 32 pixels need not be so at 30."""
    method = FitNets(tap="stage1", teacher_tap="stage2")
    distiller, context = built(method, "cnn")
    batch = drawn_batch()
    batch.images = batch.images[..., :29, :29].contiguous()
    said = taught(method, context, batch)
    said["teacher"].taps["stage2"] = said["teacher"].taps["stage2"][..., :-1, :-1]
    with pytest.raises(NetworkError, match="name taps whose sizes agree"):
        distiller(batch, said)
