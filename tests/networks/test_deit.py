"""Two heads: each heard alone, and their mean the network's answer, in train mode too."""

from __future__ import annotations

import pytest
import torch

from kdscale.networks import suggest_distilled
from tests.networks.making import build, images, tiny_deit


@pytest.mark.parametrize("mode", [True, False])
@torch.no_grad()
def test_the_answers_are_timms(mode: bool) -> None:
    network = tiny_deit().train(mode)
    x = images(3, 28)
    said = network(x)
    assert torch.equal(said.logits, network.body(x))
    assert torch.equal(said.logits, (said.heads["class"] + said.heads["distillation"]) / 2)
    network.body.set_distilled_training(True)
    pair = network.body.train()(x)
    assert torch.equal(said.heads["class"], pair[0])
    assert torch.equal(said.heads["distillation"], pair[1])


def test_both_heads_learn() -> None:
    network = tiny_deit()
    said = network(images(2, 28))
    (said.heads["class"].square().sum() + said.heads["distillation"].sum()).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_the_quickstarts_student() -> None:
    network = tiny_deit()
    assert network.has_distillation_head
    assert network.heads == {"class": network.body.head, "distillation": network.body.head_dist}
    assert network.head is network.body.head
    assert network.width == 48
    assert network.architecture.input_size == (3, 28, 28)
    assert network.architecture.args["img_size"] == 28


def test_without_decay_is_what_deit_says() -> None:
    network = build("deit_tiny_distilled_patch16_224", classes=1000, size=224)
    names = {name for name, _ in network.body.named_parameters()}
    exempt = network.no_weight_decay()
    assert exempt <= names
    assert {"cls_token", "dist_token", "pos_embed", "head.bias", "norm.weight"} <= exempt
    assert (len(exempt), len(names - exempt)) == (104, 51)


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "vit_small_patch16_224", "pit_ti_224", "resnet20"])
def test_a_suggestion_has_the_token(name: str) -> None:
    assert not build(name, size=224).has_distillation_head
    assert build(suggest_distilled(name), size=224).has_distillation_head
    assert suggest_distilled("deit_tiny_patch16_224") == "deit_tiny_distilled_patch16_224"
