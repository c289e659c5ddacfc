"""Parts of a distiller that a phase holds still. Mode is the distiller's own affair: it rests what has no trained parameter."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

Part = TypeVar("Part", bound=nn.Module)


def freeze(part: Part) -> Part:
    """No parameter of ``part`` is trained any more."""
    return part.requires_grad_(False).eval()


def thaw(part: Part) -> Part:
    """Every parameter of ``part`` is trained again."""
    return part.requires_grad_(True).train()
