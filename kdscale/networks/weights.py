"""Weights from safetensors files, and whether they fit: the classes' number and, where both sides say them, their names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..errors import NetworkError

PREFIXES = ("module.", "_orig_mod.")  # of DDP and of torch.compile
SHOWN = 3


def load_weights(body: nn.Module, path: Path) -> None:
    """Copies every tensor of a safetensors file into ``body``, whose own type (float32) they take on.

    Wrappers' prefixes are stripped. Raises NetworkError, before anything is changed, where names or shapes differ.
    """
    state = read_weights(path)
    own = body.state_dict()
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or unexpected:
        said = [
            f"misses {_some(missing)}" if missing else "",
            f"has {_some(unexpected)}, which the network has not" if unexpected else "",
        ]
        raise NetworkError(f"{path} {' and '.join(filter(None, said))}: these are weights of another architecture")
    wrong = [name for name, tensor in state.items() if tensor.shape != own[name].shape]
    if wrong:
        one = wrong[0]
        raise NetworkError(
            f"{path} has {one} of shape {tuple(state[one].shape)} where the network has {tuple(own[one].shape)}"
            f" ({len(wrong)} such tensors): these are weights for other classes, another size or another architecture"
        )
    body.load_state_dict(state, strict=True)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors by name, without the prefixes of wrappers. Raises NetworkError for a file that cannot be read."""
    try:
        with safe_open(path, "pt") as file:
            return {_bare(name): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise NetworkError(
            f"{path} cannot be read as safetensors ({error}): fetch it again, or convert it from its pickle"
        ) from None


def check_classes(name: str, has: int, wants: int) -> None:
    """Weights for another number of classes are refused: a fresh random head would pass for a trained network."""
    if has != wants:
        raise NetworkError(
            f"the weights of {name!r} are for {has} classes and the data have {wants}: take weights trained on these classes,"
            " or weights='random' for the architecture alone"
        )


def check_labels(name: str, has: Sequence[str], wants: Sequence[str]) -> None:
    """The same classes in the same order, where both sides name them."""
    if not named(has) or not named(wants):
        return
    differing = [i for i, (mine, theirs) in enumerate(zip(has, wants, strict=False)) if mine.lower() != theirs.lower()]
    if differing:
        i = differing[0]
        raise NetworkError(
            f"class {i} is {has[i]!r} to the weights of {name!r} and {wants[i]!r} in the data ({len(differing)} such classes):"
            " bring the data's classes into the weights' order, or take weights trained on these data"
        )


def named(labels: Sequence[str]) -> bool:
    """Whether ``labels`` are names; numbers, and transformers' LABEL_0, are what is written where there are none."""
    return bool(labels) and not all(label.upper().removeprefix("LABEL_").isdigit() for label in labels)


def bad_weights(body: nn.Module) -> list[str]:
    """Names of tensors that hold a number that is not finite."""
    floats = ((name, tensor) for name, tensor in body.state_dict().items() if tensor.is_floating_point())
    return [name for name, tensor in floats if not bool(torch.isfinite(tensor).all())]


def _bare(name: str) -> str:
    while name.startswith(PREFIXES):
        name = name.removeprefix(PREFIXES[0]).removeprefix(PREFIXES[1])
    return name


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
