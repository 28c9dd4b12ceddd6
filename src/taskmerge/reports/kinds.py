"""The kinds of documents that a page is made of: how each is told apart and checked, and who makes its sections.

A kind's module `KIND_sections.py` has one function `sections(run) -> list[Section]`, the answer first; this registry
is the one place that names it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import Any

from taskmerge.reports.runs import Run
from taskmerge.reports.sections import Section

Document = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of document: what its command is called, where its schema and the function of its sections are.

    Both are `module:name`, loaded when they are needed.
    """

    title: str
    command: str
    schema: str
    sections: str

    def load_schema(self) -> Document:
        """The published JSON schema."""
        found: Document = _loaded(self.schema)()
        return found

    def sections_of(self, run: Run) -> list[Section]:
        """What a run of this kind has to say."""
        make: Callable[[Run], list[Section]] = _loaded(self.sections)
        return make(run)


KINDS: Mapping[str, Kind] = MappingProxyType({
    "eval": Kind(
        "Evaluation", "eval", "taskmerge.evaluation.results:schema", "taskmerge.reports.eval_sections:sections"
    ),
    "adapt": Kind(
        "Adaptation", "adapt", "taskmerge.workflows.adapt_schema:schema", "taskmerge.reports.adapt_sections:sections"
    ),
    "merge": Kind(
        "Merge", "merge --json", "taskmerge.merging.receipt_schema:schema", "taskmerge.reports.merge_sections:sections"
    ),
    "spectrum": Kind(
        "Spectrum", "spectrum", "taskmerge.spectra.report:schema", "taskmerge.reports.spectrum_sections:sections"
    ),
})  # fmt: skip


def kind_of(document: Mapping[str, Any]) -> str | None:
    """The kind that a document says it is of, or shows by its keys; None for a stranger's."""
    said = document.get("report")
    if said is None and {"outputs", "provenance"} <= document.keys():
        return "merge"
    return said if isinstance(said, str) else None


def sections_of(run: Run) -> list[Section]:
    """The sections of one run, the answer first."""
    return KINDS[run.kind].sections_of(run)


def _loaded(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)
