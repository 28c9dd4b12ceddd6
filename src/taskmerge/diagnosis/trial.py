"""Plans a merge again and again: every refusal is a finding, and the way out that it names is taken until none is left.

So a page lists all that stands in the way and not the first of it, and the options of the commands that follow have
been through the same plan as those that a user types.
"""

import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from taskmerge.diagnosis.findings import Finding, Topic, refusal, told
from taskmerge.errors import BadFile, Mismatch, TaskmergeError, UsageError, Way
from taskmerge.experts.arguments import Arguments, named
from taskmerge.experts.inputs import InputOptions, Inputs, SetAside, resolve
from taskmerge.experts.rows import Rows, even
from taskmerge.experts.shell_words import flags
from taskmerge.merging.costs import Budget
from taskmerge.merging.execute import merged_buffer
from taskmerge.merging.kernels import bind_points
from taskmerge.merging.options import split_options
from taskmerge.merging.outputs import all_folders
from taskmerge.merging.plan import Plan
from taskmerge.merging.prepare import along, make_plan
from taskmerge.merging.travel import Travelling, check_configs, of_file
from taskmerge.methods.registry import DEFAULT
from taskmerge.specs.merge import FINISH, MergeSpec

ROUNDS = 12
"""Ways out that are tried one after the other."""
UNLIMITED = Budget(1, None, 0, 0, 0)
Keywords = Mapping[str, Any]


@dataclass(frozen=True)
class Opened:
    """The inputs as they could be opened, those that could not, and what is wrong with all together."""

    inputs: Inputs
    aside: tuple[SetAside, ...] = ()
    error: TaskmergeError | None = None

    @property
    def errors(self) -> list[TaskmergeError]:
        return [*(one.error for one in self.aside), *([self.error] if self.error else [])]


class Openings:
    """Opens headers once for each set of inputs and options; the files are closed with the stack."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._held: dict[tuple[tuple[tuple[str, str], ...], InputOptions], Opened] = {}

    def of(self, arguments: Arguments, options: InputOptions) -> Opened:
        """The inputs; there are none where something concerns several at once."""
        key = tuple((task, str(place)) for task, place in named(arguments)), options
        if key not in self._held:
            aside, error = list[SetAside](), None
            try:
                inputs = resolve(arguments, options, aside)
                self._stack.callback(inputs.close)
            except Mismatch as found:
                inputs, error = Inputs((), None, (), ()), found
            self._held[key] = Opened(inputs, tuple(aside), error)
        return self._held[key]


@dataclass(frozen=True)
class Tried:
    """A merge as it was planned in the end, of which inputs: `added` are the ways out among its keywords.

    There is no plan where no way leads to one. `refusals` are what stood in the way, in the order met.
    """

    spec: MergeSpec
    keywords: Keywords
    added: Keywords
    opened: Opened
    refusals: tuple[Finding, ...]
    plan: Plan | None = None
    travels: Travelling = field(default_factory=Travelling)
    warnings: tuple[str, ...] = ()

    @property
    def findings(self) -> list[Finding]:
        """All that opening and planning give rise to; what is so with a way out alone says with which."""
        inputs = self.opened.inputs
        by = f"with `{flags(self.added)}`: " if self.added else ""
        notes = [by + note for note in self.plan.notes] if self.plan is not None else []
        return [
            *self.refusals,
            *told(inputs.notes, inputs.warnings, "inputs"),
            *told(notes, (), "tensors"),
            *told(self.travels.notes, (*self.warnings, *self.travels.warnings), "files"),
        ]


def tried(openings: Openings, arguments: Arguments, asked: Keywords, method: str | None = None) -> Tried:
    """Plans the merge that is asked for, by `method`: without one by the plainest on differences from the base where
    there is a base, else by the usual one.

    `UsageError` and `BadFile` where a merge of that would end so before anything is opened.
    """
    added: Keywords = {}
    refusals: dict[str, Finding] = {}
    for _ in range(ROUNDS):
        keywords = with_way(asked, added)
        spec, opening = _asked(keywords, method or FINISH)
        opened = openings.of(arguments, opening)
        if method is None and opened.inputs.base is None and "method" not in keywords:
            spec = replace(spec, method=DEFAULT)
        result = Tried(spec, keywords, added, opened, ())
        errors: list[tuple[TaskmergeError, Topic]] = [(error, "inputs") for error in opened.errors]
        if opened.inputs.experts and not any(_new_way(keywords, error) for error, _ in errors):
            planned = _planned(result, asked)
            result = planned if isinstance(planned, Tried) else result
            errors += [] if isinstance(planned, Tried) else [planned]
        for error, topic in errors:
            refusals.setdefault(error.message, refusal(error, topic))
        result = replace(result, refusals=tuple(refusals.values()))
        way = next((way for error, _ in errors if (way := _new_way(keywords, error))), None)
        if result.plan is not None or way is None:
            break
        added = with_way(added, way)
    return result


def with_way(keywords: Keywords, way: Way) -> dict[str, Any]:
    """Keywords with those of a way out: what is a list has both."""
    both = dict(keywords)
    for name, value in way.items():
        held = tuple(both.get(name) or ()) if isinstance(value, tuple) else ()
        both[name] = (*held, *(one for one in value if one not in held)) if isinstance(value, tuple) else value
    return both


def _new_way(keywords: Keywords, error: TaskmergeError) -> Way | None:
    """The first way out of an error that has not been taken."""
    return next((way for way in error.ways if with_way(keywords, way) != keywords), None)


def _asked(keywords: Keywords, method: str) -> tuple[MergeSpec, InputOptions]:
    """What is asked for, checked."""
    spec, opening, _ = split_options({"method": method, **keywords})
    return spec, opening


def _planned(trial: Tried, asked: Keywords) -> Tried | tuple[TaskmergeError, Topic]:
    """The plan with all that a merge would check before it computes; or what stands in the way, and in what."""
    inputs, spec = trial.opened.inputs, trial.spec
    topic: Topic = "files"
    try:
        warnings = check_configs(inputs, spec)
        topic = "tensors"
        plan = make_plan(spec, inputs, bind_points(spec, len(inputs.experts)), UNLIMITED)
        rows = Rows(inputs.base, inputs.experts, "weight", even(inputs.experts))
        for job in plan.jobs:
            if job.action == "buffer":
                merged_buffer(rows, job, spec.on_buffer)
        topic = "files"
        own = replace(spec, config_from=asked.get("config_from"))  # what differs is said though a way out decides it
        travels = along(inputs, own, plan) if _of_folders(inputs) else of_file(inputs)
    except (Mismatch, BadFile) as error:
        return error, topic
    except UsageError as error:
        if not trial.added:
            raise
        return error, topic
    return replace(trial, plan=plan, travels=travels, warnings=tuple(warnings))


def _of_folders(inputs: Inputs) -> bool:
    """Whether a folder comes of the inputs, unless told otherwise; state dicts in memory lie nowhere."""
    places = {one.task: one.where for one in inputs.experts}
    base = Path(inputs.base.where) if inputs.base else None
    there = [*map(Path, places.values()), *([base] if base else [])]
    return all(map(os.path.exists, there)) and all_folders(places, base)
