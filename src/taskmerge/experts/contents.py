"""`inspect`: what is in a file, an index, a folder or an adapter, from its headers."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from taskmerge.checkpoint.checkpoint import Checkpoint, open_checkpoint
from taskmerge.checkpoint.digest import digest_of
from taskmerge.checkpoint.dtypes import is_float
from taskmerge.checkpoint.header import TensorSpec
from taskmerge.checkpoint.provenance import provenance_of
from taskmerge.documents import read_object
from taskmerge.experts.classes import CLASSES, classify
from taskmerge.experts.factors import PARTS
from taskmerge.experts.lora_names import CONFIG, is_adapter
from taskmerge.experts.tensors import Part, Unit
from taskmerge.types import TensorClass

SHOWN_OF_ADAPTER = ("peft_type", "r", "lora_alpha", "use_rslora", "target_modules", "base_model_name_or_path")


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor: `truncated` says whether spectral methods truncate it without --also, `rank` how many components
    a factored one is stored with."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    kind: TensorClass
    bytes: int
    truncated: bool
    rank: int | None = None

    @property
    def parameters(self) -> int:
        count = 1
        for side in self.shape:
            count *= side
        return count


@dataclass(frozen=True, slots=True)
class ClassEntry:
    """One class of tensors: how many, of how many parameters, what share of all, how many are truncated."""

    kind: TensorClass
    tensors: int
    parameters: int
    share: float
    truncated: int


@dataclass(frozen=True)
class Inspection:
    """What a path holds. `kind`: checkpoint, adapter, or what taskmerge wrote: merge, task, vector, ...."""

    path: str
    kind: str
    files: tuple[str, ...]
    tensors: tuple[TensorEntry, ...]
    parameters: int
    bytes: int
    dtypes: Mapping[str, int]
    classes: tuple[ClassEntry, ...]
    provenance: Mapping[str, Any] | None
    adapter: Mapping[str, Any] | None
    metadata: Mapping[str, str]
    tied: Mapping[str, str]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    digest: str | None

    def to_dict(self) -> dict[str, object]:
        """The inspection as plain values, for --json."""
        return asdict(self)


def inspect(path: str | Path, *, digest: bool = False, allow_pickle: bool = False) -> Inspection:
    """What is in a safetensors file, an index, a model folder, a pickled state dict (if allowed) or an adapter.

    Reads headers only, unless `digest` asks for the content digest. Raises `BadFile` for what cannot be read.
    """
    with open_checkpoint(Path(path), allow_pickle=allow_pickle) as checkpoint:
        record = provenance_of(checkpoint)
        tensors = _entries(checkpoint, record)
        adapter = _adapter(Path(path))
        return Inspection(
            str(path), _kind(record, adapter), tuple(map(str, checkpoint.files)), tensors,
            sum(tensor.parameters for tensor in tensors), sum(tensor.nbytes for tensor in checkpoint.stored.values()),
            dict(sorted(Counter(spec.dtype for spec in checkpoint.stored.values()).items())), _classes(tensors), record,
            adapter, {key: text for key, text in checkpoint.metadata.items() if key != "taskmerge"},
            dict(checkpoint.tied), checkpoint.notes, checkpoint.warnings,
            digest_of(checkpoint) if digest else None,
        )  # fmt: skip


def _kind(record: Mapping[str, Any] | None, adapter: Mapping[str, Any] | None) -> str:
    return "adapter" if adapter is not None else str((record or {}).get("kind", "checkpoint"))


def _entries(checkpoint: Checkpoint, record: Mapping[str, Any] | None) -> tuple[TensorEntry, ...]:
    """The tensors by name; the three factors of a matrix count as that matrix."""
    specs = checkpoint.specs
    ranks = (record or {}).get("ranks") or {}
    factored = {name for name in ranks if all(name + part in specs for part in PARTS)}
    parts = {name + part for name in factored for part in PARTS}
    plain = {name: spec for name, spec in specs.items() if name not in parts}
    entries = {name: _plain_entry(spec) for name, spec in plain.items()}
    for name in factored:
        u, s, vt = (specs[name + part] for part in PARTS)
        nbytes = u.nbytes + s.nbytes + vt.nbytes
        entries[name] = _entry(name, u.dtype, (*u.shape[:-1], vt.shape[-1]), nbytes, rank=int(ranks[name]))
    return tuple(entries[name] for name in sorted(entries))


def _plain_entry(spec: TensorSpec) -> TensorEntry:
    """A tensor by the type that it is stored in; its bytes are those of its scales too."""
    entry = _entry(spec.name, spec.dtype, spec.shape, sum(part.nbytes for part in spec.stored))
    return replace(entry, dtype=spec.stored[0].dtype)


def _entry(name: str, dtype: str, shape: tuple[int, ...], nbytes: int, rank: int | None = None) -> TensorEntry:
    unit = Unit((Part(name, shape),), shape, classify(name, shape, is_float(dtype)))
    return TensorEntry(name, dtype, shape, unit.kind, nbytes, unit.truncated(), rank)


def _classes(tensors: tuple[TensorEntry, ...]) -> tuple[ClassEntry, ...]:
    """The table of classes, in their usual order; those without a tensor are left out."""
    total = sum(tensor.parameters for tensor in tensors) or 1
    rows = []
    for kind in CLASSES:
        members = [tensor for tensor in tensors if tensor.kind == kind]
        count = sum(tensor.parameters for tensor in members)
        if members:
            truncated = sum(tensor.truncated for tensor in members)
            rows.append(ClassEntry(kind, len(members), count, count / total, truncated))
    return tuple(rows)


def _adapter(path: Path) -> dict[str, Any] | None:
    """What the configuration of an adapter's folder says, or None where there is none."""
    if not is_adapter(path):
        return None
    file = (path if path.is_dir() else path.parent) / CONFIG
    if not file.is_file():
        return None
    config = read_object(file, constants=True)
    return {key: config[key] for key in SHOWN_OF_ADAPTER if key in config}
