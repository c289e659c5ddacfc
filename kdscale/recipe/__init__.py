"""What a person writes: a recipe is a typed, frozen value, equal to its JSON. Nothing here imports torch."""

from .core import Checkpointing, Ema, Evaluation, Machine, Phase, Recipe
from .data import Augment, Data, Order
from .frozen import value
from .method import Method, Needs, Paper, method_of_kind, numbered
from .networks import FromPhase, Model, Stored
from .optim import SGD, AdamW, Constant, Cosine, MultiStep, Part, Plateau, Timm
from .paths import override
from .resolve import resolve
from .text import from_json, from_plain, from_yaml, to_json, to_plain, to_yaml

__all__ = [
    "SGD", "AdamW", "Augment", "Checkpointing", "Constant", "Cosine", "Data", "Ema", "Evaluation", "FromPhase", "Machine",
    "Method", "Model", "MultiStep", "Needs", "Order", "Paper", "Part", "Phase", "Plateau", "Recipe", "Stored", "Timm",
    "from_json", "from_plain", "from_yaml", "method_of_kind", "numbered", "override", "resolve", "to_json", "to_plain", "to_yaml",
    "value",
]  # fmt: skip
