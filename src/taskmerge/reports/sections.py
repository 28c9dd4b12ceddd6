"""What a page is made of, before anybody says how it is drawn: sections of facts, figures, tables and prose. Pure."""

from dataclasses import dataclass, replace
from typing import Literal

from taskmerge.reports.figures import Figure
from taskmerge.reports.tables import Table

ProseKind = Literal["text", "note", "warning", "code"]


@dataclass(frozen=True, slots=True)
class Prose:
    """A paragraph of plain text; `code` keeps its lines as they are, `note` and `warning` are set apart."""

    text: str
    kind: ProseKind = "text"


@dataclass(frozen=True, slots=True)
class Fact:
    """One number that answers a question: the number with its unit, what it is, and how sure or against what."""

    value: str
    label: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """The few numbers that come before all else."""

    facts: tuple[Fact, ...]


Part = Facts | Figure | Table | Prose


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a page under one heading. `anchor` is where links lead, unique on its page; `lead` is the section's
    answer in a sentence or two; `parts` show why."""

    title: str
    anchor: str
    lead: str
    parts: tuple[Part, ...] = ()
    listed: bool = True
    """Whether the table of contents has it."""

    def within(self, prefix: str) -> "Section":
        """The same section on a page that has others of its kind: anchor and names of figures get a prefix."""
        parts = tuple(
            replace(part, name=f"{prefix}-{part.name}") if isinstance(part, Figure) else part for part in self.parts
        )
        return replace(self, anchor=f"{prefix}-{self.anchor}", parts=parts)


@dataclass(frozen=True, slots=True)
class Page:
    """A whole page: the first section answers its reader's question, the others show why."""

    title: str
    sections: tuple[Section, ...]

    def figures(self) -> tuple[Figure, ...]:
        """All its figures, in their order."""
        return tuple(part for section in self.sections for part in section.parts if isinstance(part, Figure))
