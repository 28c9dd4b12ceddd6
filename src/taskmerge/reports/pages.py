"""Runs as a page: one run's sections, or several joined with the comparison first."""

from collections.abc import Sequence
from dataclasses import replace

from taskmerge.reports.comparison import comparison
from taskmerge.reports.eval_sections import ANSWER, SCORES
from taskmerge.reports.joined import scores_of
from taskmerge.reports.kinds import KINDS, sections_of
from taskmerge.reports.runs import Run
from taskmerge.reports.sections import Page, Section


def page_of(runs: Sequence[Run]) -> Page:
    """The page of one run, or the comparison of several with each run's own page below."""
    if len(runs) == 1:
        return Page(f"{KINDS[runs[0].kind].title}: {runs[0].name}", tuple(sections_of(runs[0])))
    kinds = {KINDS[run.kind].title.lower() for run in runs}
    alone = [run for run in runs if scores_of(run) is not None]
    own = [section for number, run in enumerate(runs, 1) for section in _own(run, number, answered=alone == [run])]
    return Page(f"{len(runs)} runs compared: {', '.join(sorted(kinds))}", (*comparison(runs), *own))


def _own(run: Run, number: int, *, answered: bool) -> list[Section]:
    """A run's sections on a page that has others'; `answered`: the comparison's answer is about its scores alone."""
    above = (SCORES, ANSWER) if answered and run.kind == "eval" else (SCORES,)
    told = [section for section in sections_of(run) if section.anchor not in above]
    every = [section.within(f"run-{number}") for section in told]
    return [
        replace(section, title=f"{run.name}: {section.title[0].lower()}{section.title[1:]}", listed=place == 0)
        for place, section in enumerate(every)
    ]
