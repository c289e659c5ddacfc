"""What a recipe's ``Model`` means: which architecture, of which family, with weights from where. Nothing is built here.

A name is a folder where there is one with ``config.json``; else ``timm/NAME.TAG``, a CIFAR network, or a timm architecture.
``vgg16`` and its kin are both of the latter: the bare name is the CIFAR network, ``timm/vgg16`` timm's. A folder whose
``config.json`` says no family means timm's.
What is pinned to certain weights keeps their normalisation and size even where ``weights="random"`` leaves them out, for a
later phase builds the same network again and loads what an earlier one made of it.
"""

from __future__ import annotations

import difflib
import json
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import NetworkError
from ..recipe.load import roots
from . import cifar

if TYPE_CHECKING:
    from ..recipe import Model
    from .architecture import Kind

LOCAL, HUB = "local-dir:", "timm/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """``load``: what brings the weights; 'nothing' leaves them as they were drawn."""

    kind: Kind
    name: str  # of the architecture
    tag: str = ""
    folder: Path | None = None
    file: Path | None = None
    load: Literal["nothing", "hub", "folder", "file"] = "nothing"
    pinned: bool = False  # to weights whose normalisation, size and classes are known
    config: dict[str, Any] = field(default_factory=dict)  # of the folder

    @property
    def full_name(self) -> str:
        return f"{self.name}.{self.tag}" if self.tag else self.name

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes, where the folder says them."""
        names = self.config.get("label_names") or ()
        return tuple(str(name) for name in (names.values() if isinstance(names, dict) else names))


def find_source(model: Model, *, load: bool = True) -> Source:
    """Raises NetworkError for a name, folder or file that is not there. ``load=False``: as with ``weights='random'``."""
    source = _of_folder(model) or _of_name(model)
    if not load or model.weights == "random":
        return replace(source, load="nothing")
    if model.weights in (None, "pretrained"):
        if model.weights == "pretrained" and source.load == "nothing":
            raise NetworkError(
                f"there are no pretrained weights for {model.name!r}: give weights= the path of a safetensors file"
            )
        return source
    file = Path(str(model.weights))
    if file.suffix != ".safetensors" or not file.is_file():
        raise NetworkError(f"weights={model.weights!r} is no safetensors file: give 'pretrained', 'random' or the path of one")
    return replace(source, file=file, load="file")


def weights_files(model: Model) -> list[Path]:
    """The local files that the weights come from; [] for fresh ones and for those of the Hub, which a tag names."""
    source = find_source(model)
    if source.load == "file" and source.file:
        return [source.file]
    return sorted(source.folder.glob("*.safetensors")) if source.load == "folder" and source.folder else []


def _of_folder(model: Model) -> Source | None:
    import timm

    folder = place(model.name)
    if not (folder / "config.json").is_file():
        _refuse_path(model, folder)
        return None
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise NetworkError(f"{folder / 'config.json'} is no JSON ({error}): fetch or export the folder again") from None
    if not isinstance(config, dict):
        raise NetworkError(f"{folder / 'config.json'} is no object of JSON: fetch or export the folder again")
    name = str(config.get("architecture", ""))
    kind: Kind = "timm"
    if config.get("family") == "cifar" or (cifar.known(name) and not timm.is_model(name)):
        kind = "cifar"
    elif not name and "model_type" in config:
        kind, name = "transformers", str(config["model_type"])
    if kind != "transformers":
        _check_known(name, kind, folder)
    if model.weights in (None, "pretrained") and not list(folder.glob("*.safetensors")):
        raise NetworkError(
            f"{folder} holds no safetensors file: convert its weights, or say weights='random' for the architecture alone"
        )
    tag = str(config.get("pretrained_cfg", {}).get("tag") or "")
    return Source(kind=kind, name=name, tag=tag, folder=folder, load="folder", pinned=True, config=config)


def place(name: str) -> Path:
    """The folder of a name: as it stands, or among the shipped recipes, whose trained teachers lie beside them."""
    folder = Path(name.removeprefix(LOCAL))
    found = [p for p in (folder, *(root / folder for root in roots())) if (p / "config.json").is_file()]
    return found[0] if found else folder


def is_missing(model: Model) -> bool:
    """Whether the folder of a network that a recipe makes is not there."""
    return model.made_by is not None and not (place(model.name) / "config.json").is_file()


def _refuse_path(model: Model, folder: Path) -> None:
    """A name that can only be a path is not looked for among the architectures."""
    name = model.name
    if is_missing(model):
        raise NetworkError(
            f"there is no folder {str(folder)!r}: kdscale sweep trains it first, by the recipe {model.made_by}, or give another"
        )
    if (folder / "recipe.json").is_file():
        raise NetworkError(
            f"{str(folder)!r} is a run, not a network: kdscale export {folder} first, then give {folder / 'export'}"
        )
    if folder.suffix == ".safetensors":
        raise NetworkError(
            f"{str(folder)!r} is a file of weights without an architecture: give {{kind: model, name: ARCHITECTURE, weights: {folder}}}"
        )
    if folder.exists() and (folder.is_dir() or "/" in name or name.startswith(LOCAL)):
        raise NetworkError(
            f"{str(folder)!r} is no folder with a config.json: give a folder of timm's, transformers' or kdscale's form"
        )
    if name.startswith(LOCAL) or ("/" in name and not name.startswith(HUB)):
        raise NetworkError(
            f"there is no folder {str(folder)!r}: make one of a run with kdscale export, or give a network of timm's by its name"
        )


def _check_known(name: str, kind: Kind, folder: Path) -> None:
    import timm

    if not (cifar.known(name) if kind == "cifar" else timm.is_model(name)):
        raise NetworkError(f"{folder / 'config.json'} names the architecture {name!r}, which is unknown: {nearest(name)}")


def _of_name(model: Model) -> Source:
    import timm

    if cifar.known(model.name):
        return Source(kind="cifar", name=model.name)
    name, _, tag = model.name.removeprefix(HUB).partition(".")
    if not timm.is_model(name):
        raise NetworkError(f"there is no network {model.name!r}: {nearest(name)}")
    tags = list(dict.fromkeys(timm.list_pretrained(f"{name}.*") + timm.list_pretrained(name)))  # one tag is found by both
    if tag and f"{name}.{tag}" not in tags:
        raise NetworkError(f"timm knows no weights {name}.{tag}: its tags are {', '.join(_tags(tags)) or 'none'}")
    pinned = model.name.startswith(HUB) or model.weights == "pretrained"
    if tag and not pinned:
        raise NetworkError(f"{model.name!r} names weights: write {HUB + model.name!r} to load them, or {name!r} for fresh ones")
    if not pinned or not tags:
        return Source(kind="timm", name=name)
    return Source(kind="timm", name=name, tag=tag or _first_tag(name, tags), load="hub", pinned=True)


def _first_tag(name: str, pretrained: list[str]) -> str:
    """timm's own choice, said aloud where there are others: another tag is another teacher."""
    import timm

    first = str(timm.get_pretrained_cfg(name).tag)
    tags = _tags(pretrained)
    if len(tags) > 1:
        warnings.warn(
            f"{name!r} has weights under {len(tags)} tags ({', '.join(tags)}); {first!r} is taken: write 'timm/{name}.{first}' to pin it",
            stacklevel=2,
        )
    return first


def _tags(pretrained: list[str]) -> list[str]:
    return [full.partition(".")[2] for full in pretrained if "." in full]


def nearest(name: str) -> str:
    """The cure for a misspelt name."""
    import timm

    near = difflib.get_close_matches(name, [*cifar.NAMES, *timm.list_models()], 4, 0.5)
    return (
        f"did you mean {', '.join(near)}?"
        if near
        else "give a name of timm's (timm.list_models()), a CIFAR network's, or a folder"
    )


def suggest_distilled(name: str) -> str:
    """A model with a distillation token that is like ``name``."""
    import timm

    distilled = [*timm.list_models("deit_*distilled*"), *timm.list_models("pit_*distilled*")]
    near = difflib.get_close_matches(name.removeprefix(HUB).partition(".")[0], distilled, 1, 0.5)
    return near[0] if near else "deit_tiny_distilled_patch16_224"
