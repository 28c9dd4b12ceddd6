"""One opening of every merge: keywords, over a recipe, over a suite, become one checked request."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskmerge.experts.arguments import Arguments
from taskmerge.experts.inputs import InputOptions
from taskmerge.merging.from_recipe import from_recipe
from taskmerge.merging.from_suite import from_suite
from taskmerge.merging.options import RunOptions, split_options
from taskmerge.specs.merge import MergeSpec
from taskmerge.specs.suite import Suite


@dataclass(frozen=True, slots=True)
class Request:
    """A merge as it is asked for: of what, what shapes the result, how inputs are understood, how the run goes."""

    inputs: Arguments
    spec: MergeSpec
    opening: InputOptions
    running: RunOptions


def requested(
    inputs: Arguments, keywords: Mapping[str, Any], *, suite: Suite | str | Path | None = None,
    recipe: Path | Mapping[str, Any] | None = None,
) -> Request:  # fmt: skip
    """The merge that these inputs and keywords of `merge` ask for; an absent keyword or None has its usual value.

    What they don't say a recipe says (YAML, a mapping, or a merged file), and what that does not say the suite. Headers
    of what a recipe or a suite names may be read, weights never. Raises `TaskmergeError`.
    """
    keywords = {name: value for name, value in keywords.items() if value is not None}
    if recipe is not None:
        inputs, keywords = from_recipe(recipe, inputs, keywords)
    if suite is not None:
        inputs, keywords = from_suite(suite, inputs, keywords)
    return Request(inputs, *split_options(keywords))
