"""What a file that taskmerge wrote says of itself: the entry `taskmerge` of its metadata, in canonical JSON."""

import hashlib
import json
from collections.abc import Mapping

from taskmerge.checkpoint.checkpoint import Checkpoint
from taskmerge.checkpoint.records import misfit
from taskmerge.documents import parse_json
from taskmerge.errors import BadFile

KEY = "taskmerge"
BLANK = "sha256:" + "0" * 64
"""A digest that is not known yet, where room for one is set aside."""
SEAL = "seal"
"""The entry that holds the digest of all others: of a record that was damaged it is known that it was."""


def canonical(record: Mapping[str, object]) -> str:
    """Canonical JSON: sorted keys, no spaces. A name of a file that is no Unicode has `?` where it is none."""
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8", "replace").decode()


def metadata(record: Mapping[str, object]) -> dict[str, str]:
    """The metadata of an output file."""
    return {"format": "pt", KEY: canonical(record)}


def sealed(record: Mapping[str, object]) -> dict[str, object]:
    """The record with the digest of itself, for what `verify` is to trust."""
    return {**record, SEAL: f"sha256:{hashlib.sha256(canonical(record).encode()).hexdigest()}"}


def is_damaged(checkpoint: Checkpoint) -> bool:
    """Whether a file's record is not what its seal was put under; one without a seal is not known to be."""
    record = _read(checkpoint)
    if record is None or SEAL not in record:
        return False
    return sealed({key: value for key, value in record.items() if key != SEAL}) != record


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
    """The provenance that taskmerge wrote into a file's metadata, without its seal."""
    record = _read(checkpoint)
    return None if record is None else {key: value for key, value in record.items() if key != SEAL}


def _read(checkpoint: Checkpoint) -> dict[str, object] | None:
    """The record as it stands in the metadata."""
    text = checkpoint.metadata.get(KEY)
    if text is None:
        return None
    try:
        record = parse_json(text)
    except ValueError:
        record = None
    wrong = "no JSON object" if not isinstance(record, dict) else misfit(record)
    if wrong:
        what = wrong if not isinstance(record, dict) else f"no record: {wrong}"
        raise BadFile(f"its metadata `taskmerge` is {what}", where=str(checkpoint.path), hint="write the file again")
    return dict(record)
