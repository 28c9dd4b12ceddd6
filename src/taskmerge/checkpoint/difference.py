"""`diff`: how two checkpoints differ, tensor by tensor, read slice by slice."""

import fnmatch
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from taskmerge.checkpoint.checkpoint import Checkpoint, open_plain
from taskmerge.checkpoint.configs import clashes
from taskmerge.checkpoint.dtypes import DTYPES, itemsize
from taskmerge.checkpoint.header import TensorSpec
from taskmerge.checkpoint.quantised import CONFIG, read_config
from taskmerge.checkpoint.translation import Joined
from taskmerge.checkpoint.wording import translations
from taskmerge.errors import Mismatch
from taskmerge.numerics.device import cores
from taskmerge.specs import keywords as read
from taskmerge.specs.keywords import Globs
from taskmerge.specs.renaming import Renaming, parse_renaming, renamed

SLICE = 1 << 16  # elements: both slices in float64 stay in the cache


@dataclass(frozen=True, slots=True)
class TensorDifference:
    """One tensor of both files, in the types in which they are stored. `changed`: dtype, shape or bytes differ (where
    codes have scales: the values that they stand for).

    The numbers are None where they have no meaning: where shapes differ, NaN or infinity is in either file, a cosine
    or relative difference would be taken to a zero tensor.
    """

    name: str
    dtype_a: str
    dtype_b: str
    shape_a: tuple[int, ...]
    shape_b: tuple[int, ...]
    changed: bool
    norm_a: float | None
    norm_b: float | None
    norm_difference: float | None
    relative: float | None
    cosine: float | None


@dataclass(frozen=True)
class DiffReport:
    """How B differs from A: per tensor, and over all tensors that can be compared (`relative` is ‖A - B‖ / ‖A‖)."""

    a: str
    b: str
    tensors: tuple[TensorDifference, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    notes: tuple[str, ...]
    norm_a: float | None
    norm_b: float | None
    norm_difference: float | None
    relative: float | None
    cosine: float | None

    @property
    def changed(self) -> tuple[TensorDifference, ...]:
        """The tensors of both files that are not the same, byte for byte."""
        return tuple(one for one in self.tensors if one.changed)

    @property
    def same(self) -> bool:
        """Whether both files hold the same tensors with the same bytes."""
        return not (self.changed or self.only_a or self.only_b)

    def to_dict(self) -> dict[str, object]:
        """The report as plain values, for --json."""
        return {**asdict(self), "same": self.same, "changed": len(self.changed)}


@dataclass(frozen=True)
class _Side:
    """One of the checkpoints: its tensors by the names that they are compared under, and what it holds them as."""

    checkpoint: Checkpoint
    specs: Mapping[str, TensorSpec]
    names: Mapping[str, str]
    joined: Mapping[str, Joined] = field(default_factory=dict)

    def read_into(self, name: str, buffer: Tensor, start: int) -> None:
        """Fills `buffer` (uint8) with a tensor's bytes from `start` on."""
        if name in self.joined:
            self.joined[name].read_into(self.checkpoint, buffer, start)
        else:
            self.checkpoint.read_into(self.names[name], buffer, start)


@dataclass(frozen=True, slots=True)
class _Sums:
    """Σa², Σb², Σ(a-b)² and Σab over a tensor in float64, and whether all bytes are equal."""

    aa: float
    bb: float
    dd: float
    ab: float
    equal: bool


def diff(
    a: str | Path,
    b: str | Path,
    *,
    include: Globs = None,
    exclude: Globs = None,
    map: Globs = None,
    allow_pickle: bool = False,
) -> DiffReport:
    """Compares two checkpoints (files, indexes, folders) tensor by tensor, in memory for a few slices only.

    B is read in A's words where they speak different dialects of one model. `include` and `exclude` are globs on tensor
    names, `map` are renamings (`FROM* = TO*`) of those in both files. Raises `TaskmergeError` for what cannot be read,
    quantised weights of most schemes among it.
    """
    with ExitStack() as stack:
        opened = [stack.enter_context(open_plain(Path(one), allow_pickle=allow_pickle)) for one in (a, b)]
        renamings = [parse_renaming(text) for text in read.globs(map or (), "--map")]
        first, second, notes = _sides(opened[0], opened[1], renamings)
        chosen, left = read.globs(include or (), "--include"), read.globs(exclude or (), "--exclude")
        names = [[name for name in one.specs if _selected(name, chosen, left)] for one in (first, second)]
        common = [name for name in names[0] if name in second.specs]
        with ThreadPoolExecutor(cores()) as pool:
            sums = list(pool.map(lambda name: _sums(first, second, name), common))
    tensors = tuple(_difference(first, second, name, one) for name, one in zip(common, sums, strict=True))
    known = [one for one in sums if one is not None]
    aa, bb, dd, ab = (math.fsum(getattr(one, key) for one in known) for key in ("aa", "bb", "dd", "ab"))
    return DiffReport(
        str(a), str(b), tensors, tuple(name for name in names[0] if name not in second.specs),
        tuple(name for name in names[1] if name not in first.specs),
        (*opened[0].notes, *opened[1].notes, *notes), **_numbers(_Sums(aa, bb, dd, ab, equal=dd == 0)),
    )  # fmt: skip


def _sides(
    first: Checkpoint, second: Checkpoint, renamings: Sequence[Renaming]
) -> tuple[_Side, _Side, tuple[str, ...]]:
    """Both sides, the second in the words of the first, and a note where that is not as it is stored."""
    names = [{renamed(name, renamings): name for name in one.specs} for one in (first, second)]
    for one, own in zip((first, second), names, strict=True):
        if len(own) < len(one.specs):
            raise Mismatch("as --map calls them two tensors have one name", where=str(one.path), hint="choose others")
    a, b = (
        _Side(one, {name: one.specs[stored] for name, stored in own.items()}, own)
        for one, own in zip((first, second), names, strict=True)
    )
    configs = [read_config(one.home) for one in (first, second)]
    notes = _config_notes(dict(zip("AB", configs, strict=True)))
    (found,) = translations([(a.specs, configs[0]), (b.specs, configs[1])])
    if found is None:
        return a, b, notes
    joined = {name: one.stored_as(b.names) for name, one in found.joined.items()}
    plain = {name: b.names[stored] for name, stored in found.names.items()}
    note = f"{second.path}: {found.said} {first.path}"
    return a, _Side(second, found.specs(b.specs), plain, joined), (note, *notes)


def _config_notes(configs: Mapping[str, Mapping[str, Any] | None]) -> tuple[str, ...]:
    """A line for each key by which the configurations make different functions of the same weights."""
    lines = clashes({name: config for name, config in configs.items() if config is not None})
    return tuple(f"{CONFIG} differs in what changes the meaning of weights: {line}" for line in lines)


def _selected(name: str, include: Sequence[str], exclude: Sequence[str]) -> bool:
    chosen = not include or any(fnmatch.fnmatchcase(name, glob) for glob in include)
    return chosen and not any(fnmatch.fnmatchcase(name, glob) for glob in exclude)


def _difference(first: _Side, second: _Side, name: str, sums: _Sums | None) -> TensorDifference:
    a, b = first.specs[name], second.specs[name]
    changed = sums is None or not sums.equal
    return TensorDifference(name, _held(a), _held(b), a.shape, b.shape, changed, **_numbers(sums))


def _numbers(sums: _Sums | None) -> dict[str, float | None]:
    """Norms, relative difference and cosine; None for what has no value."""
    if sums is None:
        return dict.fromkeys(("norm_a", "norm_b", "norm_difference", "relative", "cosine"))
    a, b, d = (_root(square) for square in (sums.aa, sums.bb, sums.dd))
    relative = None if a is None or d is None else 0.0 if d == 0 else d / a if a else None
    cosine = sums.ab / (a * b) if a and b and math.isfinite(sums.ab) else None
    return {"norm_a": a, "norm_b": b, "norm_difference": d, "relative": relative, "cosine": cosine}


def _root(square: float) -> float | None:
    return math.sqrt(square) if math.isfinite(square) else None


def _sums(first: _Side, second: _Side, name: str) -> _Sums | None:
    """The sums of one tensor, or None where the shapes differ."""
    a, b = first.specs[name], second.specs[name]
    if a.shape != b.shape:
        return None
    found, equal = torch.zeros(4, dtype=torch.float64), _held(a) == _held(b)
    for start in range(0, a.numel, SLICE):
        count = min(SLICE, a.numel - start)
        raw_a, raw_b = _raw(first, name, start, count), _raw(second, name, start, count)
        same = a.dtype == b.dtype and torch.equal(raw_a, raw_b)
        left = _values(raw_a, a.dtype)
        right = left if same else _values(raw_b, b.dtype)
        gap = left - right
        found += torch.stack([left.dot(left), right.dot(right), gap.dot(gap), left.dot(right)])
        equal = equal and same
    aa, bb, dd, ab = found.tolist()
    return _Sums(aa, bb, dd, ab, equal)


def _held(spec: TensorSpec) -> str:
    """The type in which a tensor is stored."""
    return spec.stored[0].dtype


def _raw(checkpoint: _Side, name: str, start: int, count: int) -> Tensor:
    size = itemsize(checkpoint.specs[name].dtype)
    raw = torch.empty(count * size, dtype=torch.uint8)
    checkpoint.read_into(name, raw, start * size)
    return raw


def _values(raw: Tensor, code: str) -> Tensor:
    """The numbers of a slice in float64; complex ones as pairs."""
    values = raw.view(DTYPES[code])
    return (torch.view_as_real(values).reshape(-1) if values.is_complex() else values).double()
