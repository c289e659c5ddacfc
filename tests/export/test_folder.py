"""The exported folder: what it holds, that strangers load it and answer alike, and that nothing else is ever left behind."""

from __future__ import annotations

import copy
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from kdscale.errors import ExportError
from kdscale.export import Report, export_network
from kdscale.export.heads import answer, fold_class_head
from kdscale.export.verify import questions, verify
from kdscale.networks import build_network
from kdscale.recipe import Model

from .students import INFO, MEAN, NAMES, STD, deit, facts, resnet, wrn

TORCH_ALONE = """
import sys
for name in ("kdscale", "safetensors", "timm", "transformers"):
    sys.modules[name] = None
sys.path.insert(0, sys.argv[1])
import torch, model
with torch.no_grad():
    print(model.load(sys.argv[1])(torch.ones(1, 3, 32, 32)).flatten().tolist())
"""


def config_of(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


def test_files_and_report(exported: Report) -> None:
    held = {path.name: path.stat().st_size for path in exported.folder.iterdir()}
    assert dict(exported.files) == held
    assert held.keys() == {"README.md", "config.json", "model.safetensors", "recipe.json"}
    assert exported.differences == pytest.approx({"timm": 0.0, "transformers": 0.0}, abs=1e-5)
    assert exported.parameters == sum(p.numel() for p in deit().body.parameters())
    assert json.loads((exported.folder / "recipe.json").read_text()) == {"name": "imagined"}
    assert [path.name for path in exported.folder.parent.iterdir()] == ["deit"]


def test_every_file_can_be_read_by_those_whom_the_umask_lets(exported: Report) -> None:
    modes = {stat.S_IMODE(path.stat().st_mode) for path in exported.folder.iterdir()}
    assert len(modes) == 1


def test_weights_are_the_architectures_own_keys_in_float32(exported: Report) -> None:
    fresh = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=5, img_size=32, patch_size=8, depth=2)
    tensors = load_file(exported.folder / "model.safetensors")
    assert tensors.keys() == fresh.state_dict().keys()
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    with safe_open(exported.folder / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "kdscale_version": "0.1.0", "recipe_hash": "0123abcd"}


def test_configuration(exported: Report) -> None:
    config = config_of(exported.folder)
    assert config["architecture"] == "deit_tiny_distilled_patch16_224"
    assert config["num_classes"] == 5
    assert config["label_names"] == list(NAMES)
    assert config["model_args"] == {"in_chans": 3, "img_size": 32, "patch_size": 8, "depth": 2}  # no class count, no drop rates
    entry = config["pretrained_cfg"]
    assert entry["tag"] == "kdscale_shake_five_clothes"
    assert (entry["mean"], entry["std"]) == (list(MEAN), list(STD))
    assert (entry["input_size"], entry["crop_pct"], entry["interpolation"]) == ([3, 32, 32], 0.875, "bicubic")
    assert (entry["first_conv"], entry["classifier"]) == ("patch_embed.proj", ["head", "head_dist"])
    assert config["kdscale"]["recipe_hash"] == "0123abcd"
    assert config["kdscale"]["teachers"][0]["accuracy"] == 0.8269


def test_without_names_classes_are_numbers_and_a_wrong_count_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="2 label names for 5 classes"):
        export_network(wrn(), tmp_path / "out", facts(label_names=("a", "b")))
    assert list(tmp_path.iterdir()) == []
    export_network(wrn(), tmp_path / "out", facts(label_names=()))
    assert config_of(tmp_path / "out")["label_names"] == ["0", "1", "2", "3", "4"]


def test_the_network_is_left_as_it_was(tmp_path: Path) -> None:
    network = wrn()
    network.body.train()
    before = copy.deepcopy(network.body.state_dict())
    export_network(network, tmp_path / "out", facts())
    assert network.body.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.body.state_dict().items())


def test_a_cifar_network_stands_alone(tmp_path: Path) -> None:
    network = wrn()
    report = export_network(network, tmp_path / "out", facts())
    assert report.differences.keys() == {"torch"}
    assert [name for name, _ in report.files] == ["README.md", "config.json", "model.py", "model.safetensors", "recipe.json"]
    config = config_of(report.folder)
    assert (config["family"], config["architecture"], config["num_classes"]) == ("cifar", "wrn_16_1", 5)
    source = (report.folder / "model.py").read_text()
    assert "kdscale" not in source
    run = subprocess.run([sys.executable, "-I", "-c", TORCH_ALONE, str(report.folder)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    ours = answer(network.body.eval(), torch.ones(1, 3, 32, 32), "average")
    torch.testing.assert_close(torch.tensor([json.loads(run.stdout)]), ours)


def test_an_export_is_a_model_of_the_next_recipe(exported: Report, tmp_path: Path) -> None:
    images = questions((3, 32, 32))
    export_network(wrn(), tmp_path / "out", facts())
    for folder, first in ((exported.folder, deit()), (tmp_path / "out", wrn())):
        again = build_network(Model(str(folder)), INFO, trained=False, seed=9, normalisation=(MEAN, STD))
        assert again.architecture.labels == NAMES
        with torch.no_grad():
            torch.testing.assert_close(again(images).logits, first.eval()(images).logits)


def test_fold_of_the_class_head_is_exact() -> None:
    body = deit().body.eval()
    images = questions((3, 32, 32))
    alone = answer(body, images, "class")
    both = answer(body, images, "average")
    assert not torch.equal(alone, both)
    body.load_state_dict(fold_class_head(body.state_dict()))
    assert torch.equal(answer(body, images, "average"), alone)


def test_fold_needs_two_heads(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="fold='class' is for a network with a distillation head"):
        export_network(resnet(), tmp_path / "out", facts(), fold="class")
    with pytest.raises(ExportError, match="there is no fold 'shadow'"):
        export_network(deit(), tmp_path / "out", facts(), fold="shadow")  # type: ignore[arg-type]


def test_weights_that_do_not_make_the_answer_are_refused(tmp_path: Path) -> None:
    network = wrn()
    network.body.register_forward_hook(lambda _module, _inputs, output: 1.001 * output)
    with pytest.raises(ExportError, match="loaded by torch answers otherwise than the student"):
        export_network(network, tmp_path / "out", facts())
    assert list(tmp_path.iterdir()) == []


def test_keys_that_are_not_the_architectures_are_refused(tmp_path: Path) -> None:
    network = wrn()
    network.body.shadow = nn.Linear(2, 2)
    with pytest.raises(ExportError, match=r"torch cannot load the folder .*shadow"):
        export_network(network, tmp_path / "out", facts())
    assert list(tmp_path.iterdir()) == []


def test_a_stranger_cannot_import_us(tmp_path: Path) -> None:
    network = wrn()
    folder = export_network(network, tmp_path / "out", facts()).folder
    with (folder / "model.py").open("a") as file:
        file.write("import kdscale\n")
    with pytest.raises(ExportError, match="import of kdscale halted"):
        verify(folder, ("torch",), questions((3, 32, 32)), torch.zeros(3, 5))


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    network = wrn()
    next(network.body.parameters()).data.fill_(float("nan"))
    with pytest.raises(ExportError, match="not finite"):
        export_network(network, tmp_path / "out", facts())
    assert list(tmp_path.iterdir()) == []


def test_an_export_is_replaced_and_nothing_else(exported: Report, copied: Path, tmp_path: Path) -> None:
    export_network(wrn(), copied, facts())
    assert (copied / "model.py").is_file()
    (copied / "notes.txt").write_text("mine")
    with pytest.raises(ExportError, match="holds files that are no export"):
        export_network(wrn(), copied, facts())
    assert (copied / "notes.txt").is_file()
    export_network(wrn(), copied, facts(), overwrite=True)
    assert not (copied / "notes.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["copied"]


def test_folders_within_are_never_deleted_and_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "home" / "documents").mkdir(parents=True)
    with pytest.raises(ExportError, match="holds folders and is no export"):
        export_network(wrn(), tmp_path / "home", facts(), overwrite=True)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ExportError, match="is a file"):
        export_network(wrn(), tmp_path / "file", facts(), overwrite=True)
    with pytest.raises(ExportError, match="cannot be written"):
        export_network(wrn(), tmp_path / "file" / "below", facts())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_path: Path) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("kdscale.export.folder._sync", full)
    with pytest.raises(ExportError, match="No space left on device"):
        export_network(wrn(), tmp_path / "out", facts())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_folded_deit_is_loaded_alike(tmp_path: Path) -> None:
    report = export_network(deit(), tmp_path / "out", facts(), fold="class")
    assert max(report.differences.values()) <= 1e-5
    assert "class head alone" in config_of(report.folder)["kdscale"]["inference"]
    model = timm.create_model(f"local-dir:{report.folder}", pretrained=True).eval()
    assert not model.head_dist.weight.any()


@pytest.mark.slow
def test_a_resnet_is_loaded_alike(tmp_path: Path) -> None:
    report = export_network(resnet(), tmp_path / "out", facts(what="ema"))
    assert max(report.differences.values()) <= 1e-5
    assert config_of(report.folder)["model_args"] == {"in_chans": 3}


@pytest.mark.slow
def test_transformers_saves_it_again_and_names_the_classes(exported: Report, tmp_path: Path) -> None:
    from PIL import Image
    from transformers import AutoModelForImageClassification, pipeline

    images = questions((3, 32, 32))
    model = AutoModelForImageClassification.from_pretrained(exported.folder)
    model.save_pretrained(tmp_path / "again")
    again = timm.create_model(f"local-dir:{tmp_path / 'again'}", pretrained=True).eval()
    torch.testing.assert_close(answer(again, images, "average"), answer(deit().body.eval(), images, "average"))
    said = pipeline("image-classification", model=str(exported.folder))(Image.new("RGB", (40, 40), "red"), top_k=5)
    assert {line["label"] for line in said} == set(NAMES)
