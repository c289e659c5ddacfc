"""``model.py`` of every family: torch alone, one family, the same network."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file

from kdscale.export.standalone import standalone_source
from kdscale.networks import cifar

ONE_EACH = ("resnet8", "ResNet18", "okd_wrn20_8", "wrn_10_1", "vgg8", "okd_vgg16", "MobileNetV2", "ShuffleV1", "ShuffleV2",
            "okd_densenet40_12", "cnn6")  # fmt: skip


def run(source: str) -> ModuleType:
    module = ModuleType("model")
    exec(compile(source, "model.py", "exec"), module.__dict__)
    return module


@pytest.mark.parametrize("name", ONE_EACH)
@torch.no_grad()
def test_it_is_the_same_network(name: str, tmp_path: Path) -> None:
    ours = cifar.build(name, 7).eval()
    save_file(ours.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(f'{{"architecture": "{name}", "num_classes": 7}}')
    theirs = run(standalone_source(name)).load(tmp_path)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(theirs(images), ours(images))


@pytest.mark.parametrize("family", cifar.FAMILIES, ids=lambda family: family.__name__.rsplit(".", 1)[-1])
def test_it_holds_one_family_and_imports_torch_alone(family: ModuleType) -> None:
    source = standalone_source(family.NAMES[0])
    tree = ast.parse(source)
    assert "kdscale" not in source
    named = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    named |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert {name.split(".")[0] for name in named} - set(sys.stdlib_module_names) == {"torch"}
    assert not any(node.level for node in ast.walk(tree) if isinstance(node, ast.ImportFrom))
    defined = [node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    assert len(set(defined)) == len(defined)
    assert defined.count("build") == 1


def test_imports_come_once_and_in_order() -> None:
    lines = standalone_source("resnet20").split("class CifarNetwork")[0].splitlines()
    imports = [line for line in lines if line.startswith(("import ", "from "))]
    assert imports == ["from __future__ import annotations", "import json", "from collections.abc import Iterator, Sequence",
                       "from pathlib import Path", "from typing import Any, NamedTuple", "import torch",
                       "from torch import Tensor, nn", "from torch.nn import functional"]  # fmt: skip


def test_an_unknown_network() -> None:
    with pytest.raises(ValueError, match="no CIFAR network 'resnet18'"):
        standalone_source("resnet18")
