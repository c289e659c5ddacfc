"""timm's networks: built, with their weights, and what is known of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from ..errors import NetworkError
from .architecture import NetworkArchitecture
from .sources import Source
from .weights import check_classes, load_weights

if TYPE_CHECKING:
    from ..recipe import Model
    from ..types import DatasetInfo, Normalisation

SAID = 120  # characters of another library's error


def build_timm(source: Source, model: Model, info: DatasetInfo, drops: dict[str, float]) -> tuple[nn.Module, dict[str, Any]]:
    """(body, the constructor's arguments beside the classes and the rates of dropping)."""
    config = _config(source)
    given = {**source.config.get("model_args", {}), **model.args}
    given.pop("num_classes", None)
    size = _image_size(source, model, info, config, given)
    args = {**given, "img_size": size} if size else given
    classes = info.classes
    if source.load in ("hub", "folder"):
        classes = int(source.config.get("num_classes") or config["num_classes"])
        check_classes(model.name, classes, info.classes)
    body = _create(source, model, classes, {**args, **drops})
    _check_patches(model.name, body)
    if source.load == "file" and source.file:
        load_weights(body, source.file)
    return body, args


def timm_architecture(source: Source, body: Any, args: dict[str, Any], given: Normalisation, size: int) -> NetworkArchitecture:
    """``given``, ``size``: of the data, which fresh weights take on."""
    config = _config(source)
    mean, std = (tuple(config["mean"]), tuple(config["std"])) if source.pinned else given
    side = args.get("img_size") or (config["input_size"][1] if source.pinned else size)
    side = side[0] if isinstance(side, (list, tuple)) else side
    return NetworkArchitecture(
        kind="timm",
        name=source.name,
        tag=source.tag,
        classes=body.num_classes,
        input_size=(3, side, side),
        mean=mean,
        std=std,
        args=args,
        interpolation=config.get("interpolation") or "bicubic",
        crop_pct=config.get("crop_pct") or 0.875,
        labels=source.labels,
    )


def _config(source: Source) -> dict[str, Any]:
    """timm's entry for the weights (or, for fresh ones, of the architecture), under the folder's own."""
    import timm

    entry = timm.get_pretrained_cfg(source.full_name if not source.folder else source.name)
    known: dict[str, Any] = entry.to_dict() if entry else {}
    return {**known, **source.config.get("pretrained_cfg", {})}


def _image_size(source: Source, model: Model, info: DatasetInfo, config: dict[str, Any], given: dict[str, Any]) -> int | None:
    """What to say to a constructor that takes a size; ``None``: leave it as it is."""
    if "img_size" in given or not config.get("fixed_input_size"):
        return None
    own = int(config["input_size"][1])
    wanted = model.size or (own if source.pinned else info.size)
    return wanted if wanted != own else None


def _create(source: Source, model: Model, classes: int, args: dict[str, Any]) -> Any:
    import timm

    name = source.name if source.folder else source.full_name  # a folder's tag need not be one of timm's
    name = f"local-dir:{source.folder}" if source.load == "folder" else name
    pretrained = source.load in ("hub", "folder")
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=classes, **args)
    except Exception as error:  # timm raises whatever its constructors and its downloads do
        raise _explained(source, model, args, error) from None


def _explained(source: Source, model: Model, args: dict[str, Any], error: Exception) -> NetworkError:
    said = " ".join(f"{type(error).__name__}: {error}".split())
    said = f"{said[:SAID]}..." if len(said) > SAID else said
    if isinstance(error, (TypeError, AssertionError)) or source.load not in ("hub", "folder"):
        return NetworkError(f"{model.name!r} cannot be built with {args} ({said}): check its args, size, drop and drop_path")
    if source.load == "folder":
        return NetworkError(
            f"the weights in {source.folder} do not fit {source.name!r} ({said}): fetch or export the folder again"
        )
    return NetworkError(
        f"the weights of {model.name!r} cannot be fetched ({said}): where there is no network, give the path of a local folder"
        " that holds its config.json and model.safetensors"
    )


def _check_patches(name: str, body: Any) -> None:
    patches = getattr(body, "patch_embed", None)
    side, patch = getattr(patches, "img_size", None), getattr(patches, "patch_size", None)
    side, patch = (n if isinstance(n, (tuple, list)) else (n, n) for n in (side, patch))
    if side[0] and patch[0] and any(s % p for s, p in zip(side, patch, strict=True)):
        raise NetworkError(
            f"{name!r} cuts {side[0]} pixels into patches of {patch[0]}, which does not go evenly: set size or args.patch_size"
        )
