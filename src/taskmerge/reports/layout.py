"""How a table fits a width: as it is, turned round, or in blocks of columns. Pure."""

import re
from dataclasses import replace

from taskmerge.reports.tables import Table

GAP = 2
NAMES = 0.4
"""The names of rows may take this share of the width; longer ones are folded."""
HEADER = 14
"""Headers wider than this are folded, if the cells below are narrower."""


def arranged(table: Table, width: int) -> list[Table]:
    """The table in one piece if it fits into `width` characters, turned round if that fits, else in several."""
    if _fits(table, width):
        return [table]
    turned = table.transposed("task" if table.corner == "checkpoint" else table.corner)
    if table.corner == "checkpoint" and _fits(turned, width):
        return [turned]
    return _blocks(table, width)


def name_width(table: Table, width: int) -> int:
    """Characters for the names of rows."""
    longest = max(map(len, (table.corner, *table.names)))
    return min(longest, max(int(width * NAMES), len(table.corner)))


def column_widths(table: Table) -> list[int]:
    """Characters for each column, a long header folded."""
    cells = [max((len(row[place].short) for row in table.cells), default=0) for place in range(len(table.columns))]
    return [max(cell, min(len(title), HEADER)) for cell, title in zip(cells, table.columns, strict=True)]


def folded(text: str, width: int) -> str:
    """A name in lines of at most `width` characters, broken after spaces, hyphens, dots and the like where possible."""
    lines = [""]
    for piece in re.findall(r"[^\s_./+,:-]*[\s_./+,:-]|[^\s_./+,:-]+", text):
        if lines[-1] and len((lines[-1] + piece).rstrip()) > width:
            lines.append("")
        while len(piece.rstrip()) > width:
            lines[-1], piece = piece[:width], piece[width:]
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.strip() for line in lines if line.strip())


def _fits(table: Table, width: int) -> bool:
    return name_width(table, width) + sum(GAP + column for column in column_widths(table)) <= width


def _blocks(table: Table, width: int) -> list[Table]:
    """As many columns in each block as fit, at least one."""
    room = width - name_width(table, width)
    blocks: list[list[int]] = [[]]
    used = 0
    for place, needed in enumerate(column_widths(table)):
        if blocks[-1] and used + GAP + needed > room:
            blocks.append([])
            used = 0
        blocks[-1].append(place)
        used += GAP + needed
    last = len(blocks) - 1
    return [
        replace(
            table,
            title=table.title if number == 0 else "",
            columns=tuple(table.columns[place] for place in block),
            cells=tuple(tuple(row[place] for place in block) for row in table.cells),
            notes=table.notes if number == last else (),
        )
        for number, block in enumerate(blocks)
    ]
