"""``model.py`` of an export that timm does not know: the network's own source and a loader, needing torch and nothing else.

The source of ``networks/cifar.py`` goes in verbatim (that file imports torch alone), followed by the functions below from
``read_safetensors`` on; so what a stranger reads is what was trained. Weights are read without the safetensors package.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import torch

from ..networks import cifar
from ..networks.cifar import build


def standalone_source() -> str:
    """The text of ``model.py``."""
    imports = "import json  # noqa: E402\nfrom pathlib import Path  # noqa: E402"
    functions = "\n\n\n".join(inspect.getsource(function).rstrip() for function in (read_safetensors, load))
    return f"{inspect.getsource(cifar).rstrip()}\n\n\n{imports}\n\n\n{functions}\n"


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a safetensors file by name: a length in 8 bytes, a header in JSON, then the bytes (little-endian)."""
    data = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    kinds = {"F32": torch.float32, "I64": torch.int64}
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = (start + offset for offset in entry["data_offsets"])
        flat = torch.frombuffer(data[begin:end], dtype=kinds[entry["dtype"]])
        tensors[name] = flat.reshape(entry["shape"])
    return tensors


def load(folder: str | Path = ".") -> torch.nn.Module:
    """The trained network of an exported folder, in eval mode. Images ``[N,3,H,W]``, normalised as ``config.json`` says."""
    place = Path(folder)
    config = json.loads((place / "config.json").read_text(encoding="utf-8"))
    model = build(config["architecture"], config["num_classes"])
    model.load_state_dict(read_safetensors(place / "model.safetensors"))
    return model.eval()
