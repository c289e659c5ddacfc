"""``phases/NN-name/<when>.safetensors``: what a phase left for later phases and for the export, read by prefix."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...errors import RunError


class PhaseFile:
    """``roles``: role -> prefix of its body among the names. Raises RunError where the file is missing or damaged."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            raise RunError(f"{path} is missing: the phase that should have left it is not finished in this folder")
        self.path = path
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata()
                self.names: list[str] = list(file.keys())
        except SafetensorError as error:
            raise RunError(f"{path} cannot be read ({error}): run the phase again") from None
        self.roles: dict[str, str] = json.loads(metadata["roles"])
        self.step = int(metadata["step"])

    def under(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names start with ``prefix``, without it."""
        with safe_open(self.path, "pt") as file:
            return {name[len(prefix) :]: file.get_tensor(name) for name in self.names if name.startswith(prefix)}

    def body(self, role: str) -> dict[str, Tensor]:
        """The state of the network in ``role``; ``ema`` is the student under its averaged weights."""
        state = self.under(self.roles["student" if role == "ema" else role])
        if role == "ema":
            averaged = self.under("ema/body.")
            if not averaged:
                raise RunError(f"{self.path} holds no EMA: the recipe has ema=null")
            state |= averaged
        return state
