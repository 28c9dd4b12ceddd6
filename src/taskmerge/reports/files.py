"""What a page becomes on a disk: report.html, report.md, and every figure as SVG and PNG. Pure but for drawing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from taskmerge.reports import charts, markdown
from taskmerge.reports.page import Drawn, drawn_figures, html, slug
from taskmerge.reports.pages import page_of
from taskmerge.reports.reading import read_runs
from taskmerge.reports.sections import Page

PAGE, TEXT, FIGURES = "report.html", "report.md", "figures"


@dataclass(frozen=True, slots=True)
class Rendered:
    """A page and its plots, drawn once."""

    page: Page
    plots: Mapping[str, Drawn]

    def html(self) -> str:
        """The page as one document."""
        return html(self.page, self.plots)

    def markdown(self) -> str:
        """The same as Markdown; the plots are files beside it, which `files` has."""
        return markdown.page(self.page, {name: _place(name) for name in self.plots})

    def files(self) -> dict[str, bytes]:
        """Name -> content of everything in a report's folder."""
        found: dict[str, bytes] = {PAGE: self.html().encode(), TEXT: self.markdown().encode()}
        for name, plot in self.plots.items():
            svg = charts.svg_file(plot.wide)
            found[_place(name)] = svg.encode()
            found[_place(name, ".png")] = charts.png_file(svg)
        return found


def _place(figure: str, ending: str = ".svg") -> str:
    """Where a figure's file lies in the folder; its name is ours, and no path."""
    return f"{FIGURES}/{slug(figure)}{ending}"


def report(runs: Sequence[str | Path] | str | Path) -> Rendered:
    """The page of a run, or of several compared: folders with a report.json, report files, receipts of merges.

    `html()` is the page, `markdown()` the same as Markdown, `files()` everything by name. Raises UsageError for no runs
    or two of one name, BadFile for what is missing, damaged, of another schema version, or no report.
    """
    return rendered(page_of(read_runs([runs] if isinstance(runs, str | Path) else runs)))


def rendered(page: Page) -> Rendered:
    """Draws the page's plots."""
    return Rendered(page, drawn_figures(page))
