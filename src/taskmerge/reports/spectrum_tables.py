"""A spectrum report as tables: tasks, what lies between them beside chance, roles and depth. Pure."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from taskmerge.reports.tables import EMPTY, Cell, Table, written

Document = Mapping[str, Any]
ABOUT = {"delta": "differences from the base", "centred": "differences from the experts' average"}
MEASURES = {
    "cosine": "cosine",
    "sign_conflict": "sign conflict",
    "overlap_left": "left overlap",
    "overlap_right": "right overlap",
    "interference": "interference",
    "singular_interference": "singular interference",
}
"""What lies between tasks, and what tables call it."""
SHORT = {
    "sign_conflict": "signs", "overlap_left": "left", "overlap_right": "right", "interference": "interf.",
    "singular_interference": "singular",
}  # fmt: skip
SQUARE = ("interference",)


def spectrum_tables(report: Document, space: str) -> list[Table]:
    """All tables about one origin."""
    found = [task_table(report, space), between_table(report, space), group_table(report, space, "role"),
             group_table(report, space, "depth"), alignment_table(report, space)]  # fmt: skip
    return [table for table in found if table is not None]


def whole(report: Document, space: str) -> Document:
    """The group of all matrices about an origin."""
    found: Document = next(one for one in report["groups"] if one["space"] == space and one["by"] == "all")
    return found


# --- by task ---------------------------------------------------------------------------------------------------


def task_table(report: Document, space: str) -> Table:
    """Tasks down: length, ranks, the energy that a truncation at the compared rank keeps, the tail."""
    group, settings = whole(report, space), report["settings"]
    place = _usual(settings)
    columns = ["‖τ‖", "95% rank", "entropy", "stable", f"at {settings['ratios'][place]}", "tail"]
    columns += ["unchanged", "intruders"] if group["zeros"] is not None else []
    cells = tuple(_task_cells(group, task, place) for task in range(len(report["tasks"])))
    notes = [
        "ranks (least for 95% of the energy, entropy, stable) are shares of the full rank, means over matrices, as is "
        f"the energy at rank {settings['ratios'][place]}; tail: median exponent of its power law"
    ]
    if group["intruders"] is not None:
        notes.append(
            f"unchanged: entries equal to the base's; intruders: of the {settings['directions']} leading directions of "
            f"each matrix ({max(group['directions'])} in all) those with a cosine below {settings['intruder_cosine']} "
            "with all of the base's"
        )
    title = f"{ABOUT[space]}: spectra of {group['matrices']} matrices"
    return Table(title, "task", tuple(columns), tuple(report["tasks"]), cells, tuple(notes))


def _usual(settings: Document) -> int:
    """Which of the ratios is the compared rank, or else the middle one."""
    ratios = settings["ratios"]
    return ratios.index(settings["rank"]) if settings["rank"] in ratios else len(ratios) // 2


def _task_cells(group: Document, task: int, place: int) -> tuple[Cell, ...]:
    cells = [
        Cell(f"{group['norm'][task]:.3g}"),
        *(share(group[key][task]) for key in ("energy_rank", "entropy_rank", "stable_rank")),
        share(group["energy"][task][place]),
        number(group["exponent"][task]),
    ]
    if group["zeros"] is not None:
        cells.append(share(group["zeros"][task]))
        cells.append(Cell(str(group["intruders"][task])) if group["intruders"] is not None else EMPTY)
    return tuple(cells)


# --- between tasks ---------------------------------------------------------------------------------------------


def between_table(report: Document, space: str) -> Table | None:
    """Measures down: mean and extremes over pairs, beside chance; None where nothing lies between tasks."""
    group = whole(report, space)
    known = {key: name for key, name in MEASURES.items() if group[key] is not None}
    if not known:
        return None
    several = len(report["pairs"]) > 1
    columns = ("mean", "chance", "times", *(("least", "most", "most between") if several else ()))
    cells = tuple(_between_cells(report, group, key, several=several) for key in known)
    rank = report["settings"]["rank"]
    notes = (
        f"spaces of the {_components(rank)}; means over {group['matrices']} matrices and {len(report['pairs'])} "
        f"pair{'s' if several else ''}, beside what chance gives",
    )
    return Table(f"{ABOUT[space]}: between tasks", "measure", columns, tuple(known.values()), cells, notes)


def _components(rank: str) -> str:
    return f"{rank} leading components" if rank.isdigit() else f"leading components, {rank} of the full rank"


def _between_cells(report: Document, group: Document, key: str, *, several: bool) -> tuple[Cell, ...]:
    pairs = paired(group[key], key)
    known = {place: pair for place, pair in enumerate(pairs) if pair[0] is not None}
    if not known:
        return (EMPTY,) * (6 if several else 3)
    value, level = (fmean(pair[side] for pair in known.values()) for side in (0, 1))
    cells = [Cell(_told(value)), Cell(_told(level)), Cell(written(value / level, 2)) if level > 0 else EMPTY]
    if several and len(pairs) > 1:
        order = sorted(known, key=lambda place: known[place][0])
        first, second = (report["tasks"][one] for one in report["pairs"][order[-1]])
        cells += [Cell(_told(known[order[0]][0])), Cell(_told(known[order[-1]][0])), Cell(f"{first}, {second}")]
    elif several:
        cells += [EMPTY, EMPTY, EMPTY]
    return tuple(cells)


def paired(measure: Document, key: str) -> list[tuple[Any, Any]]:
    """(value, chance) of a measure for every pair; of ordered ones both directions' mean, of one of all tasks one."""
    value, level = measure["value"], measure["chance"]
    if not isinstance(value, list):
        return [(value, level)]
    if key not in SQUARE:
        return list(zip(value, level, strict=True))
    tasks = range(len(value))
    return [
        (_mean(value[first][second], value[second][first]), _mean(level[first][second], level[second][first]))
        for first in tasks for second in tasks if first < second
    ]  # fmt: skip


def _mean(*values: float | None) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


# --- roles and depth -------------------------------------------------------------------------------------------


def group_table(report: Document, space: str, by: str) -> Table | None:
    """Roles or blocks down: ranks, and overlaps as multiples of chance; None for fewer than two groups."""
    found = [one for one in report["groups"] if one["space"] == space and one["by"] == by]
    if len(found) < 2:
        return None
    towers = {one["tower"] for one in found}
    names = tuple(one["group"] if len(towers) < 2 else f"{one['tower']} {one['group']}" for one in found)
    place = _usual(report["settings"])
    known = [key for key in MEASURES if key != "cosine" and any(one[key] is not None for one in found)]
    columns = ("matrices", "95% rank", f"at {report['settings']['ratios'][place]}", *(SHORT[key] for key in known))
    cells = tuple(_group_cells(one, place, known) for one in found)
    title = f"{ABOUT[space]}: by {by}; what lies between tasks as a multiple of chance"
    return Table(title, "block" if by == "depth" else by, columns, names, cells)


def _group_cells(group: Document, place: int, known: Sequence[str]) -> tuple[Cell, ...]:
    energies = [own[place] for own in group["energy"] if own[place] is not None]
    return (
        Cell(str(group["matrices"])),
        share(fmean(group["energy_rank"])),
        share(fmean(energies) if energies else None),
        *(_times(group[key], key) for key in known),
    )


def _times(measure: Document | None, key: str) -> Cell:
    ratio = None if measure is None else times_chance(paired(measure, key))
    return EMPTY if ratio is None else Cell(written(ratio, 2))


def times_chance(pairs: Sequence[tuple[Any, Any]]) -> float | None:
    """The mean of a measure over the mean of its chance levels; None where chance gives nothing."""
    known = [(value, level) for value, level in pairs if value is not None and level is not None]
    level = sum(level for _, level in known)
    return sum(value for value, _ in known) / level if level > 0 else None


def alignment_table(report: Document, space: str) -> Table | None:
    """Tasks down: how much of each lies in the merged checkpoint's space; None without one."""
    measure = whole(report, space)["alignment"]
    if measure is None:
        return None
    cells = tuple(
        (share(value), share(level), number(None if value is None else value**0.5))
        for value, level in zip(measure["value"], measure["chance"], strict=True)
    )
    title = f"{ABOUT[space]}: in the left space of the merged checkpoint"
    note = "the space leaves 5% of the merged task vector's length; the alignment ratio is the share's root"
    return Table(title, "task", ("share", "chance", "alignment ratio"), tuple(report["tasks"]), cells, (note,))


# --- cells -----------------------------------------------------------------------------------------------------


def share(value: float | None) -> Cell:
    """A share in percent."""
    return EMPTY if value is None else Cell(f"{100 * value:.1f}%")


def number(value: float | None) -> Cell:
    """A number with two places."""
    return EMPTY if value is None else Cell(f"{value:.2f}")


def _told(value: float) -> str:
    return f"{value:z.3f}"
