"""A resolved recipe says data and networks twice, for itself and in each phase: what changes above changes below.

A phase follows the recipe in what it has alike, and keeps what is its own.
"""

from __future__ import annotations

import dataclasses

from .core import Phase, Recipe
from .data import Data
from .networks import Source


def follow(old: Recipe, new: Recipe) -> Recipe:
    """``new``, which one override made of ``old``, with the phases' copies of what it changed."""
    if len(new.phases) != len(old.phases):
        return new
    phases = tuple(_followed(old, new, before, phase) for before, phase in zip(old.phases, new.phases, strict=True))
    return dataclasses.replace(new, phases=phases)


def _followed(old: Recipe, new: Recipe, before: Phase, phase: Phase) -> Phase:
    data = _data(old.data, new.data, phase.data)
    batch = phase.batch
    if data and before.data and batch == before.batch == before.data.batch:
        batch = data.batch  # a phase's batch has the last word, so it must not keep the old one
    return dataclasses.replace(phase, data=data, batch=batch, networks=_networks(old, new, phase))


def _data(old: Data, new: Data, own: Data | None) -> Data | None:
    """The batch is followed by itself, for a phase may differ in it alone."""
    if own is None or dataclasses.replace(own, batch=old.batch) != old:
        return own
    return new if own.batch == old.batch else dataclasses.replace(new, batch=own.batch)


def _networks(old: Recipe, new: Recipe, phase: Phase) -> dict[str, Source]:
    networks: dict[str, Source] = {}
    for role, source in phase.networks.items():
        if source != old.networks.get(role):
            networks[role] = source
        elif role in new.networks:
            networks[role] = new.networks[role]
    return networks
