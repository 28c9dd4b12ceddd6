"""What `spectrum` found as values, and as the document that `taskmerge schema spectrum` describes."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor

from taskmerge.spectra.between import Beside
from taskmerge.spectra.intruders import DIRECTIONS, FAR
from taskmerge.spectra.matrices import Asked, Measured
from taskmerge.spectra.scan import Found, Place
from taskmerge.spectra.summary import Group
from taskmerge.spectra.values import ENERGY
from taskmerge.types import Space
from taskmerge.version import __version__

KIND, SCHEMA_VERSION = "spectrum", 1
DIGITS = 7
"""Significant digits of numbers in the document: what float32 weights tell."""
Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Entry:
    """One input: its task, where it lies, and what it is: checkpoint, adapter, vector or factors."""

    name: str
    path: str
    kind: str


@dataclass(frozen=True)
class SpectrumReport:
    """Spectra of T experts, and what lies between them, matrix by matrix and in groups.

    `recommendation` and `sweeps` are documents of their own, where they were asked for. `values` has all singular
    values [T, r] by origin and matrix.
    """

    base: str | None
    merged: str | None
    experts: tuple[Entry, ...]
    asked: Asked
    qkv: str
    also: tuple[str, ...]
    matrices: tuple[Found, ...]
    groups: tuple[Group, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    seconds: float
    peak_memory: int
    recommendation: Mapping[str, Any] | None = None
    sweeps: Mapping[str, Any] | None = None
    sweep_seconds: Mapping[str, float] | None = None

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(one.name for one in self.experts)

    @property
    def spaces(self) -> tuple[Space, ...]:
        """The origins about which the experts were measured."""
        return tuple(dict.fromkeys(space for one in self.matrices for space in one.spaces))

    def values(self, space: Space) -> dict[str, Tensor]:
        """All singular values [T, r] about an origin, by matrix."""
        return {one.place.label: one.spaces[space].spectra.values for one in self.matrices if space in one.spaces}

    def to_dict(self) -> Document:
        """The report as plain values."""
        document: Document = {
            "report": KIND,
            "schema_version": SCHEMA_VERSION,
            "version": __version__,
            "base": self.base,
            "merged": self.merged,
            "tasks": list(self.tasks),
            "experts": [{"name": one.name, "path": one.path, "kind": one.kind} for one in self.experts],
            "settings": self._settings(),
            "spaces": list(self.spaces),
            "pairs": [list(pair) for pair in pairs(len(self.experts))],
            "groups": [group_document(one) for one in self.groups],
            "matrices": [matrix_document(one) for one in self.matrices],
            "notes": list(self.notes),
            "warnings": list(self.warnings),
            "timing": {"seconds": round(self.seconds, 3), "peak_memory": self.peak_memory},
        }
        if self.recommendation is not None:
            document["recommendation"] = dict(self.recommendation)
        if self.sweeps is not None:
            document["sweeps"] = dict(self.sweeps)
            document["timing"]["sweeps"] = {kind: round(own, 3) for kind, own in (self.sweep_seconds or {}).items()}
        return document

    def _settings(self) -> Document:
        return {
            "rank": str(self.asked.rank),
            "ratios": [str(rank) for rank in self.asked.ratios],
            "energy": ENERGY,
            "directions": DIRECTIONS,
            "intruder_cosine": FAR,
            "qkv": self.qkv,
            "also": list(self.also),
        }


@cache
def schema() -> Document:
    """The published JSON schema (draft 2020-12) of spectrum reports."""
    text = (files("taskmerge.spectra") / "spectrum.schema.json").read_text(encoding="utf-8")
    document: Document = json.loads(text)
    return document


def dumps(document: Mapping[str, Any]) -> str:
    """The document as canonical text: one line a matrix and a group, so that it stays small and can be compared."""
    lines = []
    for key in sorted(document):
        value = document[key]
        if isinstance(value, list) and value and isinstance(value[0], dict):
            inner = ",\n".join(_line(one) for one in value)
            lines.append(f"{_line(key)}: [\n{inner}\n]")
        else:
            lines.append(f"{_line(key)}: {_line(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _line(value: object) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)


# --- matrices and groups as plain values -----------------------------------------------------------------------


def pairs(tasks: int) -> list[tuple[int, int]]:
    """The places of every two tasks."""
    return [(first, second) for first in range(tasks) for second in range(first + 1, tasks)]


def matrix_document(found: Found) -> Document:
    """One matrix; numbers by task or pair in the order of `tasks` and `pairs`."""
    near = found.nearest
    return {
        **_place(found.place),
        "zeros": _plain(found.zeros),
        "intruders": None if near is None else [int((one < FAR).sum()) for one in near],
        "nearest": None if near is None else [_plain(one) for one in near],
        **{space: _measured(one) for space, one in found.spaces.items()},
    }


def _place(place: Place) -> Document:
    return {
        "name": place.name,
        "expert": place.expert,
        "piece": place.piece,
        "class": place.kind,
        "role": place.role,
        "block": place.position[0] if place.position else None,
        "blocks": place.position[1] if place.position else None,
        "shape": list(place.shape),
    }


def _measured(one: Measured) -> Document:
    s, over, align = one.spectra, one.overlaps, one.alignment
    return {
        "norm": _plain(s.norm),
        "largest": _plain(s.largest),
        "components": _counts(s.components),
        "energy_rank": _counts(s.energy_rank),
        "entropy_rank": _plain(s.entropy_rank),
        "stable_rank": _plain(s.stable_rank),
        "energy": _plain(s.energy),
        "nuclear": _plain(s.nuclear),
        "exponent": _plain(s.exponent),
        "tail": _counts(s.tail),
        "distance": _plain(s.distance),
        "cosine": _paired(one.cosine),
        "sign_conflict": _paired(one.conflict),
        "overlap_left": _paired(over.left if over else None),
        "overlap_right": _paired(over.right if over else None),
        "interference": _beside(over.interference if over else None),
        "singular_interference": _beside(over.singular if over else None),
        "alignment": None if align is None else {"rank": align.rank, **(_beside(align.share) or {})},
    }


def group_document(group: Group) -> Document:
    """One group of matrices."""
    return {
        "space": group.space,
        "by": group.by,
        "group": group.name,
        "tower": group.tower,
        "matrices": group.matrices,
        "parameters": group.parameters,
        "norm": _plain(group.norm),
        "energy_rank": _plain(group.energy_rank),
        "entropy_rank": _plain(group.entropy_rank),
        "stable_rank": _plain(group.stable_rank),
        "energy": _plain(group.energy),
        "nuclear": _plain(group.nuclear),
        "exponent": _plain(group.exponent),
        "zeros": _plain(group.zeros),
        "intruders": None if group.intruders is None else _counts(group.intruders),
        "directions": None if group.directions is None else _counts(group.directions),
        "cosine": _paired(group.cosine),
        "sign_conflict": _paired(group.conflict),
        "overlap_left": _paired(group.left),
        "overlap_right": _paired(group.right),
        "interference": _beside(group.interference),
        "singular_interference": _beside(group.singular),
        "alignment": _beside(group.alignment),
    }


def _beside(one: Beside | None) -> Document | None:
    """A measure beside its chance level; what a table [T, T] has on its diagonal is None."""
    if one is None:
        return None
    square = one.value.ndim == 2
    parts = [part.clone().fill_diagonal_(torch.nan) if square else part for part in (one.value, one.chance)]
    return {"value": _plain(parts[0]), "chance": _plain(parts[1])}


def _paired(one: Beside | None) -> Document | None:
    """The upper half of symmetric tables [T, T], pair by pair."""
    if one is None:
        return None
    first, second = torch.triu_indices(len(one.value), len(one.value), offset=1)
    return {"value": _plain(one.value[first, second]), "chance": _plain(one.chance[first, second])}


def _plain(values: Tensor | None) -> Any:
    """Numbers as nested lists, rounded; None for NaN."""
    return None if values is None else _rounded(values.tolist())


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return None if math.isnan(value) else float(f"{value:.{DIGITS}g}")


def _counts(values: Tensor) -> list[int]:
    return [int(value) for value in values.tolist()]
