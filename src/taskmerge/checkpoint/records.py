"""What a record in a file's metadata looks like, kind by kind: anybody may have written it.

A shape is a type, a pattern of a text, a set of choices, a list of one shape, or a map of keys to shapes (`key?` may be
missing; other keys are let through, `EACH` stands for all keys).
"""

import re
from collections.abc import Mapping
from typing import Any

from taskmerge.checkpoint.dtypes import DTYPES

EACH = "*"
LARGEST_COUNT = 2**63 - 1
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
NAME = re.compile(r".+", re.DOTALL)
DTYPE = frozenset(DTYPES)

_INPUT = {"name": NAME, "digest?": DIGEST, "tensors?": int, "partial?": bool}
_BASE = {**_INPUT, "digest": DIGEST, "tensors": int}
_DIGESTS = {EACH: DIGEST}
_ARITHMETIC = {EACH: str}
_FILES = {EACH: {"bytes?": int, "digest?": DIGEST}}
_COUNTS = {EACH: int}
_RECIPE = {
    "method?": NAME, "then?": str, "options?": dict, "weights?": {EACH: float}, "grid?": dict, "learned?": DIGEST,
    "strip_prefix?": str,
}  # fmt: skip
_MERGE = {
    "recipe": _RECIPE, "tasks": [_INPUT], "base?": _BASE, "tensors?": _COUNTS, "treated?": _COUNTS, "warnings?": [str],
    "version?": str, "device?": str, "arithmetic?": _ARITHMETIC, "files?": _FILES,
}  # fmt: skip
_VECTOR = {
    "task": NAME, "origin": frozenset({"base", "centre"}), "origin_digest?": DIGEST, "experts": _DIGESTS,
    "tensors?": [NAME], "dtype?": DTYPE, "dtypes?": {EACH: DTYPE}, "version?": str, "device?": str,
    "arithmetic?": _ARITHMETIC,
}  # fmt: skip
_FEATURES = {
    "checkpoint": NAME, "task": NAME, "digest": str, "fingerprint": str, "classes": [str],
    "task_kind": frozenset({"classification", "regression"}),
}  # fmt: skip
SHAPES: Mapping[str, Any] = {
    "merge": _MERGE,
    "task": {**_MERGE, "task": NAME, "block?": DIGEST},
    "vector": _VECTOR,
    "factors": {**_VECTOR, "ranks": _COUNTS, "rank?": str, "understood?": str, "also?": [str]},
    "centre": {"experts": _DIGESTS, "version?": str, "device?": str, "arithmetic?": _ARITHMETIC},
    "coefficients": {"tasks": [_INPUT]},
    "masks": {"tasks": [_INPUT], "components": _COUNTS},
    "features": {"sets": [_FEATURES]},
    "head": {"task?": NAME, "activation?": str},
}
"""By `kind`; of any other kind is only known what all share."""
SHARED: Mapping[str, Any] = {
    "kind?": NAME, "recipe?": _RECIPE, "tasks?": [_INPUT], "base?": _BASE, "experts?": _DIGESTS, "ranks?": _COUNTS,
    "seal?": DIGEST,
}  # fmt: skip


def misfit(record: object) -> str | None:
    """What of a record is missing or not as it is in such a record, in words; None where nothing is."""
    wrong = _misfit(record, SHARED, "")
    if wrong is not None or not isinstance(record, dict):
        return wrong
    shape = SHAPES.get(record.get("kind", ""))
    return None if shape is None else _misfit(record, shape, "")


def _misfit(value: object, shape: Any, place: str) -> str | None:
    if isinstance(shape, dict):
        return _misfit_in_map(value, shape, place)
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"`{place}` is malformed"
        found = (_misfit(inner, shape[0], f"{place}.{index}") for index, inner in enumerate(value))
        return next((bad for bad in found if bad), None)
    return None if _fits(value, shape) else f"`{place}` is malformed"


def _misfit_in_map(value: object, shape: Mapping[str, Any], place: str) -> str | None:
    if not isinstance(value, dict):
        return f"`{place}` is malformed"
    above = f"{place}." if place else ""
    for key, inner in shape.items():
        name = key.removesuffix("?")
        keys = list(value) if key == EACH else [name] if name in value else []
        if not keys and key not in (EACH, f"{name}?"):
            return f"`{above}{name}` is missing"
        bad = next((bad for key in keys if (bad := _misfit(value[key], inner, above + key))), None)
        if bad:
            return bad
    return None


def _fits(value: object, shape: Any) -> bool:
    if isinstance(shape, re.Pattern):
        return isinstance(value, str) and shape.fullmatch(value) is not None
    if isinstance(shape, frozenset):
        return isinstance(value, str) and value in shape
    if shape is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if shape is int:
        return type(value) is int and 0 <= value <= LARGEST_COUNT
    return type(value) is shape
