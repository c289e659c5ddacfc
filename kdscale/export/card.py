"""The model card: ``README.md`` with the metadata that the Hub reads, and a body that says how to repeat and doubt the result.

A distilled student is none of the Hub's relations to a base model (adapter, merge, quantized, finetune), so its teacher is
named by a tag and in the text, not as ``base_model``. Results carry their crop and seed: accuracy at another crop is another number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..errors import ExportError
from .facts import slug

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .facts import Evaluation, Facts, Teacher


def card(architecture: str, facts: Facts, *, family: str, inference: str, parameters: int) -> str:
    """The whole text of ``README.md``. ``family``: 'timm' or 'cifar'; ``inference``: which heads answer, in words."""
    metadata = card_data(architecture, facts, family)
    body = "\n\n".join(
        (
            f"# {architecture}.{facts.tag}",
            _what(architecture, facts, inference, parameters),
            "## Results",
            _results(facts),
            "## How it was made",
            _made(facts),
            "## Use",
            _use_timm(facts) if family == "timm" else _use_torch(),
            "## Limits",
            _limits(facts),
        )
    )
    return f"---\n{metadata.to_yaml()}\n---\n\n{body}\n"


def card_data(architecture: str, facts: Facts, family: str) -> Any:
    """The metadata, as huggingface_hub's ModelCardData; its ``eval_results`` become the ``model-index``."""
    teachers = [f"teacher:{teacher.name.rsplit('/', 1)[-1]}" for teacher in facts.teachers]
    return ModelCardData(
        license=facts.license,
        library_name="timm" if family == "timm" else "pytorch",
        pipeline_tag="image-classification",
        tags=["image-classification", "knowledge-distillation", "kdscale", f"method:{facts.method}", *teachers],
        datasets=[facts.dataset_id] if facts.dataset_id else None,
        metrics=["accuracy"],
        model_name=f"{architecture}.{facts.tag}",
        eval_results=list(_eval_results(facts)) or None,
    )


def _eval_results(facts: Facts) -> Iterable[Any]:
    for evaluation in filter(facts.measures_this, facts.evaluations):
        circumstances = {
            "crop_pct": facts.crop_pct, "interpolation": facts.interpolation, "size": facts.size,
            "seed": facts.seed, "epoch": evaluation["epoch"], "images": evaluation["count"],
        }  # fmt: skip
        for metric, name in (("top1", "Top-1 accuracy"), ("top5", "Top-5 accuracy")):
            yield EvalResult(
                task_type="image-classification",
                task_name="Image classification",
                dataset_type=facts.dataset_id or slug(facts.dataset),
                dataset_name=facts.dataset,
                dataset_split=evaluation["split"],
                dataset_args=circumstances,
                metric_type="accuracy",
                metric_name=name,
                metric_value=round(float(evaluation[metric]), 6),  # type: ignore[literal-required]
                metric_args={"k": 1 if metric == "top1" else 5},
            )


def _what(architecture: str, facts: Facts, inference: str, parameters: int) -> str:
    taught = f", taught by {' and '.join(f'`{teacher.name}`' for teacher in facts.teachers)}" if facts.teachers else ""
    classes = len(facts.label_names)
    classes_text = f" in {classes:,} classes" if classes else ""
    return (
        f"An image classifier of the architecture `{architecture}` ({parameters / 1e6:.2f} million parameters, float32), trained on"
        f" {facts.dataset}{classes_text} with the method `{facts.method}` ({facts.paper}){taught}."
        f" These are the weights of `{facts.what}`; {inference}."
    )


def _results(facts: Facts) -> str:
    if not facts.evaluations:
        return "Not evaluated."
    rows = [
        f"| {_named(e, facts)} | {e['split']} | {e['top1']:.2%} | {e['top5']:.2%} | {e['count']:,} | {e['epoch']:g} |"
        for e in facts.evaluations
    ]
    table = "\n".join(("| answer | split | top-1 | top-5 | images | epoch |", "|---|---|---|---|---|---|", *rows))
    return (
        f"{table}\n\nAt {facts.size} x {facts.size} pixels, crop {facts.crop_pct:g}, {facts.interpolation} interpolation;"
        f" one run, seed {facts.seed}."
    )


def _named(evaluation: Evaluation, facts: Facts) -> str:
    return f"**{evaluation['name']}** (this file)" if facts.measures_this(evaluation) else evaluation["name"]


def _made(facts: Facts) -> str:
    lines = [
        f"- Command: `{facts.command}` (kdscale {facts.version}); the whole recipe is `recipe.json`.",
        f"- Recipe hash: `{facts.recipe_hash}`",
        *(_teacher(teacher) for teacher in facts.teachers),
        f"- Pixels: mean {_numbers(facts.mean)}, standard deviation {_numbers(facts.std)} of the data.",
    ]
    if facts.hardware:
        lines.append(f"- Hardware: {facts.hardware}")
    if facts.seconds:
        lines.append(f"- Time: {_duration(facts.seconds)}")
    if facts.date:
        lines.append(f"- Date: {facts.date}")
    return "\n".join(lines)


def _teacher(teacher: Teacher) -> str:
    accuracy = "accuracy not measured" if teacher.accuracy is None else f"top-1 {teacher.accuracy:.2%}"
    weights = "" if teacher.sha256 is None else f", weights sha256 `{teacher.sha256}`"
    return f"- Teacher: `{teacher.name}`, {accuracy}{weights}"


def _numbers(numbers: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{number:g}" for number in numbers) + ")"


def _duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{seconds / 60:.1f} min"


def _use_timm(facts: Facts) -> str:
    return f"""\
With timm (a local folder; from the Hub, `hf-hub:ORG/NAME` in the place of `local-dir:FOLDER`):

```python
import timm
from PIL import Image

model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
logits = model(transform(Image.open("image.jpg").convert("RGB"))[None])
```

With transformers:

```python
from transformers import pipeline

classify = pipeline("image-classification", model="FOLDER")
classify("image.jpg")
```

The evaluation crop is {facts.crop_pct:g}; another one gives other numbers."""


def _use_torch() -> str:
    return """\
timm and transformers do not know this architecture; `model.py` holds it and needs torch alone:

```python
import sys

sys.path.insert(0, "FOLDER")
from model import load

model = load("FOLDER")  # in eval mode; images [N,3,H,W], normalised as config.json says
```"""


def _limits(facts: Facts) -> str:
    lines = [
        f"- Trained and measured on {facts.dataset} alone; nothing is known of other images.",
        "- One run: a difference from another run that is smaller than the spread over seeds says nothing.",
    ]
    if facts.teachers:
        lines.append(
            "- It may have taken over its teacher's errors; the licence of the teacher's weights and of the data may bind its use."
        )
    if not facts.label_names:
        lines.append("- The data do not name their classes: labels are numbers.")
    return "\n".join(lines)


def read_card(text: str) -> tuple[str, Any]:
    """(title, metadata) of a card's text. Raises ExportError where the metadata is no valid card's or there is no title."""
    try:
        data = ModelCard(text).data
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise ExportError(f"README.md has no valid metadata ({' '.join(str(error).split())}): export again") from None
    if not data.pipeline_tag:
        raise ExportError("README.md has no pipeline_tag in its metadata: it is not an export's card; export again")
    title = next((line[2:].strip() for line in text.split("\n") if line.startswith("# ")), "")
    return title, data
