"""What `taskmerge report` does with its words, and how other commands write a page beside their report.json."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from taskmerge.checkpoint.identity import file_id
from taskmerge.cli import show, writing
from taskmerge.cli.report import ReportWords
from taskmerge.errors import UsageError
from taskmerge.reports.files import FIGURES, PAGE, TEXT, Rendered, rendered
from taskmerge.reports.pages import page_of
from taskmerge.reports.reading import read_runs, run_of
from taskmerge.reports.runs import REPORT
from taskmerge.reports.terminal import summary

PAGES, TEXTS = (".html", ".htm"), (".md",)
"""How files end that hold the page alone, or its Markdown."""


def run(words: ReportWords) -> None:
    """Carries out one `report` command."""
    output = words.output or Path(PAGE)
    check_output(output, overwrite=words.overwrite)
    _check_kept(output, words.runs or [])
    runs = read_runs(words.runs or [])
    made = rendered(page_of(runs))
    written = _written(made, output, overwrite=words.overwrite)
    show.say(summary(made.page), words.quiet)
    if words.json:
        told = [{"name": own.name, "kind": own.kind} for own in runs]
        show.document({"outputs": written, "page": str(output), "runs": told})
    else:
        show.results([str(output)])


def check_output(output: Path, *, overwrite: bool) -> None:
    """Raises UsageError for an ending that no report has, BadOutput where it cannot be written."""
    if _is_file(output):
        writing.check_target(output, overwrite=overwrite)
        return
    if output.suffix and not output.is_dir():
        hint = f"name a folder, or a file that ends in {' or '.join((PAGES[0], *TEXTS))}"
        raise UsageError(f"`{output.suffix}` is no ending of a page", where=str(output), hint=hint)
    check_page_folder(output, overwrite=overwrite)


def check_page_folder(folder: Path, *, overwrite: bool) -> None:
    """Raises BadOutput where a page's files are in a folder already, or cannot be written there."""
    for name in (PAGE, TEXT):
        writing.check_target(folder / name, overwrite=overwrite)
    writing.check_folder(folder / FIGURES, overwrite=overwrite)


def write_page(document: Mapping[str, Any], folder: Path, *, overwrite: bool) -> None:
    """Writes the page of a run into its folder, beside the report.json that `document` is. Raises BadOutput."""
    run = run_of(dict(document), folder.absolute().name, str(folder / REPORT), folder)
    _written(rendered(page_of([run])), folder, overwrite=overwrite)


def _is_file(output: Path) -> bool:
    return not output.is_dir() and (output.suffix.lower() in (*PAGES, *TEXTS) or writing.is_device(output))


def _written(made: Rendered, output: Path, *, overwrite: bool) -> list[str]:
    """Writes what -o asks for; the paths."""
    if _is_file(output):
        content = made.markdown() if output.suffix.lower() in TEXTS else made.html()
        writing.write_text(output, content, overwrite=overwrite)
        return [str(output)]
    files = made.files()
    writing.write_files(output, files, overwrite=overwrite)
    _remove_stale(output / FIGURES, {(output / name).name for name in files})
    return sorted(str(output / name) for name in files)


def _remove_stale(figures: Path, names: set[str]) -> None:
    """Takes away plots of an earlier page, which are pairs of SVG and PNG, that this one doesn't have."""
    if not figures.is_dir():
        return
    for path in figures.glob("*.svg"):
        picture = path.with_suffix(".png")
        if path.name not in names and picture.is_file():
            path.unlink()
            picture.unlink()


def _check_kept(output: Path, arguments: Iterable[str]) -> None:
    """Nothing that was read is written over."""
    for argument in arguments:
        if output.is_file() and file_id(output) == file_id(Path(argument.partition("=")[2] or argument)):
            raise UsageError("is an input, which would be lost", where=str(output), hint="choose another name with -o")
