"""Published weights reach their published accuracy, through our own normalisation and resizing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.networks.making import PLAIN, build
from tests.shared import shared

PER_CLASS = 10


def test_images() -> tuple[Tensor, Tensor]:
    """A thousand images in [0, 1], ten a class."""
    folder = shared("data", "cifar100", "test")
    strips = [np.asarray(Image.open(folder / f"{k:02d}.webp").convert("RGB")) for k in range(100)]
    pixels = np.concatenate([strip.reshape(-1, 32, 32, 3)[:PER_CLASS] for strip in strips])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255, torch.arange(100).repeat_interleave(PER_CLASS)


test_images.__test__ = False  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "accuracy"), [("cifar100_resnet20", 0.688), pytest.param("cifar100_resnet56", 0.726, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_cifar_teachers(name: str, accuracy: float, precision: str) -> None:
    pixels, labels = test_images()
    network = build(
        shared("weights", name), classes=100, trained=False, precision=precision
    )  # images come in another normalisation
    normalised = (pixels - torch.tensor(PLAIN[0])[:, None, None]) / torch.tensor(PLAIN[1])[:, None, None]
    right = torch.cat([network(part).logits.argmax(1) for part in normalised.split(250)]) == labels
    assert float(right.float().mean()) == pytest.approx(accuracy, abs=0.045)  # three standard errors of a thousand images


def test_mobilenet_keeps_its_padding() -> None:
    import timm

    folder = shared("weights", "mobilenetv2_100")
    network = build(folder, classes=1000, size=224, trained=False, normalisation=((0.5,) * 3, (0.5,) * 3))
    assert network.architecture.args == {"pad_type": "same"}
    assert network.architecture.tag == "tf2_in1k"
    x = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(network(x).logits, timm.create_model(f"local-dir:{folder}", pretrained=True).eval()(x))


def test_a_teacher_sees_its_own_size() -> None:
    network = build(shared("weights", "mobilenetv2_100"), classes=1000, size=64, trained=False)
    assert network.shape("stage4") == (320, 7, 7)
    assert network(torch.rand(1, 3, 64, 64), ("stage4",)).taps["stage4"].shape == (1, 320, 7, 7)


@pytest.mark.slow
def test_the_deit_teacher() -> None:
    network = build("regnety_160", classes=1000, size=224, trained=False)
    assert sum(p.numel() for p in network.parameters()) == 83_590_140
    assert [network.shape(tap) for tap in ("stem", "stage1", "stage2", "stage3", "stage4")] == [
        (32, 112, 112), (224, 56, 56), (448, 28, 28), (1232, 14, 14), (3024, 7, 7),
    ]  # fmt: skip
