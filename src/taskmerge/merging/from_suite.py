"""What a suite says about a merge: its experts, its base, and how attention is merged, wherever options don't."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from taskmerge.checkpoint.hub import resolve
from taskmerge.errors import UsageError
from taskmerge.merging.options import Arguments
from taskmerge.specs.suite import Suite
from taskmerge.specs.suite_file import find_suite, load_suite


def from_suite(said: str | Path, inputs: Arguments, options: Mapping[str, Any]) -> tuple[Arguments, dict[str, Any]]:
    """Inputs and keywords of `merge`, completed by the suite `said` (a file, its folder, or a packaged name).

    Without inputs these are the suite's experts by task. Hub locations are fetched. A suite without an expert is a
    `UsageError` if they are needed; other errors are those of the suite's file and of the hub.
    """
    suite = load_suite(find_suite(Path(said))[0])
    found, told = dict(options), []
    if suite.base is not None and found.get("base") is None:
        found |= {"base": resolve(suite.base), "base_rule": f"the base of {suite.where}"}
        told.append(f"the base is {found['base']}, as {suite.where} says (--base names another)")
    if "qkv" not in options and suite.qkv != "as-is":
        found["qkv"] = suite.qkv
        told.append(f"q, k and v are merged {suite.qkv}, as {suite.where} says (--qkv decides)")
    if not inputs:
        inputs = _experts(suite)
        without = [task.name for task in suite.tasks if task.name not in inputs]
        told.append(f"merging the {len(inputs)} experts of {suite.where}")
        told += [f"{suite.where} names no expert of {', '.join(without)}"] if without else []
    return inputs, {**found, "told": tuple(told)}


def _experts(suite: Suite) -> dict[str, Path]:
    """Task -> expert."""
    found = {task.name: resolve(task.expert) for task in suite.tasks if task.expert is not None}
    if not found:
        raise UsageError("it names no expert", where=suite.where, hint="give the fine-tuned checkpoints as arguments")
    return found
