"""Whether the files of an output are what its record says, as far as that is known without merging again."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from taskmerge.checkpoint.canonical import OutputSpec, header_bytes, index_bytes, plan_file
from taskmerge.checkpoint.checkpoint import Checkpoint
from taskmerge.checkpoint.companions import OTHER, Change, companion_changes, strangers
from taskmerge.checkpoint.header import LENGTH_BYTES, Header, raw_header, read_header
from taskmerge.checkpoint.provenance import KEY, canonical
from taskmerge.checkpoint.weights import MAX_INDEX
from taskmerge.documents import parse_json, read_regular
from taskmerge.errors import BadOutput

FORMAT = {"format": "pt"}
"""All that metadata holds beside the record."""


@dataclass(frozen=True, slots=True)
class Written:
    """`changes` are what is not as it was written; `canonical` says that headers and index are laid out as taskmerge
    does it; `others` are names in the output's folder that it did not write; `files` those that it did."""

    changes: tuple[Change, ...]
    canonical: bool
    others: tuple[str, ...]
    files: tuple[str, ...]


def home_of(checkpoint: Checkpoint) -> Path:
    """The folder that an output's files are in."""
    return checkpoint.folder or checkpoint.path.parent


def look_at(checkpoint: Checkpoint, record: Mapping[str, Any], heads: str | None = None) -> Written:
    """Looks at headers, the index, and the files beside the weights that the record lists; `heads` is the folder of the
    heads, where there is one. Of files that were not written here only the names are looked at."""
    home, recorded = home_of(checkpoint), record.get("files", {})
    headers = [read_header(file) for file in checkpoint.files]
    names = [file.relative_to(home).as_posix() for file in checkpoint.files]
    changes = [
        Change(name, "its metadata was changed")
        for name, header in zip(names, headers, strict=True)
        if header.metadata != {**FORMAT, KEY: checkpoint.metadata[KEY]}
    ]
    index, plain = _index(checkpoint, names, headers)
    changes += [*index, *companion_changes(home, recorded)]
    files = (*names, *([checkpoint.index.name] if checkpoint.index else []), *recorded)
    added, others = strangers(home, {*files, *([heads] if heads else [])}) if recorded else ([], [])
    return Written((*changes, *added), plain and all(map(_is_canonical, headers)), tuple(others), files)


def _index(checkpoint: Checkpoint, names: list[str], headers: list[Header]) -> tuple[list[Change], bool]:
    """What is wrong with the index, and whether it is written as taskmerge writes one. It joins the right files, or
    the checkpoint could not have been opened."""
    if checkpoint.index is None:
        return [], True
    raw = read_regular(checkpoint.index, MAX_INDEX)
    right = index_bytes({name: _outputs(header) for name, header in zip(names, headers, strict=True)})
    if raw == right:
        return [], True
    same = parse_json(raw) == parse_json(right)
    return ([] if same else [Change(checkpoint.index.name, OTHER)]), False


def _is_canonical(header: Header) -> bool:
    """Whether a file's header is, byte for byte, the one that is written for these tensors and this record."""
    raw, said = raw_header(header.path), header.metadata.get(KEY, "{}")
    if canonical(parse_json(said)) != said:
        return False
    plan = replace(plan_file(_outputs(header), 0), header_size=len(raw) - LENGTH_BYTES)
    try:
        return header_bytes(plan, header.metadata) == raw
    except BadOutput:  # longer than the file's own
        return False


def _outputs(header: Header) -> list[OutputSpec]:
    return [OutputSpec(spec.name, spec.dtype, spec.shape) for spec in header.specs.values()]
