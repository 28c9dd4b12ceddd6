"""What happened at each update: one line of trace.jsonl, and warnings that need no label."""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from taskmerge.documents import open_regular, parse_json
from taskmerge.errors import BadFile


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """One task's batch: `items` of it, the share that the filter kept, the mean loss of what was kept, the share with
    the expert's class (None of values), the mean entropy of predictions in nats, and the largest share of one class."""

    items: int
    kept: float
    loss: float | None
    agreement: float | None
    entropy: float | None
    largest_class: float | None = None


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One update. `skipped` says why nothing moved; `coefficients` are mean, smallest, largest and the share of zeros;
    `flips` how many mask bits changed, `kept_components` the share of components, or entries, that they keep."""

    update: int
    iteration: int
    tasks: Mapping[str, TaskRecord]
    coefficients: Mapping[str, float] = field(default_factory=dict)
    flips: int = 0
    kept_components: float | None = None
    skipped: str | None = None
    seconds: float = 0.0
    held_out: Mapping[str, float] | None = None
    watched: Mapping[str, Any] | None = None

    @property
    def agreement(self) -> float | None:
        """The mean agreement on held-out items, if it was measured."""
        return sum(self.held_out.values()) / len(self.held_out) if self.held_out else None

    def line(self) -> str:
        """One line of trace.jsonl; what is not finite is null there, for JSON has no word for it."""
        return json.dumps(_finite(asdict(self)), sort_keys=True, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """Plain values without NaN and infinity."""
    if isinstance(value, Mapping):
        return {name: _finite(own) for name, own in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(own) for own in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


LARGEST, LONGEST = 1 << 30, 1 << 20
"""Bytes of a trace, and characters of a line, beyond which no trace is read: 100,000 updates of 20 tasks take half."""


def read_trace(path: Path, updates: int) -> list[StepRecord]:
    """The lines of the start and the first so many updates.

    Raises BadFile for a trace that lacks some of them, is no regular file, or is larger than `LARGEST`.
    """
    hint = "start again with --overwrite"
    records = list(islice(trace_records(path, hint=hint), updates + 1))
    if len(records) <= updates:
        what = f"has {len(records)} lines where the saved state is of update {updates}"
        raise BadFile(what, where=str(path), hint=hint)
    return records


def trace_records(path: Path, *, hint: str = "run `taskmerge adapt` again") -> Iterator[StepRecord]:
    """The lines of a trace, one at a time: the start's, then those of all updates one after the other.

    Raises BadFile, whose `hint` this is, for what is no trace, no regular file, or larger than `LARGEST`.
    """
    try:
        with os.fdopen(open_regular(path), encoding="utf-8") as lines:
            if os.fstat(lines.fileno()).st_size > LARGEST:
                raise ValueError(f"it is larger than {LARGEST >> 30} GiB")
            for update, line in enumerate(_lines(lines)):
                record = _record(parse_json(line))
                if record.update != update:
                    raise ValueError("its updates are not one after the other")
                yield record
    except BadFile as error:
        raise BadFile(error.what, where=error.where, hint=hint) from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise BadFile(f"is no trace: {error}", where=str(path), hint=hint) from None


def _lines(file: TextIO) -> Iterator[str]:
    """The lines of a file. Raises ValueError for one that is longer than any update's."""
    while line := file.readline(LONGEST + 1):
        if len(line) > LONGEST:
            raise ValueError(f"a line is longer than {LONGEST >> 20} MiB")
        yield line


def _record(values: Mapping[str, Any]) -> StepRecord:
    tasks = {name: TaskRecord(**own) for name, own in values["tasks"].items()}
    return StepRecord(**{**values, "tasks": tasks})


WINDOW = 10
"""Updates of a task on which each end of a run is judged."""
FALL = 0.02
COLLAPSED = 0.9


def warnings(records: Sequence[StepRecord], classes: Mapping[str, int]) -> list[str]:
    """What labels are not needed to see: entropy that falls while agreement with the experts falls, and predictions
    that fall into few classes. `classes` is how many each task has."""
    found = []
    for task, count in classes.items():
        own = [record.tasks[task] for record in records if task in record.tasks]
        if len(own) < 2 * WINDOW:
            continue
        first, last = own[:WINDOW], own[-WINDOW:]
        agreement = _change(first, last, "agreement")
        entropy = _change(first, last, "entropy")
        if agreement is not None and entropy is not None and entropy < 0 and agreement < -FALL:
            found.append(
                f"`{task}`: entropy falls ({entropy:+.2f} nats) while agreement with the expert falls "
                f"({100 * agreement:+.1f} points): entropy is no guide here, --objective self may be"
            )
        share = _mean(last, "largest_class")
        before = _mean(first, "largest_class")
        if share is not None and before is not None and count > 1 and share > max(COLLAPSED, 2 * before):
            found.append(f"`{task}`: {100 * share:.0f} percent of the last items are predicted to be of one class")
    return found


def _mean(records: Sequence[TaskRecord], name: str) -> float | None:
    values = [value for record in records if (value := getattr(record, name)) is not None]
    return sum(values) / len(values) if values else None


def _change(first: Sequence[TaskRecord], last: Sequence[TaskRecord], name: str) -> float | None:
    before, after = _mean(first, name), _mean(last, name)
    return None if before is None or after is None else after - before
