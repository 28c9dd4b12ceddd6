"""What a diagnosis finds: what a merge would stop at, and what one should know of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from taskmerge.errors import BadFile, Mismatch, TaskmergeError

Level = Literal["refusal", "warning", "note"]
LEVELS: tuple[Level, ...] = ("refusal", "warning", "note")
Topic = Literal["inputs", "tensors", "files", "weights"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found. A `refusal` is what a merge as asked for stops at; `code` is then how it exits.

    `topic`: the inputs one by one, their tensors beside each other, the files that go with them, their numbers.
    """

    level: Level
    topic: Topic
    what: str
    where: str | None = None
    hint: str | None = None
    code: int = 0


def refusal(error: TaskmergeError, topic: Topic) -> Finding:
    """An error of a merge as a finding: inputs that are damaged, or that do not fit together."""
    code = BadFile.exit_code if isinstance(error, BadFile) else Mismatch.exit_code
    return Finding("refusal", topic, error.what, error.where, error.hint, code)


def told(notes: Sequence[str], warnings: Sequence[str], topic: Topic) -> list[Finding]:
    """What a merge would say on the way, as findings."""
    return [Finding("warning", topic, text) for text in warnings] + [Finding("note", topic, text) for text in notes]
