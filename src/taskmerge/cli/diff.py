"""`taskmerge diff`."""

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from taskmerge.cli import options, show
from taskmerge.cli.options import option
from taskmerge.cli.program import app
from taskmerge.errors import plain

if TYPE_CHECKING:
    from taskmerge.checkpoint.difference import DiffReport, TensorDifference

NUMBERS = 47  # columns that stand before the name of a tensor


@app.command()
def diff(
    a: Annotated[Path, typer.Argument(help="File, index or folder.", readable=False)],
    b: Annotated[Path, typer.Argument(help="What it is compared with.", readable=False)],
    changed: Annotated[bool, option("Only tensors that are not the same.", "--changed")] = False,
    include: options.Include = None,
    exclude: options.Exclude = None,
    map: options.Map = None,
    allow_pickle: options.AllowPickle = False,
    json: options.Json = False,
    quiet: Annotated[bool, option("Print only the summary line.", "--quiet", "-q")] = False,
    debug: options.Debug = False,
) -> None:
    """Say how two checkpoints differ, tensor by tensor. A difference is a result: the exit code is 0."""
    import taskmerge

    report = taskmerge.diff(
        a, b, include=include or (), exclude=exclude or (), map=map or (), allow_pickle=allow_pickle
    )
    show.notices(report.notes, (), quiet)
    rows = report.changed if changed else report.tensors
    if json:
        show.document({**report.to_dict(), "tensors": [row(tensor) for tensor in rows]})
        return
    show.page([*([] if quiet else table(report, rows)), summary(report)])


def row(tensor: "TensorDifference") -> dict[str, object]:
    """One tensor as plain values."""
    from dataclasses import asdict

    return asdict(tensor)


def table(report: "DiffReport", rows: "tuple[TensorDifference, ...]") -> list[str]:
    """One line a tensor, the numbers first; on a terminal long names lose their front."""
    wide = shutil.get_terminal_size((80, 24)).columns - NUMBERS if sys.stdout.isatty() else None
    lines = [f"  {'‖A‖':>9}{'‖B‖':>9}{'‖A-B‖':>9}{'relative':>9}{'cosine':>9}  tensor"] if rows else []
    lines += [_line(tensor, wide) for tensor in rows]
    lines += [f"A {'':>45}{_short(name, wide)}" for name in report.only_a]
    lines += [f"B {'':>45}{_short(name, wide)}" for name in report.only_b]
    return lines


def _line(tensor: "TensorDifference", wide: int | None) -> str:
    numbers = (tensor.norm_a, tensor.norm_b, tensor.norm_difference, tensor.relative)
    columns = "".join(f"{_number(value):>9}" for value in numbers)
    cosine = "–" if tensor.cosine is None else f"{tensor.cosine:.5f}"
    kinds = f" ({tensor.dtype_a} → {tensor.dtype_b})" if tensor.dtype_a != tensor.dtype_b else ""
    kinds += f" ({list(tensor.shape_a)} → {list(tensor.shape_b)})" if tensor.shape_a != tensor.shape_b else ""
    name = _short(tensor.name, None if wide is None else wide - len(kinds) - 2)
    return f"{'≠' if tensor.changed else '='} {columns}{cosine:>9}  {name}{kinds}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _short(name: str, wide: int | None) -> str:
    """A name whose end fits into `wide` columns."""
    name = plain(name)
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
