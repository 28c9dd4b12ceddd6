"""What was done: the provenance inside every output, and the receipt that the caller gets."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from taskmerge.checkpoint.checkpoint import Checkpoint
from taskmerge.errors import BadFile
from taskmerge.merging.plan import Plan
from taskmerge.merging.sources import Source, Tally

KEY = "taskmerge"
SHAPE: dict[str, type] = {
    "kind": str, "recipe": dict, "tasks": list, "base": dict, "experts": dict, "ranks": dict
}  # fmt: skip
BLANK = "sha256:" + "0" * 64


@dataclass(frozen=True, slots=True)
class OutputRecord:
    """One written checkpoint: where it is, its size, and the grid point that made it."""

    path: str
    files: tuple[str, ...]
    bytes: int
    options: Mapping[str, object]


@dataclass(frozen=True)
class MergeReceipt:
    """What a merge wrote, from what, how, and at what cost. Times and memory are measured."""

    outputs: tuple[OutputRecord, ...]
    provenance: Mapping[str, object]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    bytes_read: int
    bytes_written: int
    predicted_memory: int
    peak_memory: int
    seconds: float
    timing: Mapping[str, float] = field(default_factory=dict)

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(output.path for output in self.outputs)

    def to_dict(self) -> dict[str, object]:
        """The receipt as plain values, for --json."""
        return asdict(self)


def provenance(
    version: str,
    recipe: Mapping[str, object],
    plan: Plan,
    experts: Sequence[Source],
    base: Source | None,
    tallies: Mapping[int, Tally],
    device: str,
    warnings: Sequence[str],
) -> dict[str, object]:
    """The provenance of one output (design.md §1): no clock time, path, user name or thread count."""
    classes: dict[str, int] = {}
    for kind, count, _, _ in plan.classes():
        classes[kind] = classes.get(kind, 0) + count
    record: dict[str, object] = {
        "kind": "merge",
        "version": version,
        "recipe": recipe,
        "tasks": [_entry(expert, tallies) for expert in experts],
        "tensors": classes,
        "treated": {f"{kind}/{how}": count for kind, count, _, how in plan.classes()},
        "device": device,
        "warnings": list(warnings),
    }
    used = _entry(base, tallies) if base is not None else {}
    if used.get("tensors"):  # a base that lies there unread leaves no trace
        record["base"] = used
    return record


def _entry(source: Source, tallies: Mapping[int, Tally]) -> dict[str, object]:
    """Name and content digest of one input; `partial` when it holds tensors that were not read."""
    entry: dict[str, object] = {"name": source.task}
    tally = tallies.get(id(source))
    if tally is None:
        return entry
    digest, count = tally.finish(source.stored)
    entry |= {"digest": digest, "tensors": count}
    if count < len(source.stored):
        entry["partial"] = True
    return entry


def canonical(record: Mapping[str, object]) -> str:
    """Canonical JSON: sorted keys, no spaces."""
    return json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def metadata(record: Mapping[str, object]) -> dict[str, str]:
    """The metadata of an output file."""
    return {"format": "pt", KEY: canonical(record)}


def reserve(record: Mapping[str, object], inputs: int) -> int:
    """Bytes that a header must set aside for a provenance whose digests and late warnings are not yet known.

    A late warning of an input names two tasks, and in a header a name's quotes and control characters are escaped
    twice.
    """
    tasks = record.get("tasks")
    names = [str(one.get("name")) for one in tasks if isinstance(one, dict)] if isinstance(tasks, list) else []
    escapes = max((len(_escaped(_escaped(name)).encode()) - len(name.encode()) for name in names), default=0)
    return len(canonical(record).encode()) * 2 + 512 + (400 + 3 * escapes) * inputs


def _escaped(text: str) -> str:
    """A text as it stands between the quotes of JSON."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def provenance_of(checkpoint: Checkpoint) -> dict[str, object] | None:
    """The provenance that taskmerge wrote into a file's metadata."""
    text = checkpoint.metadata.get(KEY)
    if text is None:
        return None
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    wrong = "no JSON object" if not isinstance(found, dict) else _misshapen(found)
    if wrong:
        raise BadFile(f"its metadata `taskmerge` is {wrong}", where=str(checkpoint.path), hint="write the file again")
    return dict(found)


def _misshapen(record: Mapping[str, Any]) -> str:
    """What about a record from a file, which anybody may have written, is not as a record is; "" if nothing."""
    needed = ("recipe", "tasks") if record.get("kind") == "merge" else ()
    for name, type_ in SHAPE.items():
        if not isinstance(record.get(name, None if name in needed else type_()), type_):
            return f"no record: `{name}` is {'missing' if name not in record else 'malformed'}"
    named = (isinstance(one, dict) and isinstance(one.get("name"), str) for one in record.get("tasks", ()))
    if not all(named) or not isinstance(record.get("recipe", {}).get("options", {}), dict):
        return "no record: a task or an option is malformed"
    return ""
