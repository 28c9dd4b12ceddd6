"""LoRA adapters as experts: exactly low-rank task vectors over the base that they were trained on."""

import os
import re
import threading
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from taskmerge.checkpoint.dtypes import is_float
from taskmerge.checkpoint.header import TensorSpec
from taskmerge.checkpoint.held import Place
from taskmerge.checkpoint.identity import check_unchanged
from taskmerge.checkpoint.quantised import read_config
from taskmerge.checkpoint.weights import default_name
from taskmerge.experts.classes import Block, block_of
from taskmerge.experts.lora import Adapter, Pair
from taskmerge.experts.lora_files import open_adapter
from taskmerge.experts.low_rank import fill
from taskmerge.experts.placing import place
from taskmerge.experts.sources import CheckpointSource, LowRank, NotFinite, Source, Tally, finite
from taskmerge.experts.tensors import unit_of
from taskmerge.numerics.spectral import Factors
from taskmerge.specs.renaming import Renaming
from taskmerge.types import Space

GENERIC = re.compile(r"base|pretrained|zeroshot|(pytorch_)?model|centre|[0-9a-f]{40}|\.")
"""Names of files and folders that say nothing about what is in them."""


class AdapterSource:
    """One LoRA adapter over its base: exact factors of what it targets, zeros elsewhere, the base's integer tensors."""

    kind: Space = "delta"
    record: Mapping[str, Any] = MappingProxyType({})
    cut: Mapping[str, int] = MappingProxyType({})

    def __init__(
        self, task: str, path: Place, base: Source, *, allow_pickle: bool = False, renamings: Sequence[Renaming] = ()
    ) -> None:
        """Opens headers only. `BadFile` for what is not plain LoRA, `Mismatch` for what has no place in the base."""
        self.task = task
        self.adapter = open_adapter(path, allow_pickle=allow_pickle)
        self.base = base
        self._file = CheckpointSource(task, self.adapter.checkpoint)
        self._pairs, self._saved = place(self.adapter, base, renamings)
        self._moved = False
        shown = cache(lambda: orientations(base))
        self._transposed = {
            name for name, pair in self._pairs.items() if _lies_transposed(name, pair, self.adapter, base, shown)
        }
        self._held = threading.local()
        self.specs: Mapping[str, TensorSpec] = {name: self._spec(name, spec) for name, spec in base.specs.items()}

    @property
    def where(self) -> str:
        return str(self.adapter.place)

    def changes(self, name: str) -> bool:
        """Whether it changes a tensor of the base."""
        return name in self._pairs or name in self._saved

    @property
    def idle(self) -> bool:
        """Whether no product that was formed so far changes anything, and nothing else does."""
        return not (self._moved or self._saved)

    def other_base(self) -> str | None:
        """A warning where the adapter names another base than this one, as far as both have names."""
        said = self.adapter.trained_on
        if said is None or not (known := base_names(self.base)):
            return None
        if Path(said).name.casefold() in known or (os.path.exists(said) and self._is_base(Path(said))):
            return None
        return f"{self.where} says that it was trained on `{said}`; the base here is {self.base.where}"

    def _is_base(self, path: Path) -> bool:
        places = [Path(self.base.where), *([self.base.folder] if self.base.folder else [])]
        return any(os.path.exists(place) and path.samefile(place) for place in places)

    def transposed(self, name: str) -> bool:
        """Whether the base holds a target as [in, out]."""
        return name in self._transposed

    @property
    def stored(self) -> Mapping[str, TensorSpec]:
        return self.adapter.stored

    @property
    def files(self) -> tuple[Path, ...]:
        return (*self._file.files, *self.adapter.versions)

    @property
    def folder(self) -> Path | None:
        return self._file.folder

    @property
    def home(self) -> Path | None:
        return self._file.home

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
            self._moved = self._moved or bool(a.any() and b.any())
            self._held.factors = (a.mT.contiguous(), b.mT.contiguous()) if name in self._transposed else (b, a)
            self._held.name = name
        factors: LowRank = self._held.factors
        return factors

    def _finite(self, spec: TensorSpec) -> Tensor:
        factor = self.adapter.checkpoint.tensor(spec.name).double()
        if not finite(factor):
            raise NotFinite(
                "the tensor holds NaN or infinity", where=f"{spec.file}: `{spec.name}`",
                hint="this adapter is damaged or its training diverged; leave it out",
            )  # fmt: skip
        return factor


# --- its base --------------------------------------------------------------------------------------------------


def base_names(base: Source) -> set[str]:
    """What a base may be called, in small letters: its folder or file, the name in its config.json, its hub's."""
    if base.home is None:
        return set()
    place = Path(base.where).absolute()
    config = read_config(base.home) or {}
    names = {default_name(place), Path(str(config.get("_name_or_path") or "")).name}
    names |= {part.split("--")[-1] for part in place.parts if part.startswith("models--")}
    return {name.casefold() for name in names if name and not GENERIC.fullmatch(name.casefold())}


# --- orientation -----------------------------------------------------------------------------------------------


def _lies_transposed(
    name: str, pair: Pair, adapter: Adapter, base: Source, shown: Callable[[], Mapping[Block | None, set[bool]]]
) -> bool:
    """Whether the base holds a target as [in, out]: tables, and GPT-2's Conv1D.

    The shape tells, unless it is square. The configuration has one flag for all targets, which peft sets by the last
    of them, so for a square target the weights beside it are asked first.
    """
    shape = base.specs[name].shape
    if pair.table or shape != pair.shape:
        return True
    if len(shape) != 2 or shape[0] != shape[1]:
        return False
    return lies_transposed(name, shown(), adapter.fan_in_fan_out)


def lies_transposed(name: str, shown: Mapping[Block | None, set[bool]], otherwise: bool = False) -> bool:
    """Whether a weight lies as [in, out], by its own bias and those of the block's other weights (`orientations`); else
    `otherwise`."""
    seen = shown.get(block_of(name), set())
    return next(iter(seen)) if len(seen) == 1 else otherwise


def orientations(base: Source) -> dict[Block | None, set[bool]]:
    """Which of the two orientations the weights of each block show: a bias is as long as its weight's output side."""
    shown: dict[Block | None, set[bool]] = {}
    for name, spec in base.specs.items():
        bias = base.specs.get(f"{name.removesuffix('.weight')}.bias")
        if bias is None or len(spec.shape) != 2 or spec.shape[0] == spec.shape[1]:
            continue
        if bias.shape in ((spec.shape[0],), (spec.shape[1],)):
            shown.setdefault(block_of(name), set()).add(bias.shape[0] == spec.shape[1])
    return shown
