"""Pages and tables as Markdown, in which every name is text: no tags, no links, no emphasis. Pure."""

import re
from collections.abc import Iterable, Mapping

from taskmerge.errors import plain
from taskmerge.reports.figures import Figure
from taskmerge.reports.sections import Facts, Page, Part, Prose, Section
from taskmerge.reports.tables import Table

SPECIAL = re.compile(r"[\\`*\[\]<>|~$]|(?<!\w)_|_(?!\w)|(?<=\w):(?=//)|(?<=\w)@(?=\w)|(?<=www)\.")
"""What Markdown would take for markup, and what its readers make links of."""
LEADING = re.compile(r"^[#+=-]|(?<=^\d)[.)]|(?<=^\d\d)[.)]")
"""What makes a heading or a list at the start of a line."""
ENTITIES = {"<": "&lt;", ">": "&gt;"}


def text(value: str) -> str:
    """Any text on one line of Markdown, shown as it is."""
    shown = plain(value.replace("\n", " ")).replace("&", "&amp;")
    return SPECIAL.sub(lambda sign: ENTITIES.get(sign[0], f"\\{sign[0]}"), shown)


def table(value: Table) -> str:
    """A table, every number with its interval."""
    lines = [f"**{text(value.title)}**", ""] if value.title else []
    lines += [_line((value.corner, *value.columns)), f"| {' | '.join(['---', *('---:' for _ in value.columns)])} |"]
    lines += [
        _line((name, *(cell.long for cell in cells))) for name, cells in zip(value.names, value.cells, strict=True)
    ]
    return "\n".join([*lines, "", *(f"{text(note)}  " for note in value.notes), ""])


def page(value: Page, pictures: Mapping[str, str]) -> str:
    """A page; `pictures` says where the file of each figure is, by the figure's name."""
    parts = [f"# {text(value.title)}", *(piece for own in value.sections for piece in _section(own, pictures))]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def _section(section: Section, pictures: Mapping[str, str]) -> Iterable[str]:
    yield f"## {text(section.title)}"
    if section.lead:
        yield _paragraph(section.lead)
    for part in section.parts:
        yield _part(part, pictures)


def _part(part: Part, pictures: Mapping[str, str]) -> str:
    match part:
        case Facts():
            return "\n".join(
                f"- {text(fact.label)}: **{text(fact.value)}**" + (f" ({text(fact.detail)})" if fact.detail else "")
                for fact in part.facts
            )
        case Figure():
            image = f"![{text(part.alternative)}]({pictures[part.name]})"
            return f"### {text(part.title)}\n\n{image}\n\n{_paragraph(part.caption)}"
        case Table():
            return table(part)
        case Prose():
            return _prose(part)


def _prose(prose: Prose) -> str:
    if prose.kind == "code":
        return "\n".join(f"    {plain(line)}" for line in prose.text.split("\n"))
    if prose.kind == "text":
        return _paragraph(prose.text)
    return f"> **{prose.kind.capitalize()}:** {text(prose.text)}"


def _paragraph(value: str) -> str:
    """A text that begins like a heading or a list is neither."""
    return LEADING.sub(r"\\\g<0>", text(value).lstrip())


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(map(text, cells))} |"
