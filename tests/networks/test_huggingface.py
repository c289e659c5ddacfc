"""A classifier of transformers as a teacher, from a folder on disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from kdscale.errors import NetworkError
from kdscale.networks import FrozenNetwork, weights_files
from kdscale.recipe import Model
from tests.networks.making import build, images

SHAPE = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 8,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(**SHAPE, id2label={i: f"kind {i}" for i in range(10)}, label2id={f"kind {i}": i for i in range(10)})
    ViTForImageClassification(config).save_pretrained(tmp_path)
    return tmp_path


def test_logits_alone(folder: Path) -> None:
    from transformers import ViTForImageClassification

    network = build(folder, trained=False)
    assert isinstance(network, FrozenNetwork)
    with torch.no_grad():
        expected = ViTForImageClassification.from_pretrained(folder).eval()(images()).logits
    assert torch.allclose(network(images()).logits, expected, atol=1e-6)
    assert network.classes == 10
    assert network.tap_names() == ()
    assert network.cuts == ()
    assert not network.has_distillation_head
    assert network.architecture.kind == "transformers"
    assert network.architecture.labels == tuple(f"kind {i}" for i in range(10))
    assert network(images(2, 48)).logits.shape == (2, 10)
    assert weights_files(Model(str(folder))) == [folder / "model.safetensors"]


def test_its_own_normalisation_and_size(folder: Path) -> None:
    given = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "size": {"height": 32, "width": 32}}
    (folder / "preprocessor_config.json").write_text(json.dumps(given))
    network = build(folder, trained=False)
    assert (network.architecture.mean, network.architecture.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert network.scale is not None
    assert network.size == 32


def test_half_precision(folder: Path) -> None:
    assert build(folder, trained=False, precision="bf16")(images()).logits.dtype == torch.float32


def test_what_is_refused(folder: Path) -> None:
    with pytest.raises(NetworkError, match="can teach but not be trained"):
        build(folder)
    with pytest.raises(NetworkError, match="for 10 classes and the data have 100"):
        build(folder, classes=100, trained=False)
    with pytest.raises(NetworkError, match="has no tap 'pooled'"):
        build(folder, trained=False)(images(), ("pooled",))
    with pytest.raises(NetworkError, match="class 0 is 'kind 0'"):
        build(folder, trained=False, names=tuple("abcdefghij"))


def test_a_folder_without_a_classifier(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTModel

    ViTModel(ViTConfig(**SHAPE)).save_pretrained(tmp_path)
    with pytest.raises(NetworkError, match="misses weights of an image classifier"):
        build(tmp_path, classes=2, trained=False)
