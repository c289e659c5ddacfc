"""Run alone by a fresh interpreter, never imported: loads an export as a stranger would, and answers stored questions.

``python -P fresh.py LOADER FOLDER QUESTIONS ANSWERS``. LOADER is ``timm``, ``transformers`` or ``torch``; QUESTIONS is a
safetensors file with ``images [N,C,H,W]``; ANSWERS gets ``logits [N,C]``. kdscale cannot be imported here, installed or not;
all else is found as the user finds it (an isolated interpreter would miss what a cluster gives through ``PYTHONPATH``).
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file


def by_timm(folder: Path) -> Any:
    import timm

    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    same_keys(folder, set(model.state_dict()))
    return model


def by_transformers(folder: Path) -> Any:
    from transformers import AutoModelForImageClassification

    model, found = AutoModelForImageClassification.from_pretrained(folder, output_loading_info=True, local_files_only=True)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if found.get(kind):
            raise SystemExit(f"{kind.replace('_', ' ')}: {sorted(found[kind])[:5]}")
    names = json.loads((folder / "config.json").read_text())["label_names"]
    if [model.config.id2label[number] for number in range(len(names))] != names:
        raise SystemExit("other label names than config.json has")

    def logits(images: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = model.eval()(pixel_values=images).logits
        return answer

    return logits


def by_torch(folder: Path) -> Any:
    spec = importlib.util.spec_from_file_location("model", folder / "model.py")
    if spec is None or spec.loader is None:
        raise SystemExit("model.py cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules["model"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    model = module.load(folder)
    same_keys(folder, set(model.state_dict()))
    return model


def same_keys(folder: Path, wanted: set[str]) -> None:
    with safe_open(folder / "model.safetensors", "pt") as file:
        held = set(file.keys())
    if held != wanted:
        raise SystemExit(
            f"keys that are not the architecture's: {sorted(held - wanted)[:5]}; missing: {sorted(wanted - held)[:5]}"
        )


def main(loader: str, folder: Path, questions: Path, answers: Path) -> None:
    sys.modules["kdscale"] = None  # type: ignore[assignment]  # makes every import of it an ImportError
    torch.set_num_threads(1)
    model = {"timm": by_timm, "transformers": by_transformers, "torch": by_torch}[loader](folder)
    if isinstance(model, torch.nn.Module):
        model.eval()
    with torch.no_grad():
        logits = model(load_file(questions)["images"])
    save_file({"logits": logits.float().contiguous()}, answers)


if __name__ == "__main__":
    main(sys.argv[1], *(Path(word) for word in sys.argv[2:5]))
