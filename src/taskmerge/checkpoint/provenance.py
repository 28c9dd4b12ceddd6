"""What a file that taskmerge wrote says of itself: the entry `taskmerge` of its metadata, in canonical JSON."""

import json
from collections.abc import Mapping
from typing import Any

from taskmerge.checkpoint.checkpoint import Checkpoint
from taskmerge.documents import parse_json
from taskmerge.errors import BadFile

KEY = "taskmerge"
SHAPE: dict[str, type] = {
    "kind": str, "recipe": dict, "tasks": list, "base": dict, "experts": dict, "ranks": dict
}  # fmt: skip
BLANK = "sha256:" + "0" * 64
"""A digest that is not known yet, where room for one is set aside."""


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
        record = parse_json(text)
    except ValueError:
        record = None
    wrong = "no JSON object" if not isinstance(record, dict) else _misshapen(record)
    if wrong:
        raise BadFile(f"its metadata `taskmerge` is {wrong}", where=str(checkpoint.path), hint="write the file again")
    return dict(record)


def _misshapen(record: Mapping[str, Any]) -> str:
    """What about a record from a file, which anybody may have written, is not as a record is; "" if nothing."""
    needed = ("recipe", "tasks") if record.get("kind") == "merge" else ()
    for name, type_ in SHAPE.items():
        if not isinstance(record.get(name, None if name in needed else type_()), type_):
            return f"no record: `{name}` is {'missing' if name not in record else 'malformed'}"
    named = (isinstance(task, dict) and isinstance(task.get("name"), str) for task in record.get("tasks", ()))
    if not all(named) or not isinstance(record.get("recipe", {}).get("options", {}), dict):
        return "no record: a task or an option is malformed"
    return ""
