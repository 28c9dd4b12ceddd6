"""`merge --as-adapter`: the merged task vector as a PEFT adapter of a given rank, and what that leaves out."""

import json
import math
import re
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from taskmerge.checkpoint.ahead import Ahead
from taskmerge.checkpoint.canonical import OutputSpec
from taskmerge.checkpoint.companions import described
from taskmerge.checkpoint.dialects import plain
from taskmerge.checkpoint.dtypes import is_float
from taskmerge.checkpoint.provenance import metadata, reserve, sealed
from taskmerge.checkpoint.writer import commit, stage
from taskmerge.errors import Mismatch, UsageError, listed
from taskmerge.experts.adapters import AdapterSource, base_names, lies_transposed, orientations
from taskmerge.experts.classes import Block
from taskmerge.experts.lora_names import CONFIG, WEIGHTS
from taskmerge.experts.sources import Source
from taskmerge.experts.tensors import Unit, unit_of
from taskmerge.merging.execute import execute
from taskmerge.merging.kernels import bind_points
from taskmerge.merging.look import idle, rows_of
from taskmerge.merging.prepare import Prepared, prepare
from taskmerge.merging.record import MergeReceipt, OutputRecord, provenance
from taskmerge.merging.request import Request
from taskmerge.merging.run import Run, progress_of
from taskmerge.numerics.lapack import load_routines
from taskmerge.numerics.memory import peak_memory
from taskmerge.numerics.spectral import TaskMatrices
from taskmerge.version import __version__

STEM = WEIGHTS[0].removesuffix(".safetensors")
FRONT = "base_model.model."
NOISE = 1e-12  # share of the largest singular value below which a component is rounding
FAITHFUL = 1e-6  # share of the energy that may be lost without a warning


@dataclass(frozen=True, slots=True)
class Pair:
    """The factors of one tensor's change: left [out, r], right [r, in], of a table those of its transpose."""

    left: Tensor
    right: Tensor
    table: bool


@dataclass
class Factored:
    """Takes merged tensors, and keeps of each the leading components of its difference from the base.

    `energies` are ‖Δ‖² of every tensor's difference, and what of it its components hold: nothing of tensors that no
    adapter holds, which are `strange`. Safe to use from several threads.
    """

    base: Source
    rank: int
    experts: Sequence[Source]
    pairs: dict[str, Pair] = field(default_factory=dict)
    energies: dict[str, tuple[float, float]] = field(default_factory=dict)
    strange: list[str] = field(default_factory=list)
    _open: dict[str, Tensor] = field(default_factory=dict)
    _missing: dict[str, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def lost(self) -> float:
        """The share of the energy that the components do not hold."""
        total, kept = (math.fsum(column) for column in zip(*self.energies.values(), strict=True))
        return min(max(1 - kept / total, 0.0), 1.0) if total else 0.0

    @property
    def outside(self) -> float:
        """The share of the energy that is in tensors which no adapter holds."""
        total = math.fsum(energy for energy, _ in self.energies.values())
        return math.fsum(energy for name, (energy, _) in self.energies.items() if name not in self.pairs) / total

    def turned(self, name: str) -> bool:
        """Whether a weight lies as [in, out], as GPT-2's: an adapter among the experts knows, else its neighbours
        tell."""
        adapters = [one for one in self.experts if isinstance(one, AdapterSource) and one.changes(name)]
        return adapters[0].transposed(name) if adapters else lies_transposed(name, self._shown)

    @cached_property
    def _shown(self) -> Mapping[Block | None, set[bool]]:
        return orientations(self.base)

    def write(self, name: str, data: Tensor, start_element: int = 0) -> None:
        """Elements of a merged tensor; once all are there, it is factored."""
        spec = self.base.specs[name]
        if not is_float(spec.dtype):
            same = torch.equal(data.reshape(-1).view(torch.uint8), self.base.raw(name, None))
            self.strange += [] if same else [name]
            return
        with self._lock:
            whole = self._open.setdefault(name, torch.empty(spec.numel, dtype=torch.float64))
        whole[start_element : start_element + data.numel()] = data.reshape(-1)
        with self._lock:
            self._missing[name] = self._missing.get(name, spec.numel) - data.numel()
            done = self._missing[name] == 0
            if done:
                del self._open[name]
        if done:
            self._factor(name, whole)

    def _factor(self, name: str, merged: Tensor) -> None:
        """The leading components of one tensor's difference."""
        held = torch.empty_like(merged)
        self.base.read(name, 0, held, torch.empty(merged.nbytes, dtype=torch.uint8), None)
        delta = merged.sub_(held)
        energy = float(delta.dot(delta))
        unit = unit_of(name, self.base.specs[name])
        pair = self._pair(unit, delta) if energy and _holdable(unit) else None
        kept = 0.0 if pair is None else float(torch.linalg.matrix_norm(pair.left.double() @ pair.right.double()) ** 2)
        with self._lock:
            self.energies[name] = energy, kept
            if pair is not None:
                self.pairs[name] = pair
            elif energy:
                self.strange.append(name)

    def _pair(self, unit: Unit, delta: Tensor) -> Pair:
        table = unit.kind == "embedding"
        matrix = delta.view(unit.matrix)
        turned = table or self.turned(unit.name)
        (found,) = TaskMatrices((matrix.mT if turned else matrix)[None].contiguous()).top(self.rank)
        strong = int((found.s > NOISE * found.s[:1].sum()).sum())
        root = found.s[:strong].sqrt()
        return Pair((found.u[:, :strong] * root).float(), (root[:, None] * found.vt[:strong]).float(), table)


def merge_as_adapter(request: Request, ahead: Ahead | None = None) -> MergeReceipt:
    """Merges in float64, and writes what the base has to be changed by as an adapter of peft's.

    Raises `UsageError` without a base, for a grid, and for an output that is a file; `Mismatch` where nothing changes.
    """
    started = time.perf_counter()
    folder = _folder(request)
    precise = replace(request.spec, dtype="F64", compute_dtype="float64")
    prepared = prepare(request.inputs, precise, request.opening, replace(request.running, output=folder / WEIGHTS[0]))
    plan, inputs, base = prepared.plan, prepared.inputs, prepared.inputs.base
    with ExitStack() as stack:
        stack.callback(inputs.close)
        if base is None:
            raise UsageError("an adapter changes a base", where="--base", hint="name it: `--base FILE`")
        _check_held(prepared, base)
        if any(job.reads == "matrix" for job in plan.jobs):
            load_routines()
        digested = ahead.take() if ahead is not None else {}
        rows = rows_of(prepared, digested if request.running.digests else None)
        found = Factored(base, request.running.adapter_rank, inputs.experts)
        execute(Run(precise, plan, rows, prepared.points, [found], progress_of(plan, request.running)))
        inputs.check_unchanged()
        if not found.pairs:
            what = "the merge changes no matrix of the base: there is no adapter to write"
            raise Mismatch(what, where=base.where, hint="are the experts fine-tunings of this base?")
        warnings = idle(rows)
        recipe = request.spec.recipe(prepared.points[0].values)
        record = provenance(__version__, recipe, plan, rows, warnings)
        sidecars = {CONFIG: (json.dumps(_config(found, prepared), indent=2, sort_keys=True) + "\n").encode()}
        record |= {"kind": "adapter", "rank": found.rank, "lost_energy": found.lost, "files": described(sidecars)}
        record = sealed(record)
        files, size = _written(folder, found, sidecars, record, request)
    notes, more = _told(found)
    output = OutputRecord(str(folder), files, size, dict(recipe["options"]))  # type: ignore[call-overload]  # a mapping
    return MergeReceipt(
        (output,), record, (*plan.notes, *inputs.notes, *notes), (*inputs.warnings, *warnings, *more),
        plan.costs.bytes_read, size, plan.costs.memory, peak_memory(), time.perf_counter() - started,
    )  # fmt: skip


def _folder(request: Request) -> Path:
    """Where the adapter goes."""
    if len(bind_points(request.spec)) > 1:
        raise UsageError("an adapter holds one merge, not a grid", where="--as-adapter", hint="give one value each")
    output = request.running.output or Path(f"merged-{request.spec.method.replace('_', '-')}-adapter")
    if output.suffix == ".safetensors":
        hint = f"name a folder, such as `-o {output.with_suffix('')}`"
        raise UsageError("an adapter is a folder: weights and configuration", where="-o", hint=hint)
    return output


def _check_held(prepared: Prepared, base: Source) -> None:
    """Refuses a merge of tensors that the base lacks: an adapter adds none."""
    absent = [output.name for output in prepared.plan.outputs() if output.name not in base.specs]
    if absent or prepared.plan.heads:
        what = f"an adapter adds no tensors: {listed((*absent, *prepared.plan.heads))}"
        raise Mismatch(what, where=base.where, hint="leave them out with `--exclude`, or write a whole model")


def _holdable(unit: Unit) -> bool:
    """Whether peft's adapters hold a change of this tensor: a matrix of a linear layer or a table of embeddings."""
    return unit.kind in ("linear", "projection", "embedding") and len(unit.shape) == 2 and unit.name.endswith(".weight")


# --- what is written -------------------------------------------------------------------------------------------


def _written(
    folder: Path, found: Factored, sidecars: Mapping[str, bytes], record: Mapping[str, object], request: Request
) -> tuple[tuple[str, ...], int]:
    """The files of the adapter, and their size: both or none."""
    tensors = {name: value for tensor, pair in sorted(found.pairs.items()) for name, value in _named(tensor, pair)}
    specs = [OutputSpec(name, "F32", tuple(value.shape)) for name, value in tensors.items()]
    overwrite = request.running.overwrite
    with stage(
        folder, specs, overwrite=overwrite, folder=True, stem=STEM, sidecars=sidecars, reserve=reserve(record, 1),
    ) as sink:  # fmt: skip
        for name, value in tensors.items():
            sink.write(name, value.contiguous())
        sink.seal(metadata(record))
        commit([sink], overwrite=overwrite)
        files = tuple(map(str, sink.files))
    return files, sum(Path(file).stat().st_size for file in files)


def _named(name: str, pair: Pair) -> list[tuple[str, Tensor]]:
    """The factors under peft's names."""
    module = FRONT + plain(name).removesuffix(".weight")
    if pair.table:
        return [(f"{module}.lora_embedding_A", pair.right), (f"{module}.lora_embedding_B", pair.left)]
    return [(f"{module}.lora_A.weight", pair.right), (f"{module}.lora_B.weight", pair.left)]


def _config(found: Factored, prepared: Prepared) -> dict[str, Any]:
    """adapter_config.json: every B A counts as it is."""
    ranks = {plain(name).removesuffix(".weight"): pair.right.shape[0] for name, pair in found.pairs.items()}
    usual = max(ranks.values())
    own = {f"^{re.escape(module)}": rank for module, rank in sorted(ranks.items()) if rank != usual}
    adapters = [expert.adapter for expert in prepared.inputs.experts if isinstance(expert, AdapterSource)]
    bases = {adapter.trained_on for adapter in adapters}
    kinds = {adapter.task_type for adapter in adapters}
    named = sorted(base_names(found.base))
    base = bases.pop() if len(bases) == 1 else None
    turned = any(found.turned(name) for name, pair in found.pairs.items() if not pair.table)
    return {
        "peft_type": "LORA", "r": usual, "lora_alpha": usual, "rank_pattern": own, "alpha_pattern": own,
        "target_modules": sorted(ranks), "fan_in_fan_out": turned, "bias": "none", "lora_dropout": 0.0,
        "inference_mode": True, "base_model_name_or_path": base or (named[0] if named else _called(found.base)),
        "task_type": kinds.pop() if len(kinds) == 1 else None,
    }  # fmt: skip


def _called(base: Source) -> str:
    """The name of a base's file or folder; `base` in memory."""
    return base.task if base.home is None else Path(base.where).name


def _told(found: Factored) -> tuple[list[str], list[str]]:
    """How faithful the adapter is: a note, or a warning where some is lost."""
    said = f"the adapter of rank {found.rank} loses {100 * found.lost:.3g}% of the merged task vector's energy (‖Δ‖²)"
    if found.strange:
        share = 100 * found.outside
        said += (
            f", {share:.3g}% with {len(found.strange)} tensors that adapters don't hold ({listed(found.strange, 3)})"
        )
    return ([said], []) if found.lost <= FAITHFUL else ([], [f"{said}; --adapter-rank raises the rank"])
