"""A diagnosis as values, and as the document that `taskmerge schema doctor` describes."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from taskmerge.diagnosis.findings import Finding
from taskmerge.diagnosis.kinship import Closeness, Pair
from taskmerge.experts.shell_words import quote
from taskmerge.version import __version__

KIND, SCHEMA_VERSION = "doctor", 1


@dataclass(frozen=True, slots=True)
class Entry:
    """One input: what its headers say, and how it stands to the base (None where that was not compared).

    `kind` is checkpoint, adapter, or what taskmerge wrote it as. `taken` says whether it could be opened as what it was
    given for; `trained_on` is the base that an adapter names. Without readable headers the counts are None.
    """

    name: str
    path: str
    kind: str
    taken: bool
    tensors: int | None
    parameters: int | None
    bytes: int | None
    dtypes: Mapping[str, int]
    trained_on: str | None = None
    closeness: Closeness | None = None


@dataclass(frozen=True, slots=True)
class Command:
    """A command that goes through as far as headers and numbers tell: its words, in groups that stand together."""

    about: str
    groups: tuple[tuple[str, ...], ...]

    @property
    def arguments(self) -> list[str]:
        return [word for group in self.groups for word in group]

    @property
    def text(self) -> str:
        """The command in one line, as a shell reads it."""
        return " ".join(map(quote, self.arguments))


@dataclass(frozen=True)
class Diagnosis:
    """What was found of inputs before a merge. `exit_code` is 0 where a merge of them would go through, 3 where one is
    damaged, 4 where something else stands in the way. `families` are the experts in sets whose matrices have median
    cosines of 0.5 and more with each other; `tensors`, `parameters` and `matrices` count what was compared with the
    base (without one: with each other)."""

    base: Entry | None
    experts: tuple[Entry, ...]
    pairs: tuple[Pair, ...]
    families: tuple[tuple[str, ...], ...]
    findings: tuple[Finding, ...]
    commands: tuple[Command, ...]
    tensors: int
    parameters: int
    matrices: int

    @property
    def refusals(self) -> tuple[Finding, ...]:
        return tuple(one for one in self.findings if one.level == "refusal")

    @property
    def fits(self) -> bool:
        """Whether a merge of the inputs would go through as they are."""
        return not self.refusals

    @property
    def exit_code(self) -> int:
        """With which the command ends: that of damaged inputs, where there are any."""
        return min((one.code for one in self.refusals), default=0)

    def to_dict(self) -> dict[str, object]:
        """The diagnosis as plain values, for --json: `taskmerge schema doctor`."""
        return {
            "report": KIND,
            "schema_version": SCHEMA_VERSION,
            "version": __version__,
            "fits": self.fits,
            "exit_code": self.exit_code,
            "base": None if self.base is None else asdict(self.base),
            "experts": [asdict(one) for one in self.experts],
            "pairs": [asdict(one) for one in self.pairs],
            "families": [list(one) for one in self.families],
            "findings": [asdict(one) for one in self.findings],
            "commands": [
                {"about": one.about, "command": one.text, "arguments": one.arguments} for one in self.commands
            ],
            "compared": {"tensors": self.tensors, "parameters": self.parameters, "matrices": self.matrices},
        }


@cache
def schema() -> dict[str, Any]:
    """The published JSON schema (draft 2020-12) of diagnoses."""
    text = (files("taskmerge.diagnosis") / "doctor.schema.json").read_text(encoding="utf-8")
    document: dict[str, Any] = json.loads(text)
    return document
