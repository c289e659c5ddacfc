"""Every registered method with its defaults, and settings that build other parts."""

from __future__ import annotations

import kdscale.methods
from kdscale.methods import Method, Shake
from kdscale.recipe import Method as AbstractMethod

from .small import kinds_for

assert kdscale.methods
REGISTRY: dict[str, type[Method]] = {k: c for k, c in AbstractMethod.registry.items() if c.__module__.startswith("kdscale.")}  # type: ignore[misc]
VARIANTS: dict[str, Method] = {
    "shake-fused": Shake(head="fused"),
    "shake-code": Shake(form="code"),
    "shake-labels": Shake(proxy_signal="ce", proxy_labels=True, warmup_epochs=3),
}
METHODS: dict[str, Method] = {kind: cls() for kind, cls in REGISTRY.items()} | VARIANTS
CASES: dict[str, tuple[Method, str]] = {f"{name}-{kind}": (m, kind) for name, m in METHODS.items() for kind in kinds_for(m)}
