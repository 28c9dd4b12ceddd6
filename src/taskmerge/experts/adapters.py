"""LoRA adapters as experts: exactly low-rank task vectors over the base that they were trained on."""

import threading
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from taskmerge.checkpoint.dtypes import is_float
from taskmerge.checkpoint.header import TensorSpec
from taskmerge.checkpoint.identity import check_unchanged
from taskmerge.errors import BadFile, Mismatch, listed
from taskmerge.experts.classes import block_of
from taskmerge.experts.lora import CONFIG, FOLD, Adapter, Pair, open_adapter
from taskmerge.experts.low_rank import fill
from taskmerge.experts.sources import CheckpointSource, LowRank, Source, Tally, finite
from taskmerge.experts.tensors import unit_of
from taskmerge.numerics.spectral import Factors
from taskmerge.types import Space


class AdapterSource:
    """One LoRA adapter over its base: exact factors of what it targets, zeros elsewhere, the base's integer tensors."""

    kind: Space = "delta"
    record: Mapping[str, Any] = MappingProxyType({})
    cut: Mapping[str, int] = MappingProxyType({})

    def __init__(self, task: str, path: Path, base: Source, *, allow_pickle: bool = False) -> None:
        """Opens headers only. `BadFile` for what is not plain LoRA, `Mismatch` for what has no place in the base."""
        self.task = task
        self.adapter = open_adapter(path, allow_pickle=allow_pickle)
        self.base = base
        self._file = CheckpointSource(task, self.adapter.checkpoint)
        self._pairs, self._saved = place(self.adapter, base)
        self._transposed = {
            name for name, pair in self._pairs.items() if _lies_transposed(name, pair, self.adapter, base)
        }
        self._held = threading.local()
        self.specs: Mapping[str, TensorSpec] = {name: self._spec(name, spec) for name, spec in base.specs.items()}

    @property
    def where(self) -> str:
        return str(self.adapter.folder)

    @property
    def stored(self) -> Mapping[str, TensorSpec]:
        return self.adapter.stored

    @property
    def files(self) -> tuple[Path, ...]:
        return (*self._file.files, self.adapter.folder / CONFIG)

    @property
    def folder(self) -> Path | None:
        return self._file.folder

    @property
    def notes(self) -> tuple[str, ...]:
        return self._file.notes

    @property
    def warnings(self) -> tuple[str, ...]:
        return self._file.warnings

    def _spec(self, name: str, base: TensorSpec) -> TensorSpec:
        """The base's shape and dtype; `nbytes` is what has to be read here."""
        if not is_float(base.dtype):
            return base
        pair = self._pairs.get(name)
        read = [pair.a, pair.b] if pair else []
        read += [self.adapter.checkpoint.specs[self._saved[name]]] if name in self._saved else []
        nbytes = sum(part.nbytes for spec in read for part in spec.stored)
        return replace(base, dtype=base.kept, nbytes=nbytes, scaling=None)

    def read(self, name: str, start: int, out: Tensor, raw: Tensor, tally: Tally | None) -> None:
        """Elements of the dense task vector; only the rows that hold them are multiplied out."""
        if name in self._pairs:
            fill(self._factors(name), start, out)
        else:
            out.zero_()
        if name in self._saved:
            layer = torch.empty_like(out)
            self._file.read(self._saved[name], start, layer, raw, None)
            out.add_(layer)
            self.base.read(name, start, layer, raw, None)
            out.sub_(layer)

    def raw(self, name: str, tally: Tally | None) -> Tensor:
        return self.base.raw(name, None)

    def low_rank(self, name: str, matrix: int = 0) -> LowRank | None:
        """scaling · B and A; of rank 0 where the adapter changes nothing."""
        if name in self._saved:
            return None
        if name not in self._pairs:
            rows, columns = unit_of(name, self.specs[name]).matrix
            return torch.zeros(rows, 0, dtype=torch.float64), torch.zeros(0, columns, dtype=torch.float64)
        return self._factors(name)

    def factors(self, name: str, matrix: int = 0) -> Factors | None:
        return None

    def account(self, tally: Tally) -> None:
        """It means more than the tensors that were read: all of it, and its scalings."""
        self.adapter.account(tally)

    def matches(self, entry: Mapping[str, Any], merged: Container[str]) -> bool:
        return len(self.stored) == entry.get("tensors") and self.adapter.digest == entry.get("digest")

    def check_unchanged(self) -> None:
        check_unchanged(self.adapter.versions)
        self._file.check_unchanged()

    def close(self) -> None:
        self._file.close()

    def _factors(self, name: str) -> LowRank:
        """The factors in float64, kept by each thread while it works on one tensor."""
        if getattr(self._held, "name", None) != name:
            pair = self._pairs[name]
            a, b = (self._finite(factor).flatten(1) for factor in (pair.a, pair.b))
            b = b * pair.scaling
            self._held.factors = (a.mT.contiguous(), b.mT.contiguous()) if name in self._transposed else (b, a)
            self._held.name = name
        factors: LowRank = self._held.factors
        return factors

    def _finite(self, spec: TensorSpec) -> Tensor:
        factor = self.adapter.checkpoint.tensor(spec.name).double()
        if not finite(factor):
            raise BadFile(
                "the tensor holds NaN or infinity", where=f"{spec.file}: `{spec.name}`",
                hint="this adapter is damaged or its training diverged; leave it out",
            )  # fmt: skip
        return factor


# --- names -----------------------------------------------------------------------------------------------------


class Prefixes(NamedTuple):
    """A change of names: what is dropped from the adapter's, what is put in front instead."""

    dropped: str
    put: str

    def rename(self, name: str) -> str:
        return self.put + name.removeprefix(self.dropped)


def place(adapter: Adapter, base: Source) -> tuple[dict[str, Pair], dict[str, str]]:
    """Tensor name of the base -> the pair that updates it, and -> the file's own copy of the whole weight.

    The names are taken as they are if they fit; else with the one change of prefix under which every target is in
    the base: a leading part (`model.`, never beyond a number) dropped, the base's own put in front, or both, with as
    little dropped as possible. `Mismatch` lists what has no place, or says that there are several.
    """
    for dropped in _leading([pair.module for pair in adapter.pairs]):
        fitting = {}
        for put in _fronts(adapter.pairs[0].module.removeprefix(dropped), base):
            pairs = _placed(adapter.pairs, Prefixes(dropped, put), base)
            if len(pairs) == len(adapter.pairs):
                fitting[put] = pairs
        if len(fitting) > 1 and "" not in fitting:
            fronts = ", ".join(f"`{put}`" for put in fitting)
            reason = f"its targets have several places in {base.where}: under {fronts}"
            raise Mismatch(reason, where=str(adapter.folder), hint=FOLD)
        if fitting:
            put = "" if "" in fitting else next(iter(fitting))
            return fitting[put], _placed_whole(adapter, Prefixes(dropped, put), base)
    raise _homeless(adapter, base)


def _leading(modules: Sequence[str]) -> list[str]:
    """What all names begin with, up to the first number: nothing, one segment, two, ..."""
    segments = modules[0].split(".")
    prefixes = [""]
    for count in range(1, len(segments)):
        prefix = ".".join(segments[:count]) + "."
        if segments[count - 1].isdigit() or not all(module.startswith(prefix) for module in modules):
            break
        prefixes.append(prefix)
    return prefixes


def _fronts(module: str, base: Source) -> list[str]:
    """What may stand before a module's name in the base: nothing first."""
    end = f".{module}.weight"
    return ["", *(name[: len(name) - len(end) + 1] for name in base.specs if name.endswith(end))]


def _placed(pairs: Sequence[Pair], prefixes: Prefixes, base: Source) -> dict[str, Pair]:
    """The pairs whose renamed module has a floating-point tensor of the update's shape in the base, by its name."""
    placed = {}
    for pair in pairs:
        name = f"{prefixes.rename(pair.module)}.weight"
        spec = base.specs.get(name)
        if spec is not None and is_float(spec.dtype) and pair.fits(spec.shape):
            placed[name] = pair
    return placed


def _placed_whole(adapter: Adapter, prefixes: Prefixes, base: Source) -> dict[str, str]:
    """The weights that the file holds whole, by their names in the base."""
    whole = {prefixes.rename(name): stored for name, stored in adapter.saved.items()}
    for name, stored in whole.items():
        spec, own = base.specs.get(name), adapter.checkpoint.specs[stored]
        if spec is None or spec.shape != own.shape or not is_float(spec.dtype):
            there = f"has it as {spec.dtype} {list(spec.shape)}" if spec else "lacks it"
            reason = f"it holds a weight of its own, {list(own.shape)}; {base.where} {there}"
            raise Mismatch(reason, where=f"{own.file}: `{stored}`", hint=FOLD)
    return whole


def _homeless(adapter: Adapter, base: Source) -> Mismatch:
    """The error that lists the targets without a tensor in the base."""
    placed = _placed(adapter.pairs, Prefixes("", ""), base).values()
    lost = []
    for pair in adapter.pairs:
        name = f"{pair.module}.weight"
        spec = base.specs.get(name)
        there = f" (update {list(pair.shape)}, the base's tensor {spec.dtype} {list(spec.shape)})" if spec else ""
        lost += [] if pair in placed else [f"`{name}`{there}"]
    reason = f"{len(lost)} of its {len(adapter.pairs)} targets have no tensor in the base {base.where}"
    hint = "name the base that the adapter was trained on: `--base FILE`"
    return Mismatch(f"{reason}: {listed(lost, between='; ', plain=True)}", where=str(adapter.folder), hint=hint)


# --- orientation -----------------------------------------------------------------------------------------------


def _lies_transposed(name: str, pair: Pair, adapter: Adapter, base: Source) -> bool:
    """Whether the base holds a target as [in, out]: tables, and GPT-2's Conv1D.

    The shape tells, unless it is square. The configuration has one flag for all targets, which peft sets by the last
    of them, so for a square target the weights beside it are asked first.
    """
    shape = base.specs[name].shape
    if pair.table or shape != pair.shape:
        return True
    if len(shape) != 2 or shape[0] != shape[1]:
        return False
    seen = _orientations(name, base)
    return seen.pop() if len(seen) == 1 else adapter.fan_in_fan_out


def _orientations(name: str, base: Source) -> set[bool]:
    """Which of the two orientations the block's other weights show: a bias is as long as its weight's output side."""
    block, seen = block_of(name), set()
    for other, spec in base.specs.items():
        bias = base.specs.get(f"{other.removesuffix('.weight')}.bias")
        if bias is None or block_of(other) != block or len(spec.shape) != 2 or spec.shape[0] == spec.shape[1]:
            continue
        if bias.shape in ((spec.shape[0],), (spec.shape[1],)):
            seen.add(bias.shape[0] == spec.shape[1])
    return seen
