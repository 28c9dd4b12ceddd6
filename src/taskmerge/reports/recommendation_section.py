"""The part of a spectrum's page that says what to merge by: a command to paste, its forecast, and its ground."""

from collections.abc import Mapping, Sequence
from typing import Any

from taskmerge.experts.shell_words import lines
from taskmerge.reports.sections import Part, Prose, Section
from taskmerge.reports.tables import Cell, Table


def recommendation_section(document: Mapping[str, Any]) -> Section | None:
    """The section; None where the report recommends nothing."""
    found = document.get("recommendation")
    if not found:
        return None
    first, *more = found["ground"]
    parts: list[Part] = [Prose("\n".join(command_lines(found)), "code")] if found["arguments"] else []
    parts += [*forecast_tables(found), *(Prose(text, "note") for text in more)]
    return Section("A merge to try", "recommendation", f"{named(found)}: {first}.", tuple(parts))


def named(found: Mapping[str, Any]) -> str:
    """A method with its options, in words."""
    options = ", ".join(f"{name} {value:g}" for name, value in found["options"].items())
    return f"{found['method']}{f' ({options})' if options else ''}"


def command_lines(found: Mapping[str, Any]) -> list[str]:
    """The command, as a shell takes it."""
    words, groups = list(found["arguments"]), list[list[str]]()
    while words:
        word = words.pop(0)
        valued = word.startswith("-") and words and not words[0].startswith("-")
        groups.append([word, words.pop(0)] if valued else [word])
    return lines(groups)


def forecast_tables(found: Mapping[str, Any]) -> list[Table]:
    """What the forecast says: by task, and of other merges; nothing where there is none."""
    if found["forecast"] is None:
        return []
    kept, merges = found["forecast"]["kept"], [(named(found), found["forecast"]["mean"])]
    merges += [(named(one), one["kept"]) for one in found["others"]]
    return [
        _shares("Forecast: kept of what fine-tuning gained, by task", "task", list(kept.items())),
        _shares("Forecast: kept on average, by merge", "merge", merges),
    ]


def _shares(title: str, corner: str, rows: Sequence[tuple[str, float]]) -> Table:
    """Names and shares."""
    names, cells = tuple(name for name, _ in rows), tuple((Cell(f"{value:.0%}"),) for _, value in rows)
    return Table(title, corner, ("kept",), names, cells)
