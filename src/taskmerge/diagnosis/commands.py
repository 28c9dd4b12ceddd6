"""Which commands follow, by stated rules; each has been planned as a merge plans it.

Of whom: all experts that could be opened, hold only finite numbers and are no strangers to the base; where there are
none of these but a set of experts that are close to each other, that set, without the base; without a base the largest
set of experts that are no strangers to each other. By which methods: the plainest on differences from the base, where
there is one, and the usual one, which needs none. With which options: those that were given, the ways out of what stood
in the way (of several the one that loses least; the second command has those of the first too), `--tokenizer-from`
where tokenizers differ, `--on-missing base` where a folder would lack what only the base has, and `--qkv fused` where
matrices are factored and a CLIP's q, k and v lie apart.
"""

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from taskmerge.checkpoint.dialects import model_types
from taskmerge.checkpoint.held import Held
from taskmerge.checkpoint.quantised import read_config
from taskmerge.checkpoint.sidecars import CONFIG
from taskmerge.diagnosis.kinship import Kinship
from taskmerge.diagnosis.report import Command
from taskmerge.diagnosis.trial import Keywords, Openings, Tried, tried, with_way
from taskmerge.errors import UsageError, Way
from taskmerge.experts.arguments import Arguments, named
from taskmerge.experts.classes import attention_groups
from taskmerge.experts.inputs import Inputs
from taskmerge.experts.shell_words import input_word, options
from taskmerge.experts.sources import Source
from taskmerge.merging.kernels import bind_points
from taskmerge.merging.outputs import output_paths
from taskmerge.merging.prepare import granularity, lacking_warnings
from taskmerge.methods.registry import DEFAULT

CLIP = ("clip", "chinese_clip", "siglip")
"""What the types of CLIP's kind of models begin with."""
ABOUT_BASE = "differences from the base"
ABOUT_MEAN = "about the experts' average: no base is needed"
NAMED = ("skip_input", "base")
"""Options that choose among arguments: experts and base are named one by one here."""


@dataclass(frozen=True)
class _Chosen:
    """Who is merged, and over which base."""

    experts: tuple[Source, ...]
    base: Path | None


def commands(
    openings: Openings, arguments: Arguments, asked: Keywords, first: Tried, kinship: Kinship
) -> list[Command]:
    """The merges that can follow what `first` tried, at most one of each kind; none where no two experts belong
    together, or some are in memory."""
    inputs = first.opened.inputs
    if any(isinstance(place, Held) for _, place in (*named(arguments), ("base", asked.get("base")))):
        return []
    chosen = _chosen(inputs, kinship)
    trial = None
    if not first.opened.errors and (chosen.experts, chosen.base) == (inputs.experts, _place(inputs)):
        trial, asked = first, first.keywords  # all of them: headers are opened, and the plan made
    else:
        arguments = {expert.task: expert.where for expert in chosen.experts}
        asked = {name: value for name, value in asked.items() if name not in NAMED}
        asked |= {"base": chosen.base} if chosen.base else {}
    trials = list[tuple[str, Tried]]()
    if chosen.base and chosen.experts and (found := _planned(openings, arguments, asked, trial=trial)):
        trials.append((ABOUT_BASE, found))
        asked = found.keywords  # so that both merge the same tensors
    if len(chosen.experts) > 1 and (found := _planned(openings, arguments, asked, DEFAULT)):
        trials.append((ABOUT_MEAN, found))
    return [_written(trial, chosen, about) for about, trial in trials]


def _place(inputs: Inputs) -> Path | None:
    """Where the base lies."""
    return Path(inputs.base.where) if inputs.base else None


def _chosen(inputs: Inputs, kinship: Kinship) -> _Chosen:
    """Who can be merged with whom."""
    measured, base = kinship.measured, inputs.base
    sound = [expert for expert in inputs.experts if expert.task not in measured.faults]
    if base is not None and not measured.base_faults:
        kin = {task for task, one in kinship.closeness.items() if one.kin != "unrelated"}
        own = tuple(expert for expert in sound if expert.task in kin)
        if own:
            return _Chosen(own, _place(inputs))
    lone = [expert for expert in sound if expert.kind == "weight"]
    sets = kinship.strangers if base is not None else kinship.families
    families = [tuple(expert for expert in lone if expert.task in family) for family in sets]
    return _Chosen(max(families, key=len, default=()), None)


def _planned(
    openings: Openings, arguments: Arguments, asked: Keywords, method: str | None = None, trial: Tried | None = None
) -> Tried | None:
    """One merge with all its options, if it can be planned; `trial` has tried what is asked for."""
    try:
        trial = trial or tried(openings, arguments, asked, method)
        for more in _more(trial):
            again = tried(openings, arguments, with_way(trial.keywords, more), method)
            trial = again if again.plan is not None else trial
    except UsageError:  # what was given names an input that is left out here
        return None
    return None if trial.plan is None or trial.opened.errors else trial


def _more(trial: Tried) -> Iterator[Way]:
    """Options beyond those without which there is no plan."""
    inputs, travels, plan = trial.opened.inputs, trial.travels, trial.plan
    if plan is None:
        return
    if travels.tokenizer_of is not None:
        yield {"tokenizer_from": travels.tokenizer_of}
    if inputs.base is not None and CONFIG in travels.files and lacking_warnings(inputs, plan, travels):
        yield {"on_missing": "base"}
    if granularity(bind_points(trial.spec)) == "matrix" and _split_clip(inputs):
        yield {"qkv": "fused"}


def _split_clip(inputs: Inputs) -> bool:
    """Whether the models are CLIPs in which the q, k and v of a block are tensors of their own."""
    source = inputs.base or inputs.experts[0]
    config = None if source.folder is None else read_config(source.folder)
    shapes = {name: spec.shape for name, spec in source.specs.items()}
    return any(kind.startswith(CLIP) for kind in model_types(config)) and any(
        len(group.parts) > 1 for group in attention_groups(shapes).values()
    )


def _written(trial: Tried, chosen: _Chosen, about: str) -> Command:
    """The words of a merge that has been planned, to a new file or folder."""
    arguments = {expert.task: expert.where for expert in chosen.experts}
    keywords = {name: value for name, value in trial.keywords.items() if name not in NAMED}
    keywords |= {"method": trial.spec.method, "base": chosen.base}
    (path,) = output_paths(trial.spec, None, bind_points(trial.spec), arguments, chosen.base)
    output = next(one for one in _numbered(path) if not os.path.lexists(one))
    return Command(about, (
        ("taskmerge", "merge"), *map(tuple, options(keywords)),
        *((input_word(expert),) for expert in chosen.experts), ("-o", f"{output}{'' if output.suffix else '/'}"),
    ))  # fmt: skip


def _numbered(path: Path) -> Iterator[Path]:
    """The path, and it with a number."""
    yield path
    for number in itertools.count(2):
        yield path.with_name(f"{path.stem}-{number}{path.suffix}")
