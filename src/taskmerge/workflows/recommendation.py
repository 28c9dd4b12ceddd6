"""A merge to try, from a spectrum: as a command, as a recipe, and with the ground it stands on."""

import os
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from taskmerge.experts.inputs import Inputs
from taskmerge.experts.shell_words import input_word, options, quote
from taskmerge.merging.kernels import bind_points
from taskmerge.merging.options import split_options
from taskmerge.methods.registry import DEFAULT
from taskmerge.spectra.forecast import CANDIDATES, TRIALS, Forecast, Ground, Merge, Trial, ranked

SHAPING = (
    "also", "keep_base", "include", "exclude", "on_missing", "strip_prefix", "map", "qkv", "allow_merged",
    "allow_pickle",
)  # fmt: skip
"""Keywords of a spectrum that its merge has too."""
SHOWN = 5
UNTRIED = Merge(DEFAULT, 0.08, 1.0)
"""What is recommended where nothing is forecast."""
Document = dict[str, Any]


def recommendation(
    document: Mapping[str, Any], inputs: Inputs, keywords: Mapping[str, Any], *, heads: bool
) -> Document | None:
    """What to merge `inputs` by, of which `document` is the spectrum; None of one expert. `keywords` are those that the
    spectrum was asked with, `heads` says whether task heads are left aside."""
    if len(inputs.experts) < 2:
        return None
    ground = Ground.of(document)
    found = ranked(ground, CANDIDATES) if ground is not None else []
    best = found[0] if found and holds(TRIALS) else None
    usual = next((one for one in found if one.merge == UNTRIED), None)
    shown = best or usual
    merge = shown.merge if shown else UNTRIED
    shape = _shape(merge, keywords, heads=heads)
    spec, _, _ = split_options(shape)
    recipe = spec.recipe(bind_points(spec, len(inputs.experts))[0].values)
    words = _command(shape, inputs)
    return {
        "method": merge.method,
        "options": _options(merge),
        "arguments": words,
        "command": None if words is None else " ".join(map(quote, words)),
        "recipe": recipe,
        "forecast": None if best is None or ground is None else _forecast(ground, best),
        "others": [{**_named(one.merge), "kept": _rounded(one.mean)} for one in found[1 : 1 + SHOWN]] if best else [],
        "tested": [_tested(one) for one in TRIALS],
        "ground": _ground(document, ground, best),
    }


def holds(tested: tuple[Trial, ...]) -> bool:
    """Whether the forecast tells merges of some experts apart better than chance, on every suite it was tested on."""
    return bool(tested) and all(one.correlation[1] > 0 and one.choice[1] > 0 for one in tested)


def _shape(merge: Merge, keywords: Mapping[str, Any], *, heads: bool) -> Document:
    """The keywords of the merge."""
    own = {name: value for name in SHAPING if (value := keywords.get(name))}
    own = {name: tuple(value) if isinstance(value, list) else value for name, value in own.items()}
    return {"method": merge.method, **_options(merge), **own, **({"heads": "keep"} if heads else {})}


def _options(merge: Merge) -> Document:
    """The options of its method."""
    return {name: value for name in ("rank", "coefficient") if (value := getattr(merge, name)) is not None}


def _named(merge: Merge) -> Document:
    return {"method": merge.method, "options": _options(merge)}


def _command(shape: Document, inputs: Inputs) -> list[str] | None:
    """The words of the merge for a shell; None of what is in memory."""
    base = inputs.base
    if not all(os.path.exists(source.where) for source in inputs.sources):
        return None
    keywords = {**shape, "base": Path(base.where) if base is not None else None}
    said = [word for group in options(keywords) for word in group]
    names = [input_word(expert) for expert in inputs.experts]
    folder = all(os.path.isdir(source.where) for source in inputs.sources)
    output = f"merged-{shape['method'].replace('_', '-')}{'/' if folder else '.safetensors'}"
    return ["taskmerge", "merge", *said, *names, "-o", output]


# --- the ground ------------------------------------------------------------------------------------------------


def _forecast(ground: Ground, best: Forecast) -> Document:
    return {
        "kept": {task: _rounded(value) for task, value in zip(ground.tasks, best.kept.tolist(), strict=True)},
        "mean": _rounded(best.mean),
    }


def _tested(one: Trial) -> Document:
    triples = {name: dict(zip(("value", "low", "high"), getattr(one, name), strict=True))
               for name in ("correlation", "choice", "error")}  # fmt: skip
    return {"suite": one.suite, "subsets": one.subsets, "merges": one.merges, **triples, "always": one.always}


def _ground(document: Mapping[str, Any], ground: Ground | None, best: Forecast | None) -> list[str]:
    """Why this one, in sentences; that nothing is forecast, where that is so."""
    usual = f"the default method with its usual options ({UNTRIED.method}, rank {UNTRIED.rank})"
    if ground is None:
        return [
            f"{usual}: nothing is forecast without a base, two tasks that differ from it, and ranks that are shares"
        ]
    lines = [_between(document, ground)]
    if best is None:
        return [f"{usual}: {untold(TRIALS)}", *lines]
    worst = int(best.kept.argmin())
    lines.insert(0, (
        f"of {len(CANDIDATES)} merges it keeps most by the forecast: {best.mean:.0%} of what fine-tuning gained over "
        f"the base, on average, and least of {ground.tasks[worst]} ({best.kept[worst]:.0%})"
    ))  # fmt: skip
    return [*lines, *(told(one) for one in TRIALS)]


def _between(document: Mapping[str, Any], ground: Ground) -> str:
    """What the forecast rests on, beside chance."""
    whole = next(one for one in document["groups"] if one["space"] == "delta" and one["by"] == "all")
    cosines = [value for value in whole["cosine"]["value"] if value is not None]
    seen, level = ([value for row in whole["interference"][key] for value in row if value is not None]
                   for key in ("value", "chance"))  # fmt: skip
    return (
        f"task vectors have a mean cosine of {fmean(cosines or [0]):.3f} (chance 0), and {fmean(seen or [0]):.1%} of "
        f"their leading components' energy lies in each other's spaces (chance {fmean(level or [0]):.1%})"
    )


def told(one: Trial) -> str:
    """How good the forecast was on a suite, in a sentence."""
    (r, low, high), (c, least, most), (e, _, _) = one.correlation, one.choice, one.error
    return (
        f"tested once on {one.merges} merges of {one.subsets} subsets of {one.suite}: rank correlation {r:.2f} "
        f"[{low:.2f}, {high:.2f}] over all, {c:.2f} [{least:.2f}, {most:.2f}] among the merges of one subset; mean "
        f"error {100 * e:.0f} points of score (one share for all: {100 * one.always:.0f})"
    )


def untold(tested: tuple[Trial, ...]) -> str:
    """Why there is no score, in words."""
    failed = [one for one in tested if one.correlation[1] <= 0 or one.choice[1] <= 0]
    if not failed:
        return "the forecast was not tested"
    of = "; ".join(
        f"on {one.suite} its rank correlation is {_within(one.correlation)} over all merges, {_within(one.choice)} "
        "among those of one subset"
        for one in failed
    )
    return f"what a merge keeps cannot be forecast well enough from weights to choose by ({of})"


def _within(triple: tuple[float, float, float]) -> str:
    value, low, high = triple
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def _rounded(value: float) -> float:
    return round(value, 3) + 0.0
