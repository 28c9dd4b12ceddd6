"""What a recipe says about a merge: its experts, base and output, what shapes the result, options of the method."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from taskmerge.errors import UsageError
from taskmerge.experts.arguments import Arguments
from taskmerge.merging.options import grid
from taskmerge.merging.replay import replayed, with_learned
from taskmerge.specs.load import Recipe, load_recipe, parse_recipe
from taskmerge.specs.merge import MergeSpec
from taskmerge.specs.paths import beside


def from_recipe(
    said: Path | Mapping[str, Any], inputs: Arguments, keywords: Mapping[str, Any]
) -> tuple[Arguments, dict[str, Any]]:
    """Inputs and keywords of `merge`, completed by a recipe: a YAML file, what one would hold, or a merged checkpoint.

    The paths in a YAML file are relative to it, those in a mapping to the working directory; the experts of a merged
    checkpoint are found again by content. Raises `UsageError` for a wrong recipe, `BadFile` for what cannot be read or
    found.
    """
    if isinstance(said, Path) and _is_merged(said):
        again, replay = replayed(said, inputs, allow_pickle=bool(keywords.get("allow_pickle")))
        decided = {"qkv": MergeSpec().qkv, "heads": MergeSpec().heads}  # no suite decides it again
        return again, {**decided, **replay, **keywords}
    recipe = load_recipe(said) if isinstance(said, Path) else parse_recipe(said, "recipe")
    folder = said.parent if isinstance(said, Path) else Path()
    completed = {**with_learned(recipe.shape, folder), **_options(recipe, {**recipe.shape, **keywords})}
    if recipe.weights:
        completed["weights"] = dict(recipe.weights)
    if recipe.base:
        completed["base"] = beside(folder, recipe.base)
    if recipe.output:
        completed["output"] = beside(folder, recipe.output)
    return inputs or _experts(recipe, folder), {**completed, **keywords}


def _is_merged(path: Path) -> bool:
    """Whether this is a checkpoint (a file, an index, a folder), by its name alone."""
    return path.suffix == ".safetensors" or os.path.isdir(path) or path.name.endswith(".index.json")


def _experts(recipe: Recipe, folder: Path) -> Arguments:
    """The recipe's experts, relative to its folder."""
    if isinstance(recipe.experts, Mapping):
        return {task: beside(folder, path) for task, path in recipe.experts.items()}
    return [_beside(folder, text) for text in recipe.experts]


def _beside(folder: Path, text: str) -> str:
    """A path, a glob, or `name=path`, relative to a folder."""
    name, equals, path = text.partition("=")
    return f"{name}={beside(folder, path)}" if equals and not (folder / text).exists() else str(beside(folder, text))


def _options(recipe: Recipe, shape: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe's options of the method, checked with the places where they stand."""
    spec = MergeSpec(**{name: shape[name] for name in ("method", "then", "lines") if name in shape})
    options: dict[str, Any] = {}
    for name, value in recipe.options.items():
        try:
            options |= grid(spec, {name: value}) if value is not None else {}
        except UsageError as error:
            place = recipe.places.get(f"options.{name}")
            raise UsageError(error.what, where=place, hint=error.hint) from None
    return options
