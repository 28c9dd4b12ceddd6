"""A recipe as a file: what shapes a merge, and where its experts and its base are, relative to the file's folder."""

import os
from collections.abc import Mapping
from pathlib import Path

import yaml

FIRST = ("taskmerge", "method")


def recipe_text(recipe: Mapping[str, object], experts: Mapping[str, Path], base: Path | None, folder: Path) -> str:
    """The YAML of a recipe (that of `MergeSpec.recipe`, as it stands in a merged file) that will lie in `folder`.

    The same contents give the same text.
    """
    ordered = {key: recipe[key] for key in sorted(recipe, key=lambda key: (key not in FIRST, key))}
    places = {task: _relative(path, folder) for task, path in sorted(experts.items())}
    inputs: dict[str, object] = {"experts": places} | ({"base": _relative(base, folder)} if base else {})
    return yaml.safe_dump({**ordered, **inputs}, sort_keys=False, allow_unicode=True)


def _relative(path: Path, folder: Path) -> str:
    """A path from a folder that need not be there yet; links in the folder's own path are followed first."""
    return os.path.relpath(path.absolute(), os.path.realpath(folder))
