"""A page as one HTML document that needs nothing else: no network, no other file. Deterministic bytes.

Names come from files that anybody may have written: every text passes `text`, and a policy in the page forbids every
request and every script but its own.
"""

import hashlib
import re
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib.resources import files
from itertools import groupby
from types import MappingProxyType

from taskmerge.errors import plain
from taskmerge.reports import charts, colours
from taskmerge.reports.figures import Figure
from taskmerge.reports.numbers import numbers
from taskmerge.reports.sections import Facts, Page, Part, Prose, Section
from taskmerge.reports.svg import Drawing
from taskmerge.reports.tables import NOTHING, Cell, Table
from taskmerge.version import __version__

SLOT = re.compile(r"\{\{(\w+)\}\}")
CODE = re.compile(r"`([^`]+)`")
NUMERIC = re.compile(r"[≥≤]? ?[-+−]?\d[\d,.]*(e[-+]?\d+)?[%×]?$")

BROAD = 620
"""Pixels of a plot that needs a line of its own."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """A figure's plots: for a wide page, and for a phone."""

    wide: Drawing
    narrow: Drawing


def drawn_figures(page: Page) -> Mapping[str, Drawn]:
    """The plots of a page's figures by name; each is drawn once, whatever is made of it."""
    return MappingProxyType(
        {figure.name: Drawn(charts.wide(figure), charts.narrow(figure)) for figure in page.figures()}
    )


def html(page: Page, plots: Mapping[str, Drawn]) -> str:
    """The whole page."""
    style, script = _style(), _asset("page.js")
    slots = {
        "policy": _policy(style, script),
        "title": text(page.title),
        "style": style,
        "script": script,
        "contents": "".join(
            f'<li><a href="#{slug(own.anchor)}">{text(own.title)}</a></li>' for own in page.sections if own.listed
        ),
        "sections": "".join(
            _section(own, plots, "answer" if number == 0 else "why") for number, own in enumerate(page.sections)
        ),
        "version": text(__version__),
    }
    return SLOT.sub(lambda slot: slots[slot[1]], _asset("page.html"))


def text(value: str) -> str:
    """Any text as HTML: nothing in it is markup, control characters and marks of direction are shown."""
    return escape(plain(value), quote=True)


def words(value: str) -> str:
    """A sentence as HTML: what stands in backticks is shown as code, everything else as it is."""
    return CODE.sub(r"<code>\1</code>", text(value))


def _policy(style: str, script: str) -> str:
    """Nothing may be loaded, sent or run but the page's own style and script."""
    return (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _digest(content: str) -> str:
    return f"sha256-{b64encode(hashlib.sha256(content.encode()).digest()).decode()}"


@cache
def _asset(name: str) -> str:
    return (files("taskmerge.reports") / name).read_text(encoding="utf-8").rstrip("\n")


def _style() -> str:
    """The style sheet, with the colours of both themes as variables."""
    light, dark = (
        ";".join(f"--{name}:{colour}" for name, colour in colours.variables(theme).items())
        for theme in ("light", "dark")
    )
    slots = {"light": light, "dark": dark}
    return SLOT.sub(lambda slot: slots[slot[1]], _asset("page.css"))


def slug(name: str) -> str:
    """A name as an id, or as part of a file's name."""
    return re.sub(r"[^\w-]+", "-", name, flags=re.ASCII)


# --- parts -----------------------------------------------------------------------------------------------------


def _section(section: Section, plots: Mapping[str, Drawn], kind: str) -> str:
    anchor = slug(section.anchor)
    lead = f'<p class="lead">{words(section.lead)}</p>' if section.lead else ""
    parts = "".join(_parts(section.parts, plots))
    return (
        f'<section id="{anchor}" class="{kind}" aria-labelledby="{anchor}-title">'
        f'<h2 id="{anchor}-title">{text(section.title)}</h2>{lead}{parts}</section>\n'
    )


def _parts(parts: Sequence[Part], plots: Mapping[str, Drawn]) -> Iterator[str]:
    """The parts in their order; figures, or tables, that follow each other stand side by side where there is room."""
    for kind, own in groupby(parts, type):
        shown = "".join(_part(part, plots) for part in own)
        name = {Figure: "figures", Table: "tables"}.get(kind)
        yield f'<div class="{name}">{shown}</div>' if name else shown


def _part(part: Part, plots: Mapping[str, Drawn]) -> str:
    match part:
        case Facts():
            return _facts(part)
        case Figure():
            return _figure(part, plots[part.name])
        case Table():
            return _table(part)
        case Prose():
            return _prose(part)


def _facts(facts: Facts) -> str:
    shown = "".join(
        f"<div><dt>{text(fact.label)}</dt><dd>{text(fact.value)}"
        + (f"<small>{text(fact.detail)}</small>" if fact.detail else "")
        + "</dd></div>"
        for fact in facts.facts
    )
    return f'<dl class="facts">{shown}</dl>'


def _prose(prose: Prose) -> str:
    if prose.kind == "code":
        return f'<pre tabindex="0"><code>{"&#10;".join(map(text, prose.text.split(chr(10))))}</code></pre>'
    if prose.kind == "text":
        return f"<p>{words(prose.text)}</p>"
    return f'<p class="{prose.kind}"><strong>{prose.kind.capitalize()}:</strong> {words(prose.text)}</p>'


def _figure(figure: Figure, drawn: Drawn) -> str:
    name = f"figure-{slug(figure.name)}"
    names = f'role="img" aria-labelledby="{name}-title" aria-describedby="{name}-words"'
    svgs = "".join(
        drawing.on_page(f'class="{kind}" width="{drawing.width:g}" height="{drawing.height:g}" {names}')
        for kind, drawing in (("wide", drawn.wide), ("narrow", drawn.narrow))
    )
    tables = "".join(map(_table, numbers(figure)))
    broad = ' class="broad"' if drawn.wide.width > BROAD else ""
    return (
        f'<figure id="{name}"{broad}><h3 id="{name}-title">{text(figure.title)}</h3><div class="plot">{svgs}</div>'
        f"<figcaption>{words(figure.caption)}</figcaption><details><summary>In words and numbers"
        f'<span class="unseen">: {text(figure.title)}</span></summary>'
        f'<p id="{name}-words">{text(figure.alternative)}</p>{tables}</details></figure>'
    )


def _table(table: Table) -> str:
    kinds = [_column_kind(row[place] for row in table.cells) for place in range(len(table.columns))]
    head = "".join(
        f'<th scope="col"{kind}>{text(title)}</th>'
        for kind, title in zip(("", *kinds), (table.corner, *table.columns), strict=True)
    )
    body = "".join(
        f'<tr><th scope="row">{text(name)}</th>{"".join(map(_cell, kinds, cells))}</tr>'
        for name, cells in zip(table.names, table.cells, strict=True)
    )
    notes = "".join(f'<p class="small">{words(note)}</p>' for note in table.notes)
    return (
        f'<div class="tabled"><div class="scroll"><table><caption>{text(table.title)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{notes}</div>"
    )


def _column_kind(cells: Iterable[Cell]) -> str:
    """Columns of text are on the left, of numbers on the right."""
    numeric = all(NUMERIC.match(cell.text) or cell.text in ("", NOTHING) for cell in cells)
    return "" if numeric else ' class="t"'


def _cell(kind: str, cell: Cell) -> str:
    interval = f"<small>{text(cell.interval)}</small>" if cell.interval else ""
    return f"<td{kind}>{text(cell.text)}{interval}</td>"
