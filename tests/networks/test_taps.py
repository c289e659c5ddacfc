"""What timm's networks say with taps is what they say without, and each tap is what its name promises."""

from __future__ import annotations

import pytest
import torch

from kdscale.errors import NetworkError
from tests.networks.making import build, images, tiny_deit

MAPS = ("resnet18", "regnety_002", "mobilenetv2_050", "mobilenetv3_small_050", "convnext_atto", "ghostnet_050", "densenet121")
CIFAR = ("resnet8", "ResNet18", "okd_wrn20_8", "wrn_16_1", "cnn6", "vgg8", "okd_vgg16", "MobileNetV2", "ShuffleV1", "ShuffleV2",
         "okd_densenet40_12")  # fmt: skip
TOKENS = ("vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "deit3_small_patch16_224")
OTHERS = ("swin_tiny_patch4_window7_224", "levit_128s", "pit_ti_distilled_224", "mixer_s32_224", "cait_xxs24_224", "eva02_tiny_patch14_224",
          "efficientformer_l1", "nf_resnet26", "vgg11_bn")  # fmt: skip


@pytest.mark.parametrize(
    ("name", "size"),
    [
        *((n, 64) for n in MAPS + TOKENS),
        *((n, 32) for n in CIFAR),
        *(pytest.param(n, 224, marks=pytest.mark.slow) for n in OTHERS),
    ],
)
@torch.no_grad()
def test_taps_change_no_logit(name: str, size: int) -> None:
    network = build(name, size=size).eval()
    x = images(1, size)
    plain, tapped = network(x), network(x, network.tap_names())
    assert torch.equal(plain.logits, network.body(x))
    assert torch.equal(tapped.logits, plain.logits)
    assert {tap: tuple(t.shape[1:]) for tap, t in tapped.taps.items()} == {
        tap: network.shape(tap) for tap in network.tap_names()
    }
    if not plain.heads:
        assert torch.equal(network.head(tapped.taps["pooled"]), plain.logits)
    assert network.width == tapped.taps["pooled"].shape[1]


def test_a_cnn_has_a_stem_and_four_stages() -> None:
    network = build("resnet18", size=64)
    assert [network.shape(tap) for tap in ("stem", "stage1", "stage2", "stage3", "stage4")] == [
        (64, 32, 32), (64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2),
    ]  # fmt: skip


def test_stages_of_a_vit_are_quarters_and_the_last_is_after_the_norm() -> None:
    network = build("vit_tiny_patch16_224", size=64).eval()
    said = network(images(2, 64), ("stage1", "stage4", "tokens"))
    _, blocks = network.body.forward_intermediates(images(2, 64), indices=[2, 11])
    assert torch.equal(said.taps["stage1"], blocks[0])
    assert not torch.allclose(said.taps["stage4"], blocks[1])
    assert said.taps["tokens"].shape == (2, 16, 192)
    assert torch.equal(said.taps["stage4"].flatten(2).transpose(1, 2), said.taps["tokens"])


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "regnety_002"])
@torch.no_grad()
def test_a_map_before_its_relu(name: str) -> None:
    network = build(name, size=64).eval()
    for parameter in network.parameters():  # a fresh residual branch ends in a norm of weight 0, so its sums are not negative
        if parameter.ndim == 1:
            parameter.uniform_(-1, 1)
    said = network(images(1, 64), network.tap_names()).taps
    for stage in range(1, 5):
        before = said[f"stage{stage}.pre"]
        assert bool((before < 0).any())
        assert torch.equal(before.relu(), said[f"stage{stage}"])


@pytest.mark.parametrize("name", ["resnet8", "ResNet18", "okd_wrn20_8", "cnn6", "vgg8", "okd_vgg16", "ShuffleV1"])
@torch.no_grad()
def test_a_map_of_a_cifar_network_before_its_relu(name: str) -> None:
    network = build(name).eval()
    said = network(images(), network.tap_names()).taps
    for stage in range(1, 5 if "stage4" in said else 4):
        assert bool((said[f"stage{stage}.pre"] < 0).any())
        assert torch.equal(said[f"stage{stage}.pre"].relu(), said[f"stage{stage}"])


@torch.no_grad()
def test_maps_before_an_activation_that_are_not_so_plain() -> None:
    mobile, shuffle, dense = (build(name).eval() for name in ("MobileNetV2", "ShuffleV2", "okd_densenet40_12"))
    said = mobile(images(), mobile.tap_names()).taps
    assert all(torch.equal(said[f"stage{i}"], said[f"stage{i}.pre"]) for i in range(1, 5))
    said = shuffle(images(), ("stage2", "stage2.pre")).taps
    kept, branch = said["stage2.pre"].chunk(2, 1)
    assert torch.equal(said["stage2"][:, 0::2], kept)
    assert torch.equal(said["stage2"][:, 1::2], branch.relu())
    said = dense(images(), dense.tap_names()).taps
    assert torch.equal(said["stage2"], said["stage2.pre"])
    assert torch.equal(said["stage3"], said["stage3.pre"].relu())
    assert bool((said["stage2"] < 0).any())


def test_nothing_is_kept_of_a_map_after_its_step() -> None:
    from kdscale.networks.timm_spans import Listening

    network = build("resnet18")
    network(images(), ("stage2.pre",))
    ears = [module for module in network.modules() if isinstance(module, Listening)]
    assert len(ears) == 4
    network(images())
    assert all(ear.heard is None for ear in ears)


def test_gradients_flow_through_taps() -> None:
    network = build("resnet18")
    taps = network(images(), ("stage1", "stage3.pre")).taps
    sum(tap.square().mean() for tap in taps.values()).backward()
    assert network.body.layer3[0].conv1.weight.grad is not None
    assert network.body.layer4[0].conv1.weight.grad is None


@pytest.mark.parametrize(
    ("name", "tap", "near"),
    [
        ("resnet18", "stage5", "stage4"),
        ("cnn6", "stages1", "stage1"),
        ("resnet8", "stage4", "stage3"),
        ("convnext_atto", "stem", "stage"),
    ],
)
def test_an_unknown_tap(name: str, tap: str, near: str) -> None:
    with pytest.raises(NetworkError, match=f"no tap '{tap}'.*{near}"):
        build(name)(images(), (tap,))


def test_only_what_is_asked_for_is_there() -> None:
    assert set(tiny_deit().eval()(images(2, 28), ("pooled",)).taps) == {"pooled"}
    assert build("cnn6")(images()).taps == {}


def test_asking_for_a_shape_leaves_no_trace() -> None:
    network = build("resnet18")
    network.body.layer1.eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert network.shape("logits") == (10,)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert network.body.training
    assert not network.body.layer1.training
