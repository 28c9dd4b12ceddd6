"""Reports as JSON documents by a published schema, and back."""

import base64
import binascii
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from taskmerge import documents
from taskmerge.documents import read_json
from taskmerge.errors import BadFile, BadNumber
from taskmerge.evaluation.intervals import Bits
from taskmerge.evaluation.scores import Average, Report, Row, Score
from taskmerge.evaluation.selection import average_interval, rows_of

Document = dict[str, Any]

KIND, SCHEMA_VERSION = "eval", 1
PARTS = ("comparisons", "correlations", "choices")
LARGEST = 256 << 20
"""Bytes of a report, which has a bit for each item that was scored."""
AGAIN = "write it again with `taskmerge eval --json`"


@cache
def schema() -> Document:
    """The published JSON schema (draft 2020-12) of reports."""
    document: Document = json.loads((files("taskmerge.evaluation") / "eval.schema.json").read_text(encoding="utf-8"))
    return document


def dumps(report: Report) -> str:
    """A report as canonical text: sorted keys, floats in their shortest exact form, one newline at the end.

    Two equal runs give the same bytes but for `timing`. Raises BadNumber for NaN or infinity.
    """
    try:
        return json.dumps(to_json(report), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    except ValueError:
        raise BadNumber("the report holds NaN or infinity", hint="this is a defect in taskmerge; report it") from None


def to_json(report: Report) -> Document:
    """A report as plain values that `schema` describes."""
    return {
        "report": KIND,
        "schema_version": SCHEMA_VERSION,
        "version": report.version,
        "suite": report.suite,
        "split": report.split,
        "checkpoints": _plain(report.checkpoints),
        "data": _plain(report.data),
        "rows": [_row(entry) for entry in report.rows],
        "averages": [_average(entry, report) for entry in report.averages],
        **{part: [_renamed(entry, "encoder", "checkpoint") for entry in getattr(report, part)] for part in PARTS},
        "checks": _plain(report.checks),
        "notes": list(report.notes),
        "warnings": list(report.warnings),
        "timing": _plain(report.timing),
    }


def from_json(document: object, where: str = "report") -> Report:
    """The report that a document describes. Raises BadFile that names what is wrong, and where in the document."""
    document = validated(document, where)
    parts: dict[str, Any] = {
        part: tuple(_renamed(entry, "checkpoint", "encoder") for entry in document[part]) for part in PARTS
    }
    return Report(
        version=document["version"],
        suite=document["suite"],
        split=document["split"],
        checkpoints=tuple(document["checkpoints"]),
        data=tuple(document["data"]),
        rows=tuple(_read_row(entry, f"{where}: rows[{place}]") for place, entry in enumerate(document["rows"])),
        averages=tuple(_read_average(entry) for entry in document["averages"]),
        **parts,
        checks=tuple(document["checks"]),
        notes=tuple(document["notes"]),
        warnings=tuple(document["warnings"]),
        timing=document["timing"],
    )


def read_report(path: Path) -> Report:
    """The report in a file. Raises BadFile."""
    return from_json(read_json(path, hint=AGAIN, largest=LARGEST), str(path))


def validated(document: object, where: str = "report") -> Document:
    """The document, if it is a report of this version. BadFile names the first place that breaks the schema."""
    return documents.validated(document, schema(), where=where, hint=AGAIN)


def _row(row: Row) -> Document:
    plain = {key: value for key, value in vars(row).items() if key not in ("encoder", "score", "correct")}
    return {
        **_plain(plain),
        "checkpoint": row.encoder,
        "score": float(row.score.value),
        "n": int(row.score.n),
        "low": float(row.score.low),
        "high": float(row.score.high),
        "lower_is_better": row.score.lower_is_better,
        "extra": _plain(row.score.extra),
        "correct": None if row.correct is None else _packed(row.correct),
    }


def _read_row(entry: Document, where: str) -> Row:
    given = {key: entry[key] for key in ("task", "head", "split", "metric", "normalised", "skipped", "protocol")}
    better, extra = entry["lower_is_better"], entry["extra"]
    return Row(
        encoder=entry["checkpoint"],
        score=Score(entry["score"], entry["n"], entry["low"], entry["high"], lower_is_better=better, extra=extra),
        corruption=entry["corruption"],
        severity=entry["severity"],
        correct=None if entry["correct"] is None else _unpacked(entry["correct"], where),
        reliability=None if entry.get("reliability") is None else tuple(entry["reliability"]),
        **given,
    )


def _average(mean: Average, report: Report) -> Document:
    low, high = average_interval(mean, report)
    count = max(len(rows_of(report, mean.encoder, mean.corruption, mean.severity)), 1)
    return _renamed(_plain(asdict(mean)), "encoder", "checkpoint") | {"low": low, "high": high, "tasks": count}


def _read_average(entry: Document) -> Average:
    keys = ("average", "normalised", "corruption", "severity")
    return Average(encoder=entry["checkpoint"], **{key: entry[key] for key in keys})


def _packed(correct: Bits) -> Document:
    return {"n": len(correct), "bits": base64.b64encode(np.packbits(correct).tobytes()).decode("ascii")}


def _unpacked(packed: Document, where: str) -> Bits:
    try:
        raw = np.frombuffer(base64.b64decode(packed["bits"], validate=True), dtype=np.uint8)
    except binascii.Error:
        raise BadFile("`correct.bits` is no base64", where=where, hint=AGAIN) from None
    if len(raw) != math.ceil(packed["n"] / 8):
        raise BadFile(f"`correct.bits` holds {len(raw)} bytes for {packed['n']} items", where=where, hint=AGAIN)
    return np.unpackbits(raw, count=packed["n"]).astype(np.bool_)


def _renamed(entry: Mapping[str, Any], old: str, new: str) -> Document:
    return {new if key == old else key: _plain(value) for key, value in entry.items()}


def _plain(value: Any) -> Any:
    """Mappings, sequences and numbers as JSON has them."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(inner) for inner in value]
    return value
