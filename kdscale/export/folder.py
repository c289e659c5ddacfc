"""A trained student as a folder of its own, free of the method that trained it.

The folder is written aside, proved by strangers (``verify.py``) and only then given its name, so an ``out`` that exists is
an export that loads. What is proved is the written file against the network as it stands in memory, folds included.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from ..errors import ExportError
from .card import card
from .config import FILES, configuration
from .heads import Fold, answer, check_fold, fold_class_head
from .standalone import standalone_source
from .verify import questions, verify

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..networks import Network
    from .facts import Facts

LOADERS = {"timm": ("timm", "transformers"), "cifar": ("torch",)}


@dataclass(frozen=True, slots=True)
class Report:
    folder: Path
    files: tuple[tuple[str, int], ...]  # name, bytes
    parameters: int
    differences: dict[str, float]  # by loader: of the logits, relative to their scale
    weights_sha256: str


def export_network(network: Network, out: Path, facts: Facts, *, fold: Fold = "average", overwrite: bool = False) -> Report:
    """Writes ``network``'s body as float32 into the folder ``out`` and proves it in fresh processes.

    ``fold='class'`` makes the class head of a distilled DeiT the only one that answers. An ``out`` that is an export is
    replaced; any other folder with files in it only where ``overwrite`` says so. Raises ExportError; then ``out`` is as it was.
    """
    if network.architecture.kind not in LOADERS:
        raise ExportError(
            f"{network.architecture.name!r} is a network of {network.architecture.kind}: only timm's architectures and the CIFAR"
            " families are exported"
        )
    check_fold(network, fold)
    out = out.resolve()
    _check_place(out, overwrite)
    aside = out.with_name(f".{out.name}.{os.getpid()}.writing")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        report = _write_and_prove(network, aside, facts, fold)
        _give_name(aside, out)
    except (OSError, SafetensorError) as error:  # safetensors has its own error for a full disk
        raise ExportError(f"{out} cannot be written ({error}): free space, or choose another folder") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return replace(report, folder=out)


def _write_and_prove(network: Network, folder: Path, facts: Facts, fold: Fold) -> Report:
    body = _plain(network.body)
    images = questions(network.architecture.input_size)
    logits = answer(body, images, fold)  # asked of the network before anything is folded
    state = {name: tensor.detach().clone().contiguous() for name, tensor in body.state_dict().items()}
    if fold == "class":
        state = fold_class_head(state)
    parameters = sum(parameter.numel() for parameter in body.parameters())
    del body
    sha256 = _write(network, folder, facts, state, fold, parameters)
    differences = verify(folder, LOADERS[network.architecture.kind], images, logits)
    files = tuple((path.name, path.stat().st_size) for path in sorted(folder.iterdir()))
    return Report(folder, files, parameters, differences, sha256)


def _plain(body: nn.Module) -> nn.Module:
    """A copy on the CPU, in float32 and eval mode; the network that may still train keeps its own device, type and mode."""
    return copy.deepcopy(body).to("cpu", torch.float32).to(memory_format=torch.contiguous_format).eval()


def _write(network: Network, folder: Path, facts: Facts, state: dict[str, Tensor], fold: Fold, parameters: int) -> str:
    architecture = network.architecture
    inference = _inference(network, fold)
    weights = folder / "model.safetensors"
    save_file(state, weights, metadata={"format": "pt", "kdscale_version": facts.version, "recipe_hash": facts.recipe_hash})
    sha256 = file_sha256(weights)
    config = configuration(network, facts, inference=inference, weights_sha256=sha256)
    (folder / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    text = card(architecture.name, facts, family=architecture.kind, inference=inference, parameters=parameters)
    (folder / "README.md").write_text(text, encoding="utf-8")
    (folder / "recipe.json").write_text(facts.recipe_json.rstrip("\n") + "\n", encoding="utf-8")
    if architecture.kind == "cifar":
        (folder / "model.py").write_text(standalone_source(architecture.name), encoding="utf-8")
    weights.chmod((folder / "config.json").stat().st_mode)  # safetensors writes for the owner alone, whatever the umask says
    for path in folder.iterdir():
        _sync(path)
    return sha256


def _inference(network: Network, fold: Fold) -> str:
    if not network.has_distillation_head:
        return "its one head answers"
    if fold == "class":
        return "the class head alone answers (folded into the mean of the two heads)"
    return "the mean of the class head and the distillation head answers"


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_export(folder: Path) -> bool:
    """Whether the folder holds an export of kdscale and nothing else."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and "kdscale" in config and all(path.name in FILES for path in _inside(folder))


def _inside(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name != "__pycache__"]  # left by whoever imports an export's model.py


def _check_place(out: Path, overwrite: bool) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise ExportError(f"{out} is a file: give a folder that does not exist yet")
    inside = _inside(out)
    if any(path.is_dir() for path in inside):  # nothing that an export could have left; too much to delete by a switch
        raise ExportError(f"{out} holds folders and is no export: give another one")
    if inside and not overwrite and not is_export(out):
        raise ExportError(f"{out} holds files that are no export: give another folder, or overwrite it explicitly")


def _give_name(aside: Path, out: Path) -> None:
    if not out.exists():
        aside.rename(out)
        return
    old = out.with_name(f".{out.name}.{os.getpid()}.old")
    out.rename(old)
    aside.rename(out)
    shutil.rmtree(old, ignore_errors=True)
