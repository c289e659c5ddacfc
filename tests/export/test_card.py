"""The card: metadata that huggingface_hub reads back, and a body that carries every fact."""

from __future__ import annotations

from typing import Any

import pytest
from huggingface_hub import ModelCard

from kdscale.errors import ExportError
from kdscale.export.card import card, read_card
from kdscale.export.facts import slug

from .students import facts


def text_of(**changes: Any) -> str:
    family = changes.pop("family", "timm")
    return card("resnet18", facts(**changes), family=family, inference="its one head answers", parameters=11_000_000)


def test_metadata_is_read_back() -> None:
    data = ModelCard(text_of(dataset_id="ILSVRC/imagenet-1k", license="mit")).data
    assert (data.library_name, data.pipeline_tag, data.license) == ("timm", "image-classification", "mit")
    assert data.datasets == ["ILSVRC/imagenet-1k"]
    assert {"knowledge-distillation", "teacher:regnety_160.deit_in1k"} <= set(data.tags)
    assert data.base_model is None
    assert data.model_name == "resnet18.kdscale_shake_five_clothes"


def test_results_of_the_exported_answer_alone_with_crop_and_seed() -> None:
    results = ModelCard(text_of()).data.eval_results
    assert [(r.metric_name, r.metric_value) for r in results] == [("Top-1 accuracy", 0.8125), ("Top-5 accuracy", 0.99)]
    assert results[0].dataset_split == "val"
    assert results[0].dataset_args == {
        "crop_pct": 0.875, "interpolation": "bicubic", "size": 32, "seed": 7, "epoch": 20.0, "images": 2000,
    }  # fmt: skip
    assert [r.metric_value for r in ModelCard(text_of(what="shadow")).data.eval_results] == [0.8, 0.98]


def test_body_has_every_fact() -> None:
    text = text_of()
    for fact in (
        "kdscale train recipes/imagined.py --out RUN", "0123abcd", "feed" * 16, "top-1 82.69%", "accuracy not measured",
        "1 imagined GPU", "2026-01-02", "1 h 10 min", "seed 7", "crop 0.875", "2,000", "Shadow Knowledge Distillation",
        "| **student** (this file) | val | 81.25% |", "| shadow | val | 80.00% |", "local-dir:", 'pipeline("image-classification"',
    ):  # fmt: skip
        assert fact in text, fact


def test_a_family_of_our_own_is_loaded_by_its_own_file() -> None:
    text = text_of(family="cifar")
    assert "from model import load" in text
    assert "timm.create_model" not in text
    assert ModelCard(text).data.library_name == "pytorch"


def test_what_is_not_known_is_said() -> None:
    text = text_of(evaluations=(), label_names=(), teachers=(), hardware="", date="", seconds=0.0)
    assert "Not evaluated." in text
    assert "labels are numbers" in text
    assert "None" not in text.split("## Use")[0]
    assert ModelCard(text).data.eval_results is None


def test_read_card() -> None:
    title, data = read_card(text_of())
    assert title == "resnet18.kdscale_shake_five_clothes"
    assert data.pipeline_tag == "image-classification"
    for spoilt in ("no metadata", "---\na: [\n---\n# x", "---\nlicense: mit\n---\n# x"):
        with pytest.raises(ExportError, match=r"README\.md has no") as error:
            read_card(spoilt)
        assert "\n" not in str(error.value)


def test_words_for_tags() -> None:
    assert slug("CIFAR-100 (fine)") == "cifar_100_fine"
    assert facts(method="", dataset="X").tag == "kdscale_x"
