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

    from taskmerge.merging.planned import MergePlan

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


def plan_lines(plan: "MergePlan") -> list[str]:
    """The plan in a few lines."""
    base = f"base {plan.base}" if plan.base and plan.reads_base else "no base needed"
    tensors = sum(group.tensors for group in plan.groups)
    return [
        f"{' then '.join(plan.method)}: {len(plan.tasks)} experts ({', '.join(plan.tasks)}), {base}",
        f"{tensors} tensors; reads {size(plan.bytes_read)}, writes {size(plan.bytes_written)}, "
        f"peak memory up to {size(plan.memory)}, about {plan.seconds:.0f} s on {plan.device}",
        *(f"  {name} {value}" for name, value in plan.options.items()),
    ]


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


def plan_table(plan: "MergePlan") -> None:
    """The classes of tensors and what happens to each, on stdout."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("class", "tensors", "parameters", "share", "type", "treatment"):
        table.add_column(title, justify="right" if title in ("tensors", "parameters", "share") else "left")
    total = sum(group.parameters for group in plan.groups) or 1
    for group in plan.groups:
        read, written = (", ".join(codes) for codes in (group.read_as, group.written_as))
        cast = read if read == written else f"{read} → {written}"
        share = f"{group.parameters / total:.1%}"
        table.add_row(group.kind, str(group.tensors), f"{group.parameters:,}", share, cast, HOW[group.treatment])
    print_table(table)
    for path in plan.outputs:
        print(f"would write {plain(path)}")
