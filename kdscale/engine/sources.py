"""The networks of a phase, each from where its recipe says: its own name and weights, an earlier phase, or a fresh draw."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import keys
from ..errors import RecipeError
from ..networks import Network, build_network
from ..recipe import FromPhase, Model, Recipe, Stored
from ..recipe.networks import Source
from ..types import DatasetInfo
from .checkpoint.folder import Folder
from .checkpoint.phase_file import PhaseFile
from .stored.store import Present, open_stores


def build_networks(
    recipe: Recipe, number: int, info: DatasetInfo, folder: Folder | None, device: torch.device
) -> dict[str, Network]:
    """role -> network of one phase; two frozen roles with one source share one copy."""
    phase = recipe.phases[number]
    needs = phase.method.needs()
    open_stores(recipe, number, info)
    built = Present(phase)
    shared: dict[Any, Network] = {}
    for role, source in phase.networks.items():
        if role in needs.drawn or isinstance(source, Stored):
            continue
        is_trained = role in needs.trained
        if not is_trained and source in shared:
            built[role] = shared[source]
            continue
        built[role] = build_source(recipe, number, role, source, info, folder, trained=is_trained)
        if not is_trained:
            shared[source] = built[role]
    built.refuse_readers()
    return built


def build_source(
    recipe: Recipe,
    number: int,
    role: str,
    source: Source,
    info: DatasetInfo,
    folder: Folder | None,
    *,
    trained: bool,
    load: bool = True,
) -> Network:
    """One network: from its own name and weights, or as an earlier phase left it; ``load=False``: the architecture alone."""
    seed = int(keys.key(recipe.seed, 7, number, *role.encode())) >> 1
    network = build_network(
        origin(recipe, source),
        info,
        trained=trained,
        seed=seed,
        normalisation=(info.mean, info.std),
        precision=recipe.precision if not trained else "fp32",
        load=load and isinstance(source, Model),  # weights of a phase replace them at once
    )
    if load and isinstance(source, FromPhase) and folder is not None:
        network.body.load_state_dict(PhaseFile(phase_path(recipe, source, folder)).body(source.role), strict=True)
    return network


def fresh_network(recipe: Recipe, number: int, info: DatasetInfo, role: str, copy: int) -> Network:
    """Another network of the architecture that ``role`` has, with weights of its own draw."""
    source = origin(recipe, recipe.phases[number].networks[role])
    seed = int(keys.key(recipe.seed, 6, number, copy, *role.encode())) >> 1
    model = dataclasses.replace(source, weights="random")
    return build_network(
        model, info, trained=True, seed=seed, normalisation=(info.mean, info.std), precision="fp32", load=False
    )


def origin(recipe: Recipe, source: Source) -> Model:
    """The model that a chain of earlier phases began with."""
    while isinstance(source, FromPhase):
        source = recipe.phases[recipe.phase_number(source.phase)].networks[source.role]
    if isinstance(source, Stored):
        raise RecipeError(f"{source.name!r} holds a network's answers and no network: name the network itself")
    return source


def phase_path(recipe: Recipe, source: FromPhase, folder: Folder) -> Path:
    number = recipe.phase_number(source.phase)
    name = source.at if isinstance(source.at, str) else f"epoch-{source.at}"
    return folder.phase_path(number, recipe.phases[number].name) / f"{name}.safetensors"


def take_carried(distiller: nn.Module, recipe: Recipe, number: int, folder: Folder | None) -> None:
    """Loads the parts that a phase carries over from the one before it."""
    phase = recipe.phases[number]
    if not phase.carry or folder is None:
        return
    before = recipe.phases[number - 1]
    left = PhaseFile(folder.phase_path(number - 1, before.name) / "end.safetensors")
    parts: Mapping[str, nn.Module] = distiller.parts()  # type: ignore[operator]
    names = {id(m): n for n, m in distiller.named_modules()}
    for part in phase.carry:
        if part not in parts:
            raise RecipeError(f"phase {phase.name!r} carries {part!r}, which it has not; its parts: {', '.join(parts)}")
        state = left.under(f"{names[id(parts[part])]}.")
        if not state:
            raise RecipeError(f"phase {phase.name!r} carries {part!r}, which phase {before.name!r} has not trained")
        parts[part].load_state_dict(state, strict=True)
