"""Settings of SHAKE that contradict one another, in a sentence each: most are of one place of the shadow and no other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ...errors import RecipeError
from ...losses import aekd
from ...recipe.method import kind_of
from ..terms import TermMethod

if TYPE_CHECKING:
    from .value import Shake


def contradiction(method: Shake) -> str | None:
    """What is wrong first, or None."""
    return next((found for check in (_code, _path, _width, _weights, _plus) for found in check(method)), None)


def _code(method: Shake) -> Iterator[str]:
    if method.form != "code":
        return
    if method.head in ("linear", "token"):
        yield f"form='code' has the fused head alone (head={method.head!r}): take head='fused' or form='paper'"
    if method.proxy != "shared" or method.own_bn or method.width < 1:
        yield "form='code' reads the teacher's features, not the student's: leave proxy, own_bn and width out, or take form='paper'"
    if method.heads == "one" and method.teachers > 1:
        yield "form='code' reads each teacher's features by a head of its own: take heads='each' or form='paper'"


def _path(method: Shake) -> Iterator[str]:
    own = "own_bn=true" if method.own_bn else f"proxy={method.proxy!r}" if method.proxy != "shared" else ""
    if method.proxy != "shared" and (method.own_bn or method.width < 1):
        yield f"proxy={method.proxy!r} shares nothing with the student: leave own_bn and width out, or take proxy='shared'"
    if own and method.head in ("fused", "token"):
        yield f"{own} makes a shadow that ends in a linear classifier of its own: leave head={method.head!r} out"
    if own and method.detach_features:
        yield f"{own} makes a shadow that reads its own features: leave detach_features out"


def _width(method: Shake) -> Iterator[str]:
    if method.width_applies_to == "head" and method.own_bn:
        yield "width_applies_to='head' makes no second path that own_bn could be of: leave one of the two out"
    if method.width == 1:
        return
    if method.width_applies_to == "backbone" and not method.own_bn:
        yield f"width={method.width:g} of the backbone is a second path, with norms of its own: set own_bn=true, or width_applies_to='head'"
    if method.head == "token":
        yield f"width={method.width:g} is of channels, and head='token' reads a token: take head='linear' or width=1"


def _weights(method: Shake) -> Iterator[str]:
    if method.weights != "aekd":
        return
    if method.teachers == 1:
        yield "weights='aekd' is of several teachers, and teachers=1: name two or more, or take weights='aver'"
    try:
        aekd.check(method.teachers, method.tolerance)
    except RecipeError as error:
        yield str(error)
    if method.divergence == "alpha":
        yield "weights='aekd' is of gradients of KD, and divergence='alpha' has none: take one of the two"
    if method.heads == "one" and method.signal == "l2":
        yield "weights='aekd' of one head is of gradients of KD, and proxy_signal='l2' is none: take 'kl' or 'ce'"


def _plus(method: Shake) -> Iterator[str]:
    kinds = [kind_of(other) for other in method.plus]
    for kind, other in zip(kinds, method.plus, strict=True):
        if not isinstance(other, TermMethod):
            yield f"plus takes methods with a term of their own, and {kind!r} is none: take fitnets, at, crd or their like"
        if kinds.count(kind) > 1:
            yield f"plus names {kind!r} twice: its losses would have one name"
        if other.needs().views > 1:
            yield f"plus takes methods of one view of an image, and {kind!r} wants {other.needs().views}"
