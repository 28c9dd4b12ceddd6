"""What people see: sizes, notes, the plan's table. Everything goes to stderr unless it is the result."""

import json
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from taskmerge.errors import plain, told

if TYPE_CHECKING:
    from rich.table import Table

    from taskmerge.merging.prepare import Prepared

UNITS = ("B", "kB", "MB", "GB", "TB")
HOW = {
    "method": "merged by the method",
    "elsewhere": "merged by its fallback",
    "origin": "averaged",
    "buffer": "checked for equality",
    "copy": "copied from the base",
    "keep": "copied unmerged",
}


def size(count: float) -> str:
    """A number of bytes for people."""
    for unit in UNITS[:-1]:
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} {UNITS[-1]}"


def duration(seconds: float) -> str:
    """A time for people."""
    if seconds < 0.1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def say(text: str, quiet: bool = False) -> None:
    """A text for people: what names in it hold of control characters is shown, not obeyed."""
    if not quiet:
        print(told(text), file=sys.stderr)


def notices(notes: Sequence[str], warnings: Sequence[str], quiet: bool) -> None:
    """Notes and warnings, one line each."""
    for note in notes:
        say(f"note: {plain(note)}", quiet)
    for warning in warnings:
        say(f"warning: {plain(warning)}", quiet)


def document(value: object) -> None:
    """One JSON document on stdout."""
    text = json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True)
    print("\n".join(_escaped(line) for line in text.split("\n")))


def _escaped(line: str) -> str:
    """A line of JSON for a terminal: what it would obey is written as JSON can say it too."""
    return line if line.isprintable() else "".join(one if one.isprintable() else json.dumps(one)[1:-1] for one in line)


def page(lines: Iterable[str]) -> None:
    """Lines for people on stdout: what names in them hold of control characters is shown, not obeyed."""
    print("\n".join(plain(line) for text in lines for line in text.split("\n")))


def results(paths: Iterable[str]) -> None:
    """What was written, a path a line: to a program as it is, to a terminal without what it would obey."""
    print("\n".join(plain(path) if sys.stdout.isatty() else path for path in paths))


def plan_lines(prepared: "Prepared") -> list[str]:
    """The plan in a few lines."""
    plan, inputs = prepared.plan, prepared.inputs
    base = f"base {inputs.base.where}" if inputs.base and prepared.reads_base else "no base needed"
    chain = " then ".join(method.name for method in prepared.points[0].chain)
    tensors = sum(count for _, count, _, _ in plan.classes())
    return [
        f"{chain}: {len(plan.tasks)} experts ({', '.join(plan.tasks)}), {base}",
        f"{tensors} tensors; reads {size(plan.costs.bytes_read)}, writes {size(plan.costs.bytes_written)}, "
        f"peak memory up to {size(plan.costs.memory)}, about {plan.costs.seconds:.0f} s on {prepared.device.type}",
        *(f"  {name} {value}" for name, value in understood(prepared).items()),
    ]


def understood(prepared: "Prepared") -> dict[str, str]:
    """Every option of the chain with what runs, over the whole grid; and every task's weight, if any has one."""
    options: dict[str, str] = {}
    given = prepared.spec.weights
    if given:
        weighed = (
            f"{task} {given.get(task, 1):g}{'' if task in given else ' (not given)'}" for task in prepared.plan.tasks
        )
        options["--weight"] = ", ".join(weighed)
    for name, (_, setting) in prepared.spec.settings().items():
        values = dict.fromkeys(setting.understood(point.values[name]) for point in prepared.points)
        options[setting.flag] = ", ".join(values)
    return options


def print_table(table: "Table") -> None:
    """A table on stdout, as wide as it may be, without the spaces that fill its lines."""
    from rich.console import Console

    console = Console()
    with console.capture() as printed:
        console.print(table)
    print("\n".join(line.rstrip() for line in printed.get().splitlines()))


def folded(text: str) -> str:
    """A text for stdout: lines that a terminal would cut are continued below their own indent."""
    if not sys.stdout.isatty():
        return text
    width, lines = shutil.get_terminal_size().columns, list[str]()
    for line in text.split("\n"):
        indent = len(line) - len(line.lstrip(" -"))
        lines += textwrap.wrap(line, width, subsequent_indent=" " * indent, break_long_words=False) or [""]
    return "\n".join(lines)


def plan_table(prepared: "Prepared") -> None:
    """The classes of tensors and what happens to each, on stdout."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("class", "tensors", "parameters", "share", "type", "treatment"):
        table.add_column(title, justify="right" if title in ("tensors", "parameters", "share") else "left")
    types = _types(prepared)
    total = sum(count for _, _, count, _ in prepared.plan.classes()) or 1
    for kind, tensors, parameters, how in prepared.plan.classes():
        read, written = (", ".join(codes) for codes in types[kind, how])
        cast = read if read == written else f"{read} → {written}"
        table.add_row(kind, str(tensors), f"{parameters:,}", f"{parameters / total:.1%}", cast, HOW[how])
    print_table(table)
    for path in prepared.paths:
        print(f"would write {plain(str(path))}")


def _types(prepared: "Prepared") -> dict[tuple[str, str], tuple[list[str], list[str]]]:
    """The types in which tensors of a class and treatment are read from the inputs, and written."""
    read: dict[tuple[str, str], set[str]] = {}
    written: dict[tuple[str, str], set[str]] = {}
    for job in prepared.plan.jobs:
        key = (job.unit.kind, job.treatment if job.action == "merge" else job.action)
        base, experts = prepared.inputs.base, prepared.inputs.experts
        holders = (job.holder(base, experts),) if job.action in ("copy", "keep") else experts
        read.setdefault(key, set()).update(
            source.specs[output.name].stored[0].dtype
            for source in holders
            if source
            for output in job.outputs
            if output.name in source.specs
        )
        written.setdefault(key, set()).update(output.dtype for output in job.outputs)
    return {key: (sorted(codes), sorted(written[key])) for key, codes in read.items()}


def plan_document(prepared: "Prepared") -> dict[str, object]:
    """The plan as plain values."""
    plan, types = prepared.plan, _types(prepared)
    return {
        "method": [method.name for method in prepared.points[0].chain],
        "tasks": list(plan.tasks),
        "base": prepared.inputs.base.where if prepared.inputs.base else None,
        "compute_dtype": prepared.spec.compute_dtype,
        "options": understood(prepared),
        "classes": [
            {
                "class": kind,
                "tensors": tensors,
                "parameters": parameters,
                "treatment": how,
                "read_as": types[kind, how][0],
                "written_as": types[kind, how][1],
            }
            for kind, tensors, parameters, how in plan.classes()
        ],
        "bytes_read": plan.costs.bytes_read,
        "bytes_written": plan.costs.bytes_written,
        "memory": plan.costs.memory,
        "seconds": round(plan.costs.seconds, 1),
        "outputs": [str(path) for path in prepared.paths],
        "notes": [*plan.notes, *prepared.inputs.notes],
        "warnings": list(prepared.inputs.warnings),
    }
