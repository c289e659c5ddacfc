"""Weights from files and folders: what they are named, what they are for, and what does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from kdscale.errors import NetworkError
from kdscale.networks import load_weights, weights_files
from kdscale.networks.weights import bad_weights, check_labels
from kdscale.recipe import Model
from tests.networks.making import build, images
from tests.shared import shared


def saved(path: Path, name: str = "resnet8", prefix: str = "", dtype: torch.dtype = torch.float32, **options: Any) -> Path:
    state = build(name, seed=9, **options).body.state_dict()
    save_file({prefix + k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}, path)
    return path


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_of_wrappers_are_stripped(tmp_path: Path, prefix: str) -> None:
    body = build("resnet8").body
    load_weights(body, saved(tmp_path / "w.safetensors", prefix=prefix))
    assert torch.equal(body.conv1.weight, build("resnet8", seed=9).body.conv1.weight)


def test_half_precision_files_are_read_as_float32(tmp_path: Path) -> None:
    body = build("resnet8").body
    load_weights(body, saved(tmp_path / "w.safetensors", dtype=torch.float16))
    assert body.conv1.weight.dtype == torch.float32


def test_a_file_for_another_architecture(tmp_path: Path) -> None:
    body = build("resnet14").body
    before = body.conv1.weight.clone()
    with pytest.raises(NetworkError, match=r"misses layer1.1.bn1.bias, .* more"):
        load_weights(body, saved(tmp_path / "w.safetensors"))
    with pytest.raises(NetworkError, match=r"fc.bias of shape \(7,\) where the network has \(10,\)"):
        load_weights(build("resnet8").body, saved(tmp_path / "v.safetensors", classes=7))
    assert torch.equal(body.conv1.weight, before)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"not at all")
    with pytest.raises(NetworkError, match="cannot be read as safetensors"):
        build("resnet8", weights=str(tmp_path / "w.safetensors"))


@pytest.mark.parametrize("name", ["resnet8", "mobilenetv2_050"])
def test_weights_from_a_file(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path / "w.safetensors", name)
    network = build(name, weights=str(path), trained=False)
    assert torch.equal(network(images()).logits, build(name, seed=9, trained=False)(images()).logits)
    assert weights_files(Model(name, weights=str(path))) == [path]


def test_files_that_a_resume_hashes() -> None:
    folder = shared("weights", "cifar100_resnet20")
    assert weights_files(Model(str(folder))) == [folder / "model.safetensors"]
    assert weights_files(Model(str(folder), weights="random")) == []
    assert weights_files(Model("resnet20")) == []
    assert weights_files(Model("timm/resnet18.tv_in1k")) == []


def folder_of(tmp_path: Path, source: Path, **changes: Any) -> Path:
    config = json.loads((source / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes())
    return tmp_path


def test_classes_of_a_folder_are_compared() -> None:
    with pytest.raises(NetworkError, match=r"are for 100 classes and the data have 10"):
        build(shared("weights", "cifar100_resnet20"), classes=10)
    assert build(shared("weights", "cifar100_resnet20"), classes=10, weights="random").classes == 10


def test_names_of_classes_are_compared(tmp_path: Path) -> None:
    names = tuple(f"kind {i}" for i in range(100))
    folder = folder_of(tmp_path, shared("weights", "cifar100_resnet20"), label_names=list(names))
    assert build(folder, classes=100, names=names).architecture.labels == names
    swapped = (names[1], names[0], *names[2:])
    with pytest.raises(NetworkError, match=r"class 0 is 'kind 0' to the weights of .* and 'kind 1' in the data \(2 such"):
        build(folder, classes=100, names=swapped)


@pytest.mark.parametrize(
    ("has", "wants"), [((), ("a",)), (("0", "1"), ("a", "b")), (("LABEL_0", "LABEL_1"), ("a", "b")), (("A", "b"), ("a", "B"))]
)
def test_numbers_are_no_names(has: tuple[str, ...], wants: tuple[str, ...]) -> None:
    check_labels("x", has, wants)


def test_a_folder_without_weights(tmp_path: Path) -> None:
    folder_of(tmp_path, shared("weights", "cifar100_resnet20"))
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(NetworkError, match="holds no safetensors file"):
        build(tmp_path, classes=100)
    assert build(tmp_path, classes=100, weights="random").classes == 100


@pytest.mark.parametrize("config", [{"architecture": "resnet21", "family": "cifar"}, {"architecture": "resnot18"}])
def test_a_folder_of_an_unknown_architecture(tmp_path: Path, config: dict[str, str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(NetworkError, match=rf"{config['architecture']}.*which is unknown: did you mean"):
        build(tmp_path)


def test_a_folder_of_timms_with_a_tag_of_its_own(tmp_path: Path) -> None:
    body = build("mobilenetv2_050", seed=4).body
    save_file(body.state_dict(), tmp_path / "model.safetensors")
    cfg = {"tag": "nobody_knows", "input_size": [3, 64, 64], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "num_classes": 10}
    config = {"architecture": "mobilenetv2_050", "num_classes": 10, "model_args": {"in_chans": 3}, "pretrained_cfg": cfg}
    (tmp_path / "config.json").write_text(json.dumps(config))
    network = build(tmp_path)
    assert torch.equal(network.body.conv_stem.weight, body.conv_stem.weight)
    assert (network.architecture.mean, network.architecture.std, network.size) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 64)
    again = build(tmp_path, load=False)
    assert (again.architecture.mean, again.size, again.classes) == ((0.1, 0.2, 0.3), 64, 10)
    assert not torch.equal(again.body.conv_stem.weight, body.conv_stem.weight)


def test_damaged_weights_of_timms_folder(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, shared("weights", "mobilenetv2_100"))
    state = load_file(folder / "model.safetensors")
    state.pop("conv_stem.weight")
    save_file(state, folder / "model.safetensors")
    with pytest.raises(NetworkError, match=r"do not fit 'mobilenetv2_100' .*Missing.*conv_stem"):
        build(folder, classes=1000, size=224)


def test_numbers_that_are_not_finite() -> None:
    body = build("resnet8").body
    assert bad_weights(body) == []
    with torch.no_grad():
        body.fc.bias[0] = float("nan")
    assert bad_weights(body) == ["fc.bias"]
