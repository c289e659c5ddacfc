"""A recipe with nothing left to say: every default and phase spelt out, as it is saved, hashed and trained."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

from ..errors import RecipeError
from .core import Data, Phase, Recipe
from .method import Needs, kind_of
from .networks import FromPhase, Source, Stored
from .text import to_plain

NOT_IDENTITY = ("machine", "checkpointing", "name", "published")
NOT_IDENTITY_DATA = ("source", "workers", "prefetch", "verify", "eval_batch", "held_out", "read", "resident_mb")


def resolve(recipe: Recipe) -> Recipe:
    """Phases expanded and named, each with its own data, networks and learning rate. Idempotent.

    Raises RecipeError where a phase asks for a role that nobody plays, or for what no earlier phase leaves behind.
    """
    parts: list[Phase] = []
    for number, phase in enumerate(recipe.phases):
        named = dataclasses.replace(
            phase,
            name=phase.name or (kind_of(phase.method) if len(recipe.phases) == 1 else f"{number + 1}-{kind_of(phase.method)}"),
        )
        parts.extend(named.method.phases(named))
    done: list[Phase] = []
    for part in parts:
        done.append(_resolve_phase(recipe, part, done))
    return dataclasses.replace(recipe, phases=tuple(done))


def _resolve_phase(recipe: Recipe, phase: Phase, earlier: list[Phase]) -> Phase:
    data = phase.data or recipe.data
    if phase.batch is not None:
        data = dataclasses.replace(data, batch=phase.batch)
    networks: dict[str, Source] = {**recipe.networks, **phase.networks}
    needs = phase.method.needs()
    wanted = (*needs.trained, *needs.frozen, *needs.drawn)
    for role in wanted:
        if role not in networks:
            known = ", ".join(networks) or "none"
            raise RecipeError(
                f"phase {phase.name!r}: method {kind_of(phase.method)!r} needs a network in the role {role!r};"
                f" the recipe has: {known}"
            )
    networks = {role: networks[role] for role in wanted}
    for role, source in networks.items():
        if isinstance(source, FromPhase):
            _check_source(phase.name, role, source, earlier)
        elif isinstance(source, Stored):
            _check_stored(phase, role, source, needs)
    if phase.carry and not earlier:
        raise RecipeError(
            f"phase {phase.name!r} carries {', '.join(phase.carry)} from the phase before it, and it is the first: leave carry out"
        )
    optimizer = phase.optimizer
    if optimizer.per is not None:
        optimizer = dataclasses.replace(optimizer, lr=optimizer.lr * data.batch / optimizer.per, per=None)
    return dataclasses.replace(phase, data=data, batch=data.batch, networks=networks, optimizer=optimizer)


def _check_source(phase: str, role: str, source: FromPhase, earlier: list[Phase]) -> None:
    """That ``source`` names a network which an earlier phase trains, at an epoch which that phase reaches."""
    before = next((p for p in earlier if p.name == source.phase), None)
    if before is None:
        known = ", ".join(p.name for p in earlier) or "none"
        raise RecipeError(
            f"phase {phase!r}: {role} comes from phase {source.phase!r}, which is not before it; before it: {known}"
        )
    trained = before.method.needs().trained
    if source.role not in trained:
        raise RecipeError(
            f"phase {phase!r}: {role} is the {source.role} of phase {source.phase!r}, which trains no such role;"
            f" set role= to one that it trains: {', '.join(trained)}"
        )
    if isinstance(source.at, int) and before.epochs is not None and source.at > before.epochs:
        raise RecipeError(
            f"phase {phase!r}: {role} is taken after epoch {source.at} of phase {source.phase!r}, which has {before.epochs:g};"
            " set at= to an epoch that it reaches, 'end' or 'best'"
        )


def _check_stored(phase: Phase, role: str, source: Stored, needs: Needs) -> None:
    """That ``role`` does nothing in ``phase`` but answer, by logits."""
    taps = ", ".join(needs.taps.get(role, ()))
    asked = (
        "trains it" if role in needs.trained else "draws it anew" if role in needs.drawn else f"reads {taps}" if taps else ""
    )
    if asked or role in needs.cuts:
        raise RecipeError(
            f"phase {phase.name!r}: {role} is stored in {source.name!r}, which holds its logits alone, and method"
            f" {kind_of(phase.method)!r} {asked or 'runs its blocks'}: name the network, networks.{role}=NAME"
        )


def phase_data(phase: Phase) -> Data:
    """The data of a resolved phase."""
    if phase.data is None:
        raise RecipeError(f"phase {phase.name!r} is not resolved")
    return phase.data


def identity(recipe: Recipe, files: dict[str, str], data: dict[str, str]) -> dict[str, Any]:
    """What a resume may not change, as plain data: the resolved recipe less how it is computed.

    ``files``: content hash of each local weights path; ``data``: manifest identity of each data source. Both replace the
    paths, so that a moved folder is the same run.
    """
    plain = to_plain(recipe)
    plain.pop("data"), plain.pop("networks")
    for name in NOT_IDENTITY:
        plain.pop(name)
    for phase in plain["phases"]:
        phase["data"]["identity"] = data.get(phase["data"]["source"], phase["data"]["source"])
        for name in NOT_IDENTITY_DATA:
            phase["data"].pop(name)
        for source in phase["networks"].values():
            source.pop("floor", None), source.pop("made_by", None)
            for name in ("name", "weights"):
                if source.get(name) in files:
                    source[name] = files[source[name]]
    return plain


def digest(plain: Any) -> str:
    """sha256 of plain data, in one canonical text."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def differences(old: Any, new: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """(path, old, new) of every leaf in which two plain values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        found: list[tuple[str, Any, Any]] = []
        for name in sorted(old.keys() | new.keys()):
            found += differences(old.get(name), new.get(name), f"{path}.{name}" if path else name)
        return found
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [d for i, (a, b) in enumerate(zip(old, new, strict=True)) for d in differences(a, b, f"{path}.{i}")]
    return [] if old == new else [(path, old, new)]


def without_news(new: Any, old: Any, meant: Any) -> Any:
    """Plain data ``new`` less the fields that ``old`` does not know and that are as in ``meant``."""
    if isinstance(new, dict) and isinstance(old, dict) and isinstance(meant, dict):
        known = {name for name, value in new.items() if name in old or name not in meant or value != meant[name]}
        return {name: without_news(new[name], old.get(name), meant.get(name)) for name in new if name in known}
    if isinstance(new, list) and isinstance(old, list) and isinstance(meant, list) and len(new) == len(old) == len(meant):
        return [without_news(*each) for each in zip(new, old, meant, strict=True)]
    return new
