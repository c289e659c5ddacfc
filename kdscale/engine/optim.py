"""One optimizer a phase; groups are trained parts x {decay, no decay}, so that rates and decay can differ by part."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..errors import RecipeError
from ..recipe import SGD, AdamW, Part, Timm

OptimizerValue = SGD | AdamW | Timm


def parameter_groups(module: nn.Module, parts: Mapping[str, nn.Module], value: OptimizerValue) -> list[dict[str, Any]]:
    """Groups with ``names``, ``params``, ``weight_decay`` and ``scale`` (factor on the rate), in a fixed order.

    Names are those of ``module.named_parameters()``. Raises RecipeError for settings of a part that does not exist.
    """
    for name in value.parts:
        if name not in parts:
            near = difflib.get_close_matches(name, list(parts), 1, 0.3) or list(parts)
            raise RecipeError(f"optimizer.parts.{name}: this method trains no part {name!r}; it trains: {', '.join(near)}")
    names = {id(p): name for name, p in module.named_parameters()}
    groups: list[dict[str, Any]] = []
    seen: set[int] = set()
    for part_name, part in parts.items():
        setting = value.parts.get(part_name, Part())
        exempt = set() if value.decay_all else exempt_from_decay(part)
        split: dict[bool, list[tuple[str, nn.Parameter]]] = {True: [], False: []}
        for local, parameter in part.named_parameters():
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                split[local not in exempt].append((names[id(parameter)], parameter))
        decay = value.decay if setting.decay is None else setting.decay
        for decays, members in split.items():
            if members:
                groups.append(
                    {
                        "names": [name for name, _ in members],
                        "params": [parameter for _, parameter in members],
                        "weight_decay": decay if decays else 0.0,
                        "scale": setting.lr,
                        "part": part_name,
                    }
                )
    return groups


def exempt_from_decay(part: nn.Module) -> set[str]:
    """Names of parameters without weight decay: vectors and scalars, and what a network inside the part names itself."""
    exempt = {name for name, parameter in part.named_parameters() if parameter.ndim <= 1}
    for place, child in part.named_modules():
        named = getattr(child, "no_weight_decay", None)
        if callable(named):
            inside = f"{place}." if place else ""
            body = f"{inside}body." if hasattr(child, "body") else inside
            exempt |= {f"{body}{name}" for name in named()}
    return exempt


def build_optimizer(groups: list[dict[str, Any]], value: OptimizerValue) -> torch.optim.Optimizer:
    """The torch optimizer of a recipe's value, over groups of :func:`parameter_groups`."""
    plain = [{"params": g["params"], "weight_decay": g["weight_decay"], "lr": value.lr * g["scale"]} for g in groups]
    if isinstance(value, SGD):
        return torch.optim.SGD(plain, lr=value.lr, momentum=value.momentum, nesterov=value.nesterov, fused=True)
    if isinstance(value, AdamW):
        return torch.optim.AdamW(plain, lr=value.lr, betas=value.betas, eps=value.eps, fused=True)
    return _timm_optimizer(plain, value)


def _timm_optimizer(groups: list[dict[str, Any]], value: Timm) -> torch.optim.Optimizer:
    from timm.optim import create_optimizer_v2, list_optimizers

    try:
        made: torch.optim.Optimizer = create_optimizer_v2(
            groups, opt=value.name, lr=value.lr, weight_decay=value.decay, **value.args
        )
    except (ValueError, AssertionError, TypeError) as error:
        near = difflib.get_close_matches(value.name, list_optimizers(), 3, 0.4)
        raise RecipeError(f"optimizer {value.name!r}: {error}; nearest names: {', '.join(near) or 'none'}") from None
    return made


def set_rates(param_groups: list[dict[str, Any]], groups: list[dict[str, Any]], rate: float) -> None:
    """Writes ``rate`` into an optimizer's own groups, each by its part's factor."""
    for group, described in zip(param_groups, groups, strict=True):
        group["lr"] = rate * described["scale"]
