"""What was recovered as one page: the verdict, the coefficients, what is left, which way it points, the record."""

from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import TYPE_CHECKING

from taskmerge.cli import show
from taskmerge.errors import listed, plain

if TYPE_CHECKING:
    from taskmerge.recovery.report import Recovery
    from taskmerge.recovery.solve import Fit

WIDTH, NAME, COLUMN, SIDE_BY_SIDE = 80, 14, 11, 6
"""Columns of a page, of a name (longer ones lose their middle) and of a number, and how many numbers stand in a row."""
SAID = {
    "unchanged": "it is the base, number for number",
    "linear": "a linear merge: one set of coefficients leaves no more than rounding",
    "linear by class": "linear by class: each class of tensors has coefficients of its own",
    "linear by tensor": "linear by tensor: each tensor has coefficients of its own (a layer-wise merge)",
    "unclear": "unclear: what is left is near rounding, which hides whether it is more",
    "not linear": "not linear: no coefficients of these explain it",
}
FORMS = {
    "least squares": "any coefficients",
    "scaled": "any, and of any sum with the base's",
    "non-negative": "none negative",
    "sum to one": "sum to one, nothing of the base",
    "soup": "none negative, sum to one",
}
POINTS = {
    "foreign": "tensors that no candidate changes are changed: something else took part",
    "spectral": "matrices alone are no combination, all else is: a method on singular values (CART, TSV-M, Iso-C …)",
    "sparse": "entries that candidates clearly change are the base's: some are left out (TIES, consensus, PCB …)",
    "elementwise": (
        "matrices and all else alike: entry by entry (TIES, DARE, MagMax …), or an ingredient that is not among these; "
        "numbers alone do not tell which"
    ),
    "base": "there is no base here: its share counts as left over; name it with --base",
}


def show_page(found: "Recovery", quiet: bool) -> None:
    """Prints the page, or its first line alone."""
    if quiet:
        show.page([verdict(found)])
        return
    text = [verdict(found), *points(found), "", *table(found), "", *forms(found), *tensors(found), *claim(found)]
    show.page(show.folded("\n".join(plain(line) for line in text)).split("\n"))


def verdict(found: "Recovery") -> str:
    """What it is, in one line; an expert itself by its name."""
    alone = [name for name, value in found.coefficients.items() if abs(value - 1) < 5e-4]
    others = [value for name, value in found.coefficients.items() if name not in alone]
    if found.verdict == "linear" and len(alone) == 1 and all(abs(value) < 5e-4 for value in others):
        return f"it is {alone[0]}, but for rounding"
    return SAID[found.verdict]


def points(found: "Recovery") -> list[str]:
    """Which way it points."""
    lines = [f"  {line}" for one in found.pointers for line in wrap(POINTS[one], WIDTH - 2)]
    if found.pointers and found.foreign:
        lines.append(f"  changed though no candidate changes them: {listed(found.foreign, 3)}")
    if "sparse" in found.pointers and found.still is not None:
        lines.append(f"  {found.still:.1%} of the clearly changed entries stay as in the base")
    return lines


def table(found: "Recovery") -> list[str]:
    """The coefficients of the whole model with their errors, and of every class."""
    whole = found.fits[found.form]
    columns: dict[str, Fit] = {"model": whole, **{kind: one.fit for kind, one in found.classes.items()}}
    titles, lines = list(columns), list[str]()
    for start in range(0, len(titles), SIDE_BY_SIDE):
        lines += [*([""] if start else []), *_rows(found, {one: columns[one] for one in titles[start:][:SIDE_BY_SIDE]})]
    return lines


def _rows(found: "Recovery", columns: Mapping[str, "Fit"]) -> list[str]:
    """Experts, base and what is left, beside each other for some columns."""
    rows = {name: [_value(fit, place) for fit in columns.values()] for place, name in enumerate(found.experts)}
    if found.base is not None:
        rows["base "] = [f"{_number(fit.base)} " for fit in columns.values()]
    rows["left over"] = [f"{fit.residual:.2%} " for fit in columns.values()]
    rows["× rounding"] = [f"{_times(fit.ratio)} " for fit in columns.values()]
    lines = [f"{_cut(name):<{NAME}}" + "".join(f"{one:>{COLUMN}}" for one in row) for name, row in rows.items()]
    return [f"{'':<{NAME}}" + "".join(f"{title:>{COLUMN - 1}} " for title in columns).rstrip(), *map(str.rstrip, lines)]


def _value(fit: "Fit", place: int) -> str:
    """A coefficient; one that cannot be told has a mark, and one that is not sure to three digits its error."""
    mark = "?" if any(place in group for group in fit.unknown) else " "
    error = fit.errors[place] if fit.errors else 0.0
    return f"{_number(fit.coefficients[place])}{'~' if error > 5e-4 and mark == ' ' else mark}"


def forms(found: "Recovery") -> list[str]:
    """What each form leaves, the one shown first; what cannot be told; how much was compared."""
    title = f"× rounding to {found.rounded_to}"
    lines = [f"{'coefficients':<38}{'left over':>10}{title:>{len(title) + 2}}"]
    for form in sorted(found.fits, key=lambda one: one != found.form):
        fit = found.fits[form]
        mark = "  (shown)" if form == found.form else ""
        lines.append(f"{FORMS[form]:<38}{f'{fit.residual:.2%}':>10}{_times(fit.ratio):>{len(title) + 2}}{mark}")
    names, least = list(found.experts), found.fits["least squares"]
    for group in least.unknown:
        of = listed([names[place] for place in group], plain=True)
        lines.append(f"? the coefficients of {of} cannot be told apart" if group[1:] else f"? {of} changes nothing")
    if any(error > 5e-4 for error in least.errors):
        lines.append(f"~ sure to ±{max(least.errors):.1g} and less, if what is left over is noise")
    return lines


def tensors(found: "Recovery") -> list[str]:
    """How many tensors are linear by themselves, and the least linear ones."""
    odd = [one for kind in found.classes for one in found.tensors if one.kind == kind and not _of_rounding(one.fit)]
    count = f"{len(found.tensors) - len(odd)} of {len(found.tensors)} tensors are linear by themselves"
    worst = sorted(odd, key=lambda one: -one.fit.beyond)[:3]
    return ["", f"{count} ({found.parameters:,} numbers)", *(_left(one.name, one.fit) for one in worst)]


def _left(name: str, fit: "Fit") -> str:
    """What is left of a tensor, and the end of its name."""
    line, name = f"  {fit.beyond:.1%} left: ", plain(name)
    room = WIDTH - len(line)
    return line + (name if len(name) <= room else f"…{name[1 - room :]}")


def _of_rounding(fit: "Fit") -> bool:
    from taskmerge.recovery.judge import of_rounding

    return of_rounding(fit)


def claim(found: "Recovery") -> list[str]:
    """What its own record says, beside this."""
    said = found.claim
    if said is None:
        return []
    agrees = {True: "as found here", False: "not what is found here", None: "which numbers alone cannot confirm"}
    lines = ["", f"its record says {said.method}: {agrees[said.agrees]}"]
    if said.absent:
        lines += ["  experts that it names and that are not among these:", *_names(said.absent)]
    if said.coefficients is not None and said.agrees is False:
        values = [f"{name} {value:.4g}" for name, value in said.coefficients.items()]
        lines += ["  its coefficients:", *_names(values)]
    return lines


def _names(names: Sequence[str]) -> list[str]:
    """Some names, a few lines of them."""
    return [f"    {line}" for line in wrap(listed([plain(name) for name in names], 8, plain=True), WIDTH - 4)]


# --- cells -----------------------------------------------------------------------------------------------------


def _cut(name: str) -> str:
    name = plain(name)
    return name if len(name) < NAME else f"{name[: NAME // 2 - 1]}…{name[len(name) - NAME // 2 + 1 :]}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{round(value, 4) + 0:.4f}" if abs(value) < 1000 else f"{value:.3g}"


def _times(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.2f}" if value < 100 else f"{value:,.0f}" if value < 1e6 else f"{value:.1e}"
