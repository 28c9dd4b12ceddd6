"""`taskmerge diff`."""

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from taskmerge.cli import show
from taskmerge.cli.app import app

if TYPE_CHECKING:
    from taskmerge.checkpoint.difference import DiffReport, TensorDifference

NUMBERS = 47  # columns that stand before the name of a tensor


@app.command()
def diff(
    a: Annotated[Path, typer.Argument(help="File, index or folder.", readable=False)],
    b: Annotated[Path, typer.Argument(help="What it is compared with.", readable=False)],
    changed: Annotated[bool, typer.Option("--changed", help="Only tensors that are not the same.")] = False,
    include: Annotated[
        list[str] | None, typer.Option(help="Only tensors whose names match (glob, repeatable).")
    ] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Not tensors whose names match (glob, repeatable).")] = None,
    allow_pickle: Annotated[bool, typer.Option("--allow-pickle", help="Read .bin and .pt (weights only).")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only the summary line.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Say how two checkpoints differ, tensor by tensor. A difference is a result: the exit code is 0."""
    import taskmerge

    report = taskmerge.diff(a, b, include=include or (), exclude=exclude or (), allow_pickle=allow_pickle)
    rows = report.changed if changed else report.tensors
    if json:
        show.document({**report.to_dict(), "tensors": [row(one) for one in rows]})
        return
    print("\n".join([*([] if quiet else table(report, rows)), summary(report)]))


def row(one: "TensorDifference") -> dict[str, object]:
    """One tensor as plain values."""
    from dataclasses import asdict

    return asdict(one)


def table(report: "DiffReport", rows: "tuple[TensorDifference, ...]") -> list[str]:
    """One line a tensor, the numbers first; on a terminal long names lose their front."""
    wide = shutil.get_terminal_size((80, 24)).columns - NUMBERS if sys.stdout.isatty() else None
    lines = [f"  {'‖A‖':>9}{'‖B‖':>9}{'‖A-B‖':>9}{'relative':>9}{'cosine':>9}  tensor"] if rows else []
    lines += [_line(one, wide) for one in rows]
    lines += [f"A {'':>45}{_short(name, wide)}" for name in report.only_a]
    lines += [f"B {'':>45}{_short(name, wide)}" for name in report.only_b]
    return lines


def _line(one: "TensorDifference", wide: int | None) -> str:
    numbers = (one.norm_a, one.norm_b, one.norm_difference, one.relative)
    said = "".join(f"{_number(value):>9}" for value in numbers)
    cosine = "–" if one.cosine is None else f"{one.cosine:.5f}"
    kinds = f" ({one.dtype_a} → {one.dtype_b})" if one.dtype_a != one.dtype_b else ""
    kinds += f" ({list(one.shape_a)} → {list(one.shape_b)})" if one.shape_a != one.shape_b else ""
    name = _short(one.name, None if wide is None else wide - len(kinds) - 2)
    return f"{'≠' if one.changed else '='} {said}{cosine:>9}  {name}{kinds}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _short(name: str, wide: int | None) -> str:
    """A name whose end fits into `wide` columns."""
    name = show.plain(name)
    return name if wide is None or len(name) <= max(wide, 12) else "…" + name[-max(wide, 12) + 1 :]


def summary(report: "DiffReport") -> str:
    """The whole comparison in one line."""
    if report.same:
        return f"the same: {len(report.tensors)} tensors, byte for byte"
    parts = [f"{len(report.changed)} of {len(report.tensors)} common tensors differ"]
    if report.relative is not None:
        parts.append(f"relative difference {report.relative:.3g}")
    parts += [f"cosine {report.cosine:.6f}"] if report.cosine is not None else []
    parts += [f"{len(report.only_a)} only in A (marked A)"] if report.only_a else []
    parts += [f"{len(report.only_b)} only in B (marked B)"] if report.only_b else []
    return ", ".join(parts)
