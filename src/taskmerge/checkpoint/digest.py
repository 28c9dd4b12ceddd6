"""Content digests: what a checkpoint holds, whatever its sharding, order or transport."""

import hashlib
import json
from collections.abc import Iterable, Mapping

from taskmerge.checkpoint.canonical import quoted
from taskmerge.checkpoint.checkpoint import Checkpoint
from taskmerge.checkpoint.dtypes import bytes_of
from taskmerge.checkpoint.provenance import provenance_of


def tensor_line(name: str, dtype: str, shape: tuple[int, ...], sha256: str) -> str:
    """One tensor's line: a JSON list of name, dtype code, shape, and the SHA-256 of its bytes in hex; compact."""
    return f'[{quoted(name)},"{dtype}",[{",".join(map(str, shape))}],"{sha256}"]'


def content_digest(lines: Iterable[str]) -> str:
    """`sha256:` and the SHA-256 over the sorted lines, each ended by a line feed."""
    digest = hashlib.sha256()
    for line in sorted(lines):
        digest.update(f"{line}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def digest_of(checkpoint: Checkpoint, names: Iterable[str] | None = None) -> str:
    """The content digest of a checkpoint as it is stored, or of those of its stored tensors that `names` lists; reads
    1 MiB at a time."""
    chosen = checkpoint.stored if names is None else names
    return content_digest([_line_of(checkpoint, name) for name in chosen])


def digest_of_files(files: Mapping[str, Checkpoint]) -> str:
    """The content digest of several files that make up one model, by their places in it: of their tensors, and of what
    taskmerge's own metadata says of these (a head's activation)."""
    lines = []
    for place, file in files.items():
        lines += [json.dumps([place, provenance_of(file)], ensure_ascii=False, sort_keys=True)]
        lines += [json.dumps([place, _line_of(file, name)], ensure_ascii=False) for name in file.specs]
    return content_digest(lines)


def _line_of(checkpoint: Checkpoint, name: str) -> str:
    spec = checkpoint.stored[name]
    digest = hashlib.sha256()
    for piece in checkpoint.pieces(name):
        digest.update(bytes_of(piece))
    return tensor_line(name, spec.dtype, spec.shape, digest.hexdigest())
