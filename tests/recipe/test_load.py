"""Finding a recipe by the words of a command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdscale.errors import RecipeError
from kdscale.recipe import Recipe, resolve, to_json, to_yaml
from kdscale.recipe.load import load, recipes_of, shipped


def test_every_shipped_recipe_loads_and_resolves() -> None:
    names = [name for name, _ in shipped()]
    assert {"quickstart", "imagenet/deit_tiny", "cifar100/wrn_40_2_wrn_16_2"} <= set(names)
    for _, path in shipped():
        for recipe in recipes_of(path).values():
            assert resolve(resolve(recipe)) == resolve(recipe)


def test_by_short_name_by_file_and_by_text(tmp_path: Path) -> None:
    recipe = load("imagenet/deit_tiny:shake")
    assert recipe.phases[0].method.kind == "shake"  # type: ignore[attr-defined]
    (tmp_path / "r.json").write_text(to_json(recipe))
    (tmp_path / "r.yaml").write_text(to_yaml(recipe))
    assert load(str(tmp_path / "r.json")) == load(str(tmp_path / "r.yaml")) == recipe
    assert isinstance(load("recipes/quickstart.py") if Path("recipes").is_dir() else load("quickstart"), Recipe)


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("imagenet/deit_tyny:shake", ["imagenet/deit_tyny", "imagenet/deit_tiny"]),
        ("imagenet/deit_tiny:shak", ["'shak'", "shake"]),
        ("imagenet/deit_tiny", ["several recipes", "deit_tiny:deit", "deit_tiny:shake"]),
    ],
)
def test_a_name_that_is_not_there_gets_the_nearest(reference: str, words: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        load(reference)
    for word in words:
        assert word in str(caught.value)


def test_a_file_that_is_no_recipe_is_one_line(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("1 / 0\n")
    with pytest.raises(RecipeError, match=r"broken\.py does not run: ZeroDivisionError"):
        load(str(broken))
    empty = tmp_path / "empty.py"
    empty.write_text("x = 1\n")
    with pytest.raises(RecipeError, match="defines no Recipe"):
        load(str(empty))
    noise = tmp_path / "noise.json"
    noise.write_text("{")
    with pytest.raises(RecipeError, match="not JSON"):
        load(str(noise))
