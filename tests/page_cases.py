"""Pages of reports for tests, and names that a page must show as text."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from report_cases import VISION, report
from taskmerge.evaluation.results import to_json
from taskmerge.evaluation.scores import Report
from taskmerge.reports.files import Rendered, rendered
from taskmerge.reports.pages import page_of
from taskmerge.reports.runs import Run

HOSTILE = (
    "</script><script>document.title='broken'</script>",
    "<img src=x onerror=\"document.title='broken'\">",
    "\"'><svg onload=alert(1)>",
    "a\x00b\x1b[31mred\x07",
    "\u202egnp.exe",
    "[click](javascript:alert(1)) `code` **bold** | cell",
    "{{sections}} {{script}} ${x} \\1 \\g<0>",
    "http://example.com/x www.example.com a@example.com",
    "]]>&lt;<!-- ",
    "layers.0.self_attn.q_proj.weight." * 9,
)
"""Names of tasks and checkpoints that mean something to HTML, SVG, Markdown or a terminal."""


def eval_run(found: Report, name: str = "scores", folder: Path | None = None) -> Run:
    """What `taskmerge report` reads of an evaluation."""
    return Run(name, "eval", to_json(found), folder)


@cache
def small(tasks: int = 3, checkpoints: Sequence[str] = ("one", "two")) -> Rendered:
    """The page of a small evaluation with everything in it."""
    metrics = {name: VISION[name] for name in list(VISION)[:tasks]}
    return rendered(page_of([eval_run(report(metrics, checkpoints, cross=True, compare=True))]))


def hostile_report() -> Report:
    """Every hostile name is a task and a checkpoint."""
    return report(dict.fromkeys(HOSTILE, "accuracy"), HOSTILE, n=20)


@cache
def hostile() -> Rendered:
    """Its page."""
    return rendered(page_of([eval_run(hostile_report(), HOSTILE[0])]))
