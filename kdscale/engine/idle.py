"""Parameters that a phase trains and to which none of its losses sends a gradient: a mistake of the method or of the recipe."""

from __future__ import annotations

from collections.abc import Callable

from ..errors import RecipeError
from .stage import Stage


def look_for_idle(stage: Stage, say: Callable[[str], None]) -> None:
    """After the first backward of a start, before its gradients are forgotten.

    Told to ``say``; raises RecipeError where DDP would wait for these gradients in the next step.
    """
    names, session = stage.wrapped.idle(), stage.session
    if not names:
        return
    more = f" and {len(names) - 1} more parameters" if len(names) > 1 else ""
    told = f"phase {stage.phase.name!r} trains {names[0]!r}{more}, to which none of its losses sends a gradient"
    if session.size > 1 and session.parallel == "ddp":
        raise RecipeError(f"{told}, and the ranks would wait for it: use it in a loss, freeze it, or leave it out")
    say(f"warning: {told}: it stays as it is")
