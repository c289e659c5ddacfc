"""What a label, a row and a score are. Classification alone stands behind the seam."""

from __future__ import annotations

from ..errors import RecipeError
from ..recipe import Recipe
from .classification import Classification
from .task import Metric, Rows, Task, logits_of


def task_of(recipe: Recipe) -> Task:
    """The task of a recipe's data. Raises RecipeError for a method that does not support it."""
    task = Classification()
    for phase in recipe.phases:
        if task.name not in phase.method.supports:
            kinds = ", ".join(sorted(phase.method.supports))
            raise RecipeError(f"{type(phase.method).__name__} is a method for {kinds}, and these data are for {task.name}")
    return task


__all__ = ["Classification", "Metric", "Rows", "Task", "logits_of", "task_of"]
