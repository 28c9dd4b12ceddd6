"""Pages of measured tables in Markdown: pure, from results to text."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import TypeVar

from table_results import Result
from table_rows import Row

T = TypeVar("T")
NOTHING = "–"


@dataclass(frozen=True)
class Entry:
    """A row with its results on one split, by seed."""

    row: Row
    results: tuple[Result, ...]

    @property
    def done(self) -> tuple[Result, ...]:
        """The results that have scores."""
        return tuple(result for result in self.results if result.error is None)

    @property
    def failures(self) -> dict[str, None]:
        """What went wrong, each once."""
        errors = [result.error for result in self.results if result.error is not None]
        return dict.fromkeys(f"exit {one.exit_code} ({one.kind}): {one.message}" for one in errors)


@dataclass(frozen=True)
class Section:
    """What was measured by one protocol: the split that was adapted on, and every row that was run."""

    split: str
    entries: tuple[Entry, ...]

    @property
    def learning(self) -> tuple[Entry, ...]:
        """The rows that adapt."""
        return tuple(entry for entry in self.entries if entry.row.learns)


def page(name: str, tasks: Sequence[str], sections: Sequence[Section]) -> str:
    """A suite's page: a table for every protocol, the choices without labels, and what makes each row."""
    parts = [
        f"# Measured: {name}",
        "Written by `make tables` (`benchmarks/tables.py`): every row is made from nothing, and what it wrote scored. "
        f"Scores are percent on split `test`, the average is the plain mean over {len(tasks)} tasks, normalised the "
        "mean of scores relative to those of the task's own expert. ± is the sample standard deviation over seeds.",
    ]
    for section in sections:
        parts += [f"## {_title(section)}", _protocol(section), _scores(section, tasks), *_failures(section)]
    parts += [*_choices(sections), "## What makes each row", _commands(sections)]
    return "\n\n".join(parts) + "\n"


def _title(section: Section) -> str:
    if section.split == "test":
        return "Adapted on `test` itself, labels unread: the papers' transductive protocol"
    return f"Adapted on unlabelled items of split `{section.split}`"


def _protocol(section: Section) -> str:
    """Protocol, horizon and machine in a paragraph."""
    done = [result for entry in section.entries for result in entry.done]
    made = [f"taskmerge {one['taskmerge']}, torch {one['torch']}" for one in (result.versions for result in done)]
    where = [f"{one['cores']} cores, {one['device']}, {one['system']}" for one in (result.machine for result in done)]
    source = "the very items that are scored" if section.split == "test" else f"items of `{section.split}`"
    return (
        f"Rows that learn see {source} without labels. {_horizons(section.learning)} Every run has a process of its "
        f"own on a machine with {_either(where)} ({_either(made)}). Seconds are of merging or adapting alone, MB the "
        "peak of the process's resident memory, libraries included."
    )


def _horizons(entries: Sequence[Entry]) -> str:
    """The number of iterations that most rows share, and those that have another."""
    counts = Counter(entry.row.iterations for entry in entries if entry.row.kind == "adaptive" and entry.row.iterations)
    if not counts:
        return "No horizon was needed."
    usual = counts.most_common(1)[0][0]
    others = [f"{entry.row.name} {_own_horizon(entry.row)}" for entry in entries if entry.row.iterations != usual]
    more = f" ({', '.join(others)})" if others else ""
    return f"Horizons are fixed before the start: {usual} iterations, each a visit to every task{more}."


def _own_horizon(row: Row) -> str:
    if row.iterations is None:
        return "solved for" if row.keywords.get("method") == "heads" else "its own"
    return f"{row.iterations} in all" if row.kind == "auto" else str(row.iterations)


# --- the tables ------------------------------------------------------------------------------------------------


def _scores(section: Section, tasks: Sequence[str]) -> str:
    columns = ["row", "average", "normalised", *tasks, "updates", "seconds", "MB", "seeds", "split"]
    return _table(columns, [_cells(entry, tasks) for entry in section.entries])


def _cells(entry: Entry, tasks: Sequence[str]) -> list[str]:
    """One line: means over seeds, the largest memory."""
    done = entry.done
    if not done:
        failed = next(result.error for result in entry.results if result.error is not None)
        return [entry.row.name, f"failed ({failed.exit_code})", *[NOTHING] * (len(tasks) + 6)]
    by_task = {
        task: [one["score"] for result in done for one in result.scores if one["task"] == task] for task in tasks
    }
    memory = _known(result.peak_memory for result in done)
    return [
        entry.row.name, spread(_known(result.average for result in done)),
        spread(_known(result.normalised for result in done)), *(_percent(by_task[task]) for task in tasks),
        _number(_known(result.updates for result in done)), _number(_known(result.seconds for result in done)),
        f"{max(memory) / 1e6:.0f}" if memory else NOTHING,
        str(len(done)) if entry.row.learns else NOTHING, done[0].split or NOTHING,
    ]  # fmt: skip


def _failures(section: Section) -> list[str]:
    """A list of what went wrong, if anything did."""
    lines = [f"- {entry.row.name}: {text}" for entry in section.entries for text in entry.failures]
    return ["Failed:\n\n" + "\n".join(lines)] if lines else []


def _choices(sections: Sequence[Section]) -> list[str]:
    """What was kept without labels, against the best by labels; nothing where nothing was chosen."""
    lines = []
    for section in sections:
        for entry in section.learning:
            choices = [result.choice for result in entry.done if result.choice is not None]
            if choices:
                gains = _known(choice["gain"] for choice in choices)
                lines.append([
                    entry.row.name, section.split, _counted(choice["kept"] for choice in choices),
                    _counted(choice["best"] for choice in choices),
                    spread([choice["regret"] for choice in choices]), spread(gains),
                    spread(_known(result.agreement for result in entry.done)),
                ])  # fmt: skip
    if not lines:
        return []
    columns = ["row", "split", "kept", "best by labels", "regret", "over the last update", "agreement"]
    words = (
        "Agreement with the experts on held-out unlabelled items keeps an update or a candidate; labels only say "
        "afterwards how far it is below the best of those that it chose from (regret, in points of the average). Where "
        "a run is followed, its seconds hold the looks at labels too."
    )
    return ["## Choices without labels", words, _table(columns, lines, texts=4)]


def _commands(sections: Sequence[Section]) -> str:
    """Every row as a command; the split and the seed are given beside it."""
    rows = {entry.row.name: entry.row for section in sections for entry in section.entries}
    return _table(["row", "command"], [[row.name, f"`{row.command}`"] for row in rows.values()], texts=2)


def _table(columns: Sequence[str], lines: Iterable[Sequence[str]], texts: int = 1) -> str:
    """A Markdown table whose first `texts` columns are text, the others numbers."""
    rule = [*["---"] * texts, *["--:"] * (len(columns) - texts)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [columns, rule, *lines])


# --- numbers as text -------------------------------------------------------------------------------------------


def spread(values: Sequence[float]) -> str:
    """The mean of fractions in percent and, of several, their sample standard deviation; one digit each."""
    margin = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
    return _percent(values) + margin


def _percent(values: Sequence[float]) -> str:
    return f"{100 * fmean(values):.1f}" if values else NOTHING


def _number(values: Sequence[float]) -> str:
    """A mean: whole, or with a digit where it is small."""
    if not values:
        return NOTHING
    mean = fmean(values)
    return f"{mean:.0f}" if mean >= 10 or mean == round(mean) else f"{mean:.1f}"


def _known(values: Iterable[T | None]) -> list[T]:
    return [value for value in values if value is not None]


def _counted(names: Iterable[str]) -> str:
    """`a (2), b`: the most frequent first."""
    counts = Counter(names).most_common()
    return ", ".join(name if count == 1 else f"{name} ({count})" for name, count in counts)


def _either(texts: Iterable[str]) -> str:
    """Different texts side by side, each once."""
    return " or ".join(dict.fromkeys(texts)) or NOTHING
