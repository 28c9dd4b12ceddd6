"""What `verify` answers, as values."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from taskmerge.checkpoint.companions import Change
from taskmerge.errors import BadFile

MOST = 12
"""Files that a message names."""
Verdict = Literal["same bytes", "same up to last bits", "changed", "not replayed"]


@dataclass(frozen=True)
class Verification:
    """What `verify` found out. `replayed`: the recipe was carried out again; `same_file`: and every file is, byte for
    byte, what comes of it here (one that another program or another taskmerge wrote is not).

    `files` are those that the merge wrote, by their places in the output's folder, `changed` those of them that are not
    what it wrote. Of `numbers`, `entries` differ by rounding, in `last_bits` at most; `elsewhere` says what differs
    between where it was merged and here.
    """

    path: str
    digest: str
    tensors: int
    bytes: int
    provenance: Mapping[str, Any] | None
    replayed: bool = False
    same_file: bool = False
    files: tuple[str, ...] = ()
    changed: tuple[Change, ...] = ()
    numbers: int = 0
    entries: int = 0
    last_bits: int = 0
    elsewhere: tuple[str, ...] = ()
    experts: Mapping[str, str] = field(default_factory=dict)
    base: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """The answer in a few words."""
        if self.changed:
            return "changed"
        if not self.replayed:
            return "not replayed"
        return "same up to last bits" if self.last_bits else "same bytes"

    def to_dict(self) -> dict[str, object]:
        """The verification as plain values, for --json."""
        return {**asdict(self), "verdict": self.verdict}


class Changed(BadFile):
    """Files that are not what the merge wrote; `verification` holds all that is known of them."""

    def __init__(self, verification: Verification) -> None:
        self.verification = verification
        named = [f"{one.file} ({one.what})" for one in verification.changed[:MOST]]
        more = len(verification.changed) - len(named)
        super().__init__(
            f"changed: {'; '.join(named)}" + (f" and {more:,} more" if more else ""), where=verification.path,
            hint="these files were changed after the merge, or its recipe was: merge again",
        )  # fmt: skip
