"""What was done: the provenance inside every output, and the receipt that the caller gets."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from taskmerge.experts.rows import Rows
from taskmerge.experts.sources import CheckpointSource, Source, Tally
from taskmerge.merging.plan import Plan
from taskmerge.numerics.arithmetic import arithmetic


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
    rows: Rows,
    warnings: Sequence[str],
    files: Mapping[str, object] | None = None,
) -> dict[str, object]:
    """The provenance of one output (design.md §1): no clock time, path, user name or thread count.

    `files` is what goes beside the weights, as `companions.described` says it.
    """
    classes: dict[str, int] = {}
    for kind, count, _, _ in plan.classes():
        classes[kind] = classes.get(kind, 0) + count
    record: dict[str, object] = {
        "kind": "merge",
        "version": version,
        "recipe": recipe,
        "tasks": [_entry(expert, rows.tallies) for expert in rows.experts],
        "tensors": classes,
        "treated": {f"{kind}/{how}": count for kind, count, _, how in plan.classes()},
        "device": rows.device.type,
        "arithmetic": _arithmetic(plan, rows),
        "warnings": list(warnings),
    }
    if files:
        record["files"] = dict(files)
    base = _entry(rows.base, rows.tallies) if rows.base is not None else {}
    if base.get("tensors"):  # a base that lies there unread leaves no trace
        record["base"] = base
    return record


def _arithmetic(plan: Plan, rows: Rows) -> dict[str, str]:
    """What the bytes depend on beside inputs and recipe; where neither the method nor an input (factors, adapters)
    multiplies matrices, not on how that is done."""
    reads = {job.reads for job in plan.jobs}
    sources = [*rows.experts, *([rows.base] if rows.base is not None else [])]
    plain = all(type(source) is CheckpointSource for source in sources)
    return arithmetic(rows.device, products=not plain or bool(reads - {"elements"}), factors="matrix" in reads)


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
