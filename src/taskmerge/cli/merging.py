"""What `taskmerge merge` does with its words: options over recipe over defaults, then plan, merge, show."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from taskmerge.checkpoint.ahead import Ahead
from taskmerge.cli import show, tokens
from taskmerge.errors import UsageError
from taskmerge.merging.from_suite import from_suite
from taskmerge.merging.merge import carry_out
from taskmerge.merging.options import Arguments, grid, split_options
from taskmerge.merging.prepare import Prepared, check_outputs, prepare
from taskmerge.merging.record import MergeReceipt
from taskmerge.merging.replay import replayed
from taskmerge.methods.registry import DEFAULT, problems
from taskmerge.specs.load import Recipe, load_overrides, load_recipe, load_weights
from taskmerge.specs.merge import CHOICES, MergeSpec
from taskmerge.specs.suite import Suite

VALUES = ("method", "then", "seed", "strip_prefix", "dtype", "base", "output", "device", "threads", *CHOICES)
LISTS = ("include", "exclude", "skip_input")
SWITCHES = ("lines", "keep_base", "allow_merged", "allow_pickle", "overwrite")


def run(words: Sequence[str], flags: Sequence[str], said: Mapping[str, Any], suite: Suite | None, ahead: Ahead) -> None:
    """Carries out one `merge` command; `suite` is what --suite names."""
    show.notices((), problems(), said["quiet"])
    arguments, options = tokens.split(words, flags)
    inputs, keywords = _with_recipe(arguments, {**_keywords(said), **options}, said)
    if suite is not None:
        known = {name: keywords[name] for name in ("method", "output") if name in keywords}
        inputs, keywords = from_suite(suite, inputs, keywords, **known)
    spec, opening, running = split_options(
        keywords.pop("method", DEFAULT), keywords.pop("base", None), keywords.pop("output", None),
        keywords.pop("weights", None), keywords,
    )  # fmt: skip
    if not inputs:
        raise UsageError("there is nothing to merge", hint="give the fine-tuned checkpoints, such as *.safetensors")
    if said["choose"] is not None and not said["dry_run"]:
        from taskmerge.cli import choosing  # what evaluates models costs a tenth of a second to import

        chosen = choosing.run(inputs, spec, opening, running, said, suite, ahead)
        _finish(chosen.receipt, (), chosen.to_dict(), said)
        return
    if said["dry_run"]:
        prepared = prepare(inputs, spec, opening, replace(running, overwrite=True))
        _dry_run(prepared, said)
        check_outputs(prepared, running)  # the plan is of use even where its output is in the way
        return
    prepared = prepare(inputs, spec, opening, running)
    _announce(prepared, said["quiet"])
    with show.Bar("merging", said["quiet"]) as progress:
        receipt = carry_out(prepared, replace(running, progress=progress.update), ahead)
    told = (*prepared.inputs.notes, *prepared.plan.notes, *prepared.inputs.warnings)
    _finish(receipt, told, receipt.to_dict(), said)


def _finish(
    receipt: MergeReceipt, told: Sequence[str], document: Mapping[str, object], said: Mapping[str, Any]
) -> None:
    """What the merge itself gave rise to say, its cost, and the result on stdout."""
    notes, warnings = ([one for one in many if one not in told] for many in (receipt.notes, receipt.warnings))
    show.notices(notes, warnings, said["quiet"])
    rate = show.size(receipt.bytes_read / max(receipt.seconds, 1e-9))
    show.say(f"done in {receipt.seconds:.1f} s ({rate}/s), peak memory {show.size(receipt.peak_memory)}", said["quiet"])
    show.document(document) if said["json"] else print("\n".join(receipt.paths))


def _announce(prepared: Prepared, quiet: bool) -> None:
    """The plan, notes and warnings, before the work."""
    for line in show.plan_lines(prepared):
        show.say(line, quiet)
    show.notices((*prepared.inputs.notes, *prepared.plan.notes), prepared.inputs.warnings, quiet)


def _dry_run(prepared: Prepared, said: Mapping[str, Any]) -> None:
    if said["json"]:
        show.document(show.plan_document(prepared))
        return
    _announce(prepared, said["quiet"])
    show.plan_table(prepared)


# --- what was said ---------------------------------------------------------------------------------------------


def _keywords(said: Mapping[str, Any]) -> dict[str, Any]:
    """What was said on the command line, as keywords of `merge`; what was not said is absent."""
    found: dict[str, Any] = {name: said[name] for name in VALUES if said[name] is not None}
    found |= {name: tuple(said[name]) for name in LISTS if said[name]}
    found |= {name: True for name in SWITCHES if said[name]}
    if said["also"]:
        found["also"] = tuple(part.strip() for part in said["also"].split(","))
    for name in ("shard_size", "max_memory"):
        if said[name]:
            found[name] = show.parse_size(said[name], f"--{name.replace('_', '-')}")
    if said["threads"] is not None and said["threads"] < 1:
        raise UsageError(f"{said['threads']} threads cannot work", where="--threads", hint="give 1 or more")
    if said["no_digest"]:
        found["digests"] = False
    weights = {**(load_weights(said["coefficients"]) if said["coefficients"] else {}), **_weights(said["weight"] or [])}
    return found | ({"weights": weights} if weights else {})


def _weights(pairs: Sequence[str]) -> dict[str, float]:
    """NAME=VALUE pairs."""
    found: dict[str, float] = {}
    for pair in pairs:
        name, equals, value = pair.rpartition("=")
        try:
            number = float(value)
        except ValueError:
            equals = ""
        if not equals or not name:
            raise UsageError(f"`{pair}` is no NAME=VALUE", where="--weight", hint="such as --weight mnist=1.5")
        if name in found:
            raise UsageError(f"`{name}` has two weights", where="--weight", hint="give each task one")
        found[name] = number
    return found


def _with_recipe(
    arguments: Sequence[str], given: dict[str, Any], said: Mapping[str, Any]
) -> tuple[Arguments, dict[str, Any]]:
    """Arguments and keywords with the recipe underneath: the command line wins, then --set, then the file."""
    above = {**load_overrides(said["set_"] or []), **given}
    path = said["recipe"]
    if path is None:
        return arguments, above
    if path.suffix == ".safetensors" or os.path.isdir(path) or path.name.endswith(".index.json"):
        inputs, keywords = replayed(path, arguments, allow_pickle=said["allow_pickle"])
        decided = {"qkv": MergeSpec().qkv, "heads": MergeSpec().heads}  # no suite decides it again
        return inputs, {**decided, **keywords, **above}
    recipe = load_recipe(path)
    keywords = {**recipe.shape, **_options(recipe, {**recipe.shape, **above})}
    if recipe.weights:
        keywords["weights"] = dict(recipe.weights)
    if recipe.base:
        keywords["base"] = path.parent / recipe.base
    if recipe.output:
        keywords["output"] = path.parent / recipe.output
    return arguments or _experts(recipe, path.parent), {**keywords, **above}


def _experts(recipe: Recipe, folder: Path) -> Arguments:
    """The recipe's experts, relative to its folder."""
    if isinstance(recipe.experts, Mapping):
        return {task: folder / path for task, path in recipe.experts.items()}
    return [_beside(folder, text) for text in recipe.experts]


def _beside(folder: Path, text: str) -> str:
    """A path, a glob, or `name=path`, relative to a folder."""
    name, equals, path = text.partition("=")
    return f"{name}={folder / path}" if equals and not (folder / text).exists() else str(folder / text)


def _options(recipe: Recipe, shape: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe's options of the method, checked with the places where they stand."""
    spec = MergeSpec(method=shape.get("method", DEFAULT), then=shape.get("then"), lines=shape.get("lines", False))
    found: dict[str, Any] = {}
    for name, value in recipe.options.items():
        try:
            found |= grid(spec, {name: value}) if value is not None else {}
        except UsageError as error:
            place = recipe.places.get(f"options.{name}")
            raise UsageError(error.what, where=place, hint=error.hint) from None
    return found
