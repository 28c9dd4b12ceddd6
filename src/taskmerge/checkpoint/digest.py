"""Content digests: what a checkpoint holds, whatever its sharding, order or transport."""

import hashlib
import json
from collections.abc import Iterable

from taskmerge.checkpoint.checkpoint import Checkpoint
from taskmerge.checkpoint.dtypes import bytes_of


def tensor_line(name: str, dtype: str, shape: tuple[int, ...], sha256: str) -> str:
    """One tensor's line: a JSON list of name, dtype code, shape, and the SHA-256 of its bytes in hex."""
    return json.dumps([name, dtype, list(shape), sha256], ensure_ascii=False, separators=(",", ":"))


def content_digest(lines: Iterable[str]) -> str:
    """`sha256:` and the SHA-256 over the sorted lines, each ended by a line feed."""
    digest = hashlib.sha256()
    for line in sorted(lines):
        digest.update(f"{line}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def digest_of(checkpoint: Checkpoint, names: Iterable[str] | None = None) -> str:
    """The content digest of a checkpoint, or of those of its tensors that `names` lists; reads 1 MiB at a time."""
    chosen = checkpoint.specs if names is None else names
    return content_digest([_line_of(checkpoint, name) for name in chosen])


def _line_of(checkpoint: Checkpoint, name: str) -> str:
    spec = checkpoint.specs[name]
    digest = hashlib.sha256()
    for piece in checkpoint.pieces(name):
        digest.update(bytes_of(piece))
    return tensor_line(name, spec.dtype, spec.shape, digest.hexdigest())
