"""``model.py`` of an export that timm does not know: the network's own source and a loader, needing torch and nothing else.

``networks/cifar/walk.py`` and the one file of the network's family are joined, followed by ``read_safetensors`` and ``load``
below: their definitions verbatim, so what a stranger reads is what was trained, and their imports gathered at the top. Weights are read without the safetensors package.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import json
from pathlib import Path

import torch

from ..networks import cifar
from ..networks.cifar import build, walk

OWN_IMPORTS = "import json\nfrom pathlib import Path\nimport torch"
"""Of the functions below."""


def standalone_source(name: str) -> str:
    """The text of ``model.py`` for the network ``name``. Raises ValueError for one that is not known."""
    base, family = (inspect.getsource(module) for module in (walk, cifar.family_of(name)))
    docstring = "\n\n".join(ast.get_docstring(ast.parse(source)) or "" for source in (family, base))
    functions = [inspect.getsource(function).strip() for function in (read_safetensors, load)]
    definitions = "\n\n\n".join([_gathered(OWN_IMPORTS, base, family), _definitions(base), _definitions(family), *functions])
    return f'"""{docstring}\n"""\n\nfrom __future__ import annotations\n\n{definitions}\n'


def _imports(source: str) -> list[ast.Import | ast.ImportFrom]:
    return [node for node in ast.parse(source).body if isinstance(node, ast.Import | ast.ImportFrom)]


def _definitions(source: str) -> str:
    """All that follows the imports."""
    return "\n".join(source.splitlines()[max(node.end_lineno or 0 for node in _imports(source)) :]).strip()


def _gathered(*sources: str) -> str:
    """The imports of all sources, but those from one another, as one sorts them: the standard library's, then torch's."""
    plain: set[str] = set()
    named: dict[str, set[str]] = {}
    for node in itertools.chain.from_iterable(map(_imports, sources)):
        names = {alias.name for alias in node.names}
        if isinstance(node, ast.Import):
            plain |= names
        elif not node.level and node.module and node.module != "__future__":
            named.setdefault(node.module, set()).update(names)
    lines = [f"import {name}" for name in sorted(plain)]
    lines += [f"from {module} import {', '.join(sorted(names))}" for module, names in sorted(named.items())]
    parts = [[line for line in lines if ("torch" in line) == of_torch] for of_torch in (False, True)]
    return "\n\n".join("\n".join(part) for part in parts)


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
