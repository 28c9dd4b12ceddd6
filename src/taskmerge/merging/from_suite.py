"""What a suite says about a merge: its experts, its base, how attention is merged, and which tensors are task heads."""

from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from taskmerge.checkpoint.held import open_place
from taskmerge.checkpoint.hub import resolve
from taskmerge.checkpoint.provenance import provenance_of
from taskmerge.errors import TaskmergeError, UsageError, listed
from taskmerge.experts.arguments import Arguments, named
from taskmerge.experts.compare import mending_prefix, selected
from taskmerge.experts.earlier import same_file
from taskmerge.experts.lora_names import is_adapter
from taskmerge.merging.heads import FOLDER, heads_folder
from taskmerge.merging.outputs import is_folder
from taskmerge.specs.heads import head_names
from taskmerge.specs.merge import MergeSpec
from taskmerge.specs.suite import Suite
from taskmerge.specs.suite_file import find_suite, load_suite

Keywords = dict[str, Any]
Names = frozenset[str]


def from_suite(
    suite: str | Path | Suite, inputs: Arguments, keywords: Mapping[str, Any]
) -> tuple[Arguments, dict[str, Any]]:
    """Inputs and keywords of `merge`, completed by a suite: its file, its folder, a packaged name, or itself.

    Without inputs these are the suite's experts by task, and where the base's names are theirs but for a prefix, that
    prefix is taken off. Heads are not merged: where some task's head is its expert's own, all are kept per task, else
    left out. Hub locations are fetched, the base only for a merge that reads it. A suite without an expert is a
    `UsageError` if they are needed; other errors are those of the suite's file and of the hub.
    """
    if not isinstance(suite, Suite):
        suite = load_suite(find_suite(Path(suite))[0])
    completed, told = dict(keywords), list[str]()
    own = not inputs
    if own:
        inputs, notes = _experts(suite)
        told += notes
    headers = _headers(inputs, allow_pickle=bool(keywords.get("allow_pickle")))
    for decide in (_base, _qkv, *([_prefix] if own else []), _heads):
        more, notes = decide(suite, completed, headers)
        completed, told = completed | more, [*told, *notes]
    return inputs, {**completed, "told": tuple(told)}


def _experts(suite: Suite) -> tuple[dict[str, Path], list[str]]:
    """Task -> expert."""
    experts = {task.name: resolve(task.expert) for task in suite.tasks if task.expert is not None}
    if not experts:
        raise UsageError("it names no expert", where=suite.where, hint="give the fine-tuned checkpoints as arguments")
    without = [task.name for task in suite.tasks if task.name not in experts]
    notes = [f"merging the {len(experts)} experts of {suite.where}"]
    return experts, notes + ([f"{suite.where} names no expert of {listed(without, plain=True)}"] if without else [])


def _headers(inputs: Arguments, *, allow_pickle: bool) -> dict[str, Names | None]:
    """Task -> the names in an expert's header; None for what is no plain checkpoint (adapters, vectors, factors).

    What cannot be read is left out: whoever opens it to be merged says why.
    """
    headers: dict[str, Names | None] = {}
    for task, place in named(inputs):
        with suppress(TaskmergeError):
            if is_adapter(place):
                headers[task] = None
                continue
            with open_place(place, allow_pickle=allow_pickle) as checkpoint:
                plain = (provenance_of(checkpoint) or {}).get("kind") not in ("vector", "factors")
                headers[task] = frozenset(checkpoint.specs) if plain else None
    return headers


# --- what is decided, and the notes that say so ----------------------------------------------------------------


def _base(suite: Suite, options: Keywords, headers: Mapping[str, Names | None]) -> tuple[Keywords, list[str]]:
    """The suite's base; one that lies on a hub only where it is read."""
    if suite.base is None or options.get("base") is not None:
        return {}, []
    if not isinstance(suite.base, Path) and not _reads_base(options, headers):
        return {}, [f"the base of {suite.where} is not fetched: this merge does not read it"]
    base = resolve(suite.base)
    note = f"the base is {base}, as {suite.where} says (--base names another)"
    return {"base": base, "base_rule": f"the base of {suite.where}"}, [note]


def _reads_base(options: Keywords, headers: Mapping[str, Names | None]) -> bool:
    """Whether task vectors are merged, or given, or the base stands in for what an expert lacks."""
    chain = MergeSpec(**{name: options[name] for name in ("method", "then") if name in options}).chain()
    deltas = any(method.space == "delta" for method in chain)
    return deltas or options.get("on_missing") == "base" or None in headers.values()


def _qkv(suite: Suite, options: Keywords, headers: Mapping[str, Names | None]) -> tuple[Keywords, list[str]]:
    if "qkv" in options or suite.qkv == "as-is":
        return {}, []
    return {"qkv": suite.qkv}, [f"q, k and v are merged {suite.qkv}, as {suite.where} says (--qkv decides)"]


def _prefix(suite: Suite, options: Keywords, headers: Mapping[str, Names | None]) -> tuple[Keywords, list[str]]:
    """The prefix without which the base and all experts have the same names, if that is all that keeps them apart."""
    if "strip_prefix" in options or options.get("base") is None or not _reads_base(options, headers):
        return {}, []
    base = _headers({"base": options["base"]}, allow_pickle=bool(options.get("allow_pickle"))).get("base")
    prefix = mending_prefix([names for names in headers.values() if names], base) if base else ""
    if not prefix:
        return {}, []
    note = f"names are taken without the prefix `{prefix}`: so those of the base and of the experts agree"
    return {"strip_prefix": prefix}, [f"{note} (--strip-prefix decides)"]


def _heads(suite: Suite, options: Keywords, headers: Mapping[str, Names | None]) -> tuple[Keywords, list[str]]:
    """Heads are kept per task if some task's is its expert's own; else those that experts carry along are left out."""
    if "heads" in options:
        return {}, []
    spec = MergeSpec(include=options.get("include", ()), exclude=options.get("exclude", ()))
    prefix = options.get("strip_prefix", "")
    bare = {task: [name.removeprefix(prefix) for name in names or ()] for task, names in headers.items()}
    heads = {task: head_names(selected(names, spec)) for task, names in bare.items()}
    if any(task.head == "expert" for task in suite.tasks):
        _refuse_lost_heads(suite, options, [task for task, names in heads.items() if names])
        note = f"heads are kept per task in {FOLDER}/ beside the output, as {suite.where} says (--heads decides)"
        return {"heads": "keep"}, [note]
    every = sorted(frozenset().union(*heads.values()))
    if not every:
        return {}, []
    note = f"left out {len(every)} tensors of heads, which {suite.where} has elsewhere: {listed(every)}"
    return {"exclude": (*spec.exclude, *every)}, [f"{note} (--heads keep keeps them per task)"]


def _refuse_lost_heads(suite: Suite, options: Keywords, tasks: Collection[str]) -> None:
    """A head file of the suite is no place for the head that an expert happens to carry; `tasks` are those that do."""
    output = Path(options.get("output") or "merged.safetensors")
    folder = heads_folder(output, is_folder(output))
    for task in suite.tasks:
        path = folder / f"{task.name}.safetensors"
        if task.name in tasks and isinstance(task.head, Path) and same_file(task.head, path):
            raise UsageError(
                f"the suite's head of {task.name} would be lost: the one that its expert carries is kept there",
                where=str(path), hint="choose another place with -o",
            )  # fmt: skip
