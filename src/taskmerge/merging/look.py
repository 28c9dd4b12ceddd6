"""What is read of a merge's inputs: their rows with digests, and what these say of them afterwards."""

from collections.abc import Mapping

import torch

from taskmerge.checkpoint.ahead import Stamp, stamp
from taskmerge.experts.adapters import AdapterSource
from taskmerge.experts.rows import Rows
from taskmerge.experts.sources import Source, Tally
from taskmerge.merging.prepare import Prepared


def rows_of(prepared: Prepared, digested: Mapping[Stamp, Mapping[str, str]] | None) -> Rows:
    """The rows of the merge, with digests of what is read unless `digested` (what has been digested ahead) is None."""
    inputs, spec = prepared.inputs, prepared.spec
    tallies = (
        {} if digested is None else {id(source): Tally(_known_digests(source, digested)) for source in inputs.sources}
    )
    weights = torch.tensor([spec.weights.get(expert.task, 1.0) for expert in inputs.experts], dtype=torch.float64)
    dtype = torch.float64 if spec.compute_dtype == "float64" else torch.float32
    space = prepared.points[0].last.space
    return Rows(inputs.base, inputs.experts, space, weights, dtype, prepared.device, tallies)


def _known_digests(source: Source, digested: Mapping[Stamp, Mapping[str, str]]) -> dict[str, str]:
    """The SHA-256 of those tensors of a source that have been digested already, in the version that will be read."""
    files = {spec.file for spec in source.stored.values()}
    versions = {file: digested[now] for file in files if (now := stamp(file)) is not None and now in digested}
    return {
        name: versions[spec.file][name]
        for name, spec in source.stored.items()
        if spec.file in versions and name in versions[spec.file]
    }


def twins(rows: Rows) -> list[str]:
    """Warnings for experts of the same content."""
    seen: dict[str, str] = {}
    warnings = []
    for expert in rows.experts:
        if id(expert) in rows.tallies:
            digest, _ = rows.tallies[id(expert)].finish(expert.stored)
            if digest in seen:
                warnings.append(f"{seen[digest]} and {expert.task} are the same, tensor for tensor")
            seen.setdefault(digest, expert.task)
    return warnings


def idle(rows: Rows) -> list[str]:
    """Warnings for experts that change nothing: adapters whose products are zero, and what is the base itself."""
    warnings = []
    base = None if rows.base is None else rows.tallies.get(id(rows.base))
    for expert in rows.experts:
        tally = rows.tallies.get(id(expert))
        if isinstance(expert, AdapterSource):
            if expert.idle:
                warnings.append(f"{expert.task} changes nothing: its B or A is zero throughout, as before training")
        elif expert.kind == "weight" and tally and base and rows.base and tally.same_as(base, expert, rows.base):
            warnings.append(f"{expert.task} equals the base, tensor for tensor: it changes nothing")
    return warnings
