"""From a model's name to a network: seeds, normalisation, sizes, and what is refused."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from kdscale.errors import NetworkError
from kdscale.networks import FrozenNetwork, Network, build_network
from kdscale.networks.sources import find_source
from kdscale.recipe import Model
from tests.networks.making import PLAIN, TINY_DEIT, build, images, info, tiny_deit

OTHER = ((0.4, 0.45, 0.6), (0.2, 0.3, 0.5))


def same(a: Network, b: Network) -> bool:
    pairs = zip(a.body.state_dict().items(), b.body.state_dict().items(), strict=True)
    return all(n == m and torch.equal(t, u) for (n, t), (m, u) in pairs)


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "cnn6", "mobilenetv2_050", "vit_tiny_patch16_224"])
def test_fresh_weights_are_a_function_of_the_seed(name: str) -> None:
    torch.manual_seed(3)
    first = build(name, seed=5)
    expected = torch.get_rng_state()
    torch.manual_seed(99)
    assert same(first, build(name, seed=5))
    assert not same(first, build(name, seed=6))
    torch.manual_seed(3)
    build(name, seed=5)
    assert torch.equal(torch.get_rng_state(), expected), "the global generator was touched"


def test_trained_and_frozen() -> None:
    trained, frozen = build("resnet8"), build("resnet8", trained=False)
    assert trained.training
    assert not isinstance(trained, FrozenNetwork)
    assert isinstance(frozen, FrozenNetwork)
    assert same(trained, frozen)


def test_state_dict_has_the_architectures_keys() -> None:
    import timm

    network = build("resnet18", drop_path=0.2, drop=0.1)
    assert set(network.body.state_dict()) == set(timm.create_model("resnet18", num_classes=10).state_dict())
    assert set(network.state_dict()) == {f"body.{name}" for name in network.body.state_dict()}


def test_a_fresh_network_takes_the_datas_normalisation() -> None:
    network = build("mobilenetv2_050", normalisation=OTHER)
    assert (network.architecture.mean, network.architecture.std) == OTHER
    assert network.scale is None
    assert network.classes == 10
    assert isinstance(network.head, nn.Linear)


def test_images_are_brought_to_the_networks_own_normalisation() -> None:
    pixels = torch.rand(2, 3, 32, 32)
    own = build("resnet8", normalisation=PLAIN).eval()
    given = build("resnet8", normalisation=PLAIN).eval()
    from kdscale.networks.network import _renormalisation

    given.scale, given.shift = _renormalisation(OTHER, PLAIN)
    normalised = [(pixels - torch.tensor(m)[:, None, None]) / torch.tensor(s)[:, None, None] for m, s in (PLAIN, OTHER)]
    assert torch.allclose(own(normalised[0]).logits, given(normalised[1]).logits, atol=1e-5)


def test_a_fresh_cnn_takes_any_size_unless_one_is_said() -> None:
    assert build("resnet8").size is None
    model, data = Model("resnet8", size=48), info()
    network = build_network(model, data, trained=True, seed=1, normalisation=PLAIN)
    assert network(images(2, 32), ("stem",)).taps["stem"].shape[-2:] == (48, 48)


def test_a_vit_is_built_for_the_datas_size() -> None:
    network = build("vit_tiny_patch16_224", size=64)
    assert network.body.patch_embed.img_size == (64, 64)
    assert network.architecture.args["img_size"] == 64
    assert network.size == 64
    assert network(images(2, 96)).logits.shape == (2, 10)
    assert "img_size" not in build("vit_tiny_patch16_224", size=224).architecture.args


def test_arguments_of_the_constructor() -> None:
    network = tiny_deit(drop_path=0.1)
    assert sum(p.numel() for p in network.parameters()) < 200_000
    assert dict(network.architecture.args) == TINY_DEIT


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet200x", {}, r"no network 'resnet200x': did you mean resnet200"),
        ("wrn_16_3x", {}, r"wrn_16"),
        ("resnet18.tv_in1k", {}, r"write 'timm/resnet18.tv_in1k' to load them, or 'resnet18'"),
        ("timm/resnet18.nobody", {}, r"no weights resnet18.nobody: its tags are .*tv_in1k"),
        ("resnet20", {"weights": "pretrained"}, r"no pretrained weights for 'resnet20'"),
        ("resnet20", {"weights": "nowhere.safetensors"}, r"'nowhere.safetensors' is no safetensors file"),
        ("resnet20", {"drop": 0.1}, r"takes no args, drop or drop_path"),
        ("resnet18", {"args": {"depht": 3}}, r"cannot be built with .*depht"),
        ("vit_tiny_patch16_224", {"args": {"img_size": 30}}, r"cuts 30 pixels into patches of 16"),
        (".", {}, r"is no folder with a config.json"),
        ("./nowhere", {}, r"there is no folder 'nowhere': make one of a run with kdscale export, or give .* name"),
        ("runs/wrn_40_2/export", {}, r"there is no folder 'runs/wrn_40_2/export': .*kdscale export"),
        ("local-dir:nowhere", {}, r"there is no folder 'nowhere'"),
    ],
)
def test_what_is_refused(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(NetworkError, match=message) as caught:
        build(name, **options)
    assert "\n" not in str(caught.value)


def test_files_that_are_near_to_a_network(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.json").write_text("{}")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text("[1]")
    for name, message in (
        ("run", r"is a run, not a network: kdscale export .*run first, then give .*run/export"),
        ("w.safetensors", r"give {kind: model, name: ARCHITECTURE, weights: .*w.safetensors}"),
        ("odd", r"config.json is no object of JSON"),
    ):
        with pytest.raises(NetworkError, match=message):
            build(str(tmp_path / name))


def test_an_ambiguous_name_is_told() -> None:
    with pytest.warns(UserWarning, match=r"tags.*a1_in1k.*write 'timm/resnet18.a1_in1k'"):
        network = build("resnet18", classes=1000, size=224, weights="pretrained", load=False)
    assert network.architecture.tag == "a1_in1k"


def test_a_name_with_a_single_tag_is_not_ambiguous() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        source = find_source(Model("timm/deit_tiny_patch16_224"))
    assert source.full_name == "deit_tiny_patch16_224.fb_in1k"
    with pytest.raises(NetworkError, match=r"its tags are fb_in1k$"):
        find_source(Model("timm/deit_tiny_patch16_224.nobody"))


def test_a_pinned_name_without_its_weights_keeps_its_normalisation() -> None:
    network = build("timm/mobilenetv1_100.ra4_e3600_r224_in1k", weights="random")
    assert network.architecture.mean == (0.5, 0.5, 0.5)
    assert network.size == 224
    assert network.classes == 10


def test_where_there_is_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    def offline(*_: object, **__: object) -> None:
        raise OSError("Network is unreachable\nand so on")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(NetworkError, match=r"cannot be fetched .*unreachable.*local folder") as caught:
        build("timm/resnet18.tv_in1k", classes=1000, size=224)
    assert "\n" not in str(caught.value)


def test_weights_of_other_classes_are_refused_before_they_are_fetched() -> None:
    with pytest.raises(NetworkError, match=r"are for 1000 classes and the data have 10: .*random"):
        build("timm/resnet18.tv_in1k")


def test_a_copy_is_its_own_network() -> None:
    import copy

    network = tiny_deit(drop_path=0.3)
    twin = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert not bool(network.eval()(images(2, 28)).logits.eq(0).all())
    assert bool(twin.eval()(images(2, 28)).logits.eq(0).all())


def test_an_architecture_is_a_value() -> None:
    architecture = build("resnet18").architecture
    assert dataclasses.replace(architecture, tag="x").tag == "x"
