"""A diagnosis as one page: the verdict, the inputs, how close they are, what stands in the way, what follows."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from taskmerge.cli import show
from taskmerge.errors import plain

if TYPE_CHECKING:
    from taskmerge.diagnosis.findings import Finding
    from taskmerge.diagnosis.report import Diagnosis, Entry

NAME = 20
"""Columns of an input's name; longer ones lose their middle."""
SIDE_BY_SIDE = 8
"""Experts up to which every pair is shown."""
KINDS = {"merge": "merged", "task": "merged", "checkpoint": "whole", "vector": "vectors"}
LEVELS = {"refusal": "refused", "warning": "warning", "note": "note"}
KIN = {
    "fine-tuning": "like fine-tunings of the base",
    "far": "far from the base",
    "unrelated": "probably no fine-tunings of the base",
    "equal": "equal to the base",
    "unknown": "not told by weights",
}


def show_page(diagnosis: "Diagnosis", quiet: bool) -> None:
    """Prints the page, or its first line alone."""
    if quiet:
        show.page([verdict(diagnosis)])
        return
    said = ["", *(line for one in diagnosis.findings for line in finding(one))] if diagnosis.findings else []
    text = [
        verdict(diagnosis),
        *kin(diagnosis),
        "",
        *inputs(diagnosis),
        *closeness(diagnosis),
        *pairs(diagnosis),
        *said,
    ]
    show.page(show.folded("\n".join(plain(line) for line in text)).split("\n"))
    show.page(["", *commands(diagnosis)])  # never folded: a shell reads them


def verdict(diagnosis: "Diagnosis") -> str:
    """Whether a merge goes through, in one line."""
    count, stop = len(diagnosis.experts), len(diagnosis.refusals)
    experts = "1 expert" if count == 1 else f"{count} experts"
    base = f", base {diagnosis.base.path}" if diagnosis.base else ", no base"
    if diagnosis.fits:
        return f"fits: a merge of these goes through ({experts}{base})"
    things = "1 thing stands" if stop == 1 else f"{stop} things stand"
    return f"does not fit: {things} in the way of a merge ({experts}{base})"


def kin(diagnosis: "Diagnosis") -> list[str]:
    """How many experts are what to the base; without one, which are of one start."""
    of = f"median cosine of {diagnosis.matrices} matrices"
    if diagnosis.base is None and len(diagnosis.families) == 1 and len(diagnosis.experts) > 1 and diagnosis.matrices:
        return [f"all that could be compared are of one start ({of}: 0.5 and more)"]
    counts = Counter[str](one.closeness.kin for one in diagnosis.experts if one.closeness)
    said = [f"{counts[one]} {words}" for one, words in KIN.items() if counts[one]]
    return [f"{', '.join(said)} ({of})"] if said else []


# --- tables ----------------------------------------------------------------------------------------------------


def inputs(diagnosis: "Diagnosis") -> list[str]:
    """What headers say of every input, the base first; what an adapter names as its base below it."""
    every = [*([diagnosis.base] if diagnosis.base else []), *diagnosis.experts]
    names = ["base", *(one.name for one in diagnosis.experts)] if diagnosis.base else [one.name for one in every]
    wide = _wide(names)
    lines = [f"{'input':<{wide}}  {'kind':<8}{'tensors':>8}{'parameters':>16}{'size':>9}  types"]
    for name, entry in zip(names, every, strict=True):
        lines.append(f"{_cut(name):<{wide}}  {KINDS.get(entry.kind, entry.kind):<8}{_held(entry)}".rstrip())
        lines += [f"  names `{entry.trained_on}` as its base"] if entry.trained_on else []
    return lines


def _held(entry: "Entry") -> str:
    if entry.tensors is None or entry.parameters is None or entry.bytes is None:
        return f"{'–':>8}{'–':>16}{'–':>9}  cannot be read"
    types = ", ".join(entry.dtypes) + ("" if entry.taken else " (not taken)")
    return f"{entry.tensors:>8}{entry.parameters:>16,}{show.size(entry.bytes):>9}  {types}"


def closeness(diagnosis: "Diagnosis") -> list[str]:
    """Every expert beside the base, and the shares of changed entries by class of tensors."""
    known = [(one.name, one.closeness) for one in diagnosis.experts if one.closeness]
    if not known:
        return []
    wide = _wide([name for name, _ in known])
    lines = ["", f"{'beside the base':<{wide}}{'‖τ‖/‖θ₀‖':>10}{'cosine':>10}{'median':>10}"]
    lines += [
        f"{_cut(name):<{wide}}{_number(one.relative_norm):>10}{_cosine(one.cosine):>10}{_cosine(one.median):>10}"
        for name, one in known
    ]
    kinds = list(dict.fromkeys(kind for _, one in known for kind in one.changed))
    columns = {kind: max(8, len(kind) + 2) for kind in kinds}
    lines += ["", f"{'changed entries':<{wide}}" + "".join(f"{kind:>{size}}" for kind, size in columns.items())]
    for name, one in known:
        shares = (f"{_share(one.changed.get(kind)):>{size}}" for kind, size in columns.items())
        lines.append(f"{_cut(name):<{wide}}" + "".join(shares))
    return lines


def pairs(diagnosis: "Diagnosis") -> list[str]:
    """The cosines of every two experts' task vectors (without a base: the medians of their weights'), or of many the
    extremes."""
    based = diagnosis.base is not None and any(one.closeness for one in diagnosis.experts)
    title = "cosines of task vectors" if based else "median cosines of weights"
    known = {(one.a, one.b): one.cosine if based else one.median for one in diagnosis.pairs}
    names = list(dict.fromkeys(name for pair in known for name in pair))
    if len(names) > SIDE_BY_SIDE:
        return _extremes(title, {pair: value for pair, value in known.items() if value is not None})
    if not known:
        return []
    wide = _wide([title.split(maxsplit=1)[0], *(f"{place} {name}" for place, name in enumerate(names, 1))])
    lines = ["", title, " " * wide + "".join(f"{place:>7}" for place in range(1, len(names)))]
    for row, name in enumerate(names[1:], 2):
        values = (known.get((other, name), known.get((name, other))) for other in names[: row - 1])
        lines.append(f"{_cut(f'{row} {name}'):<{wide}}" + "".join(f"{_short(value):>7}" for value in values))
    return [*lines[:3], _cut(f"1 {names[0]}"), *lines[3:]]


def _extremes(title: str, known: dict[tuple[str, str], float]) -> list[str]:
    if not known:
        return []
    order = sorted(known, key=lambda pair: known[pair])
    named = {"closest": order[-1], "middle": order[len(order) // 2], "farthest": order[0]}
    return ["", f"{title} ({len(known)} pairs; --json has all)"] + [
        f"  {word:<9}{known[pair]:>7.3f}  {_cut(pair[0])} and {_cut(pair[1])}" for word, pair in named.items()
    ]


# --- words -----------------------------------------------------------------------------------------------------


def finding(one: "Finding") -> list[str]:
    """A finding, and what to do about it."""
    text = f"{one.where}: {one.what}" if one.where else one.what
    first, *more = f"{LEVELS[one.level]}: {text}".split("\n")
    return [first, *(f"  {line}" for line in more), *([f"  hint: {one.hint}"] if one.hint else [])]


def commands(diagnosis: "Diagnosis") -> list[str]:
    """The commands that follow, each behind a line that a shell passes over."""
    from taskmerge.experts.shell_words import lines

    if not diagnosis.commands:
        return ["no command follows: see above"]
    return [
        line
        for place, one in enumerate(diagnosis.commands)
        for line in (*([""] if place else []), f"# {one.about}", *lines(one.groups))
    ]


# --- cells -----------------------------------------------------------------------------------------------------


def _wide(names: Sequence[str]) -> int:
    """The width of the first column, which has a title."""
    return max(len("changed entries"), *(len(_cut(name)) for name in names))


def _cut(name: str) -> str:
    name = plain(name)
    return name if len(name) <= NAME else f"{name[: NAME // 2]}…{name[len(name) - NAME // 2 + 1 :]}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _cosine(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _short(value: float | None) -> str:
    return "–" if value is None else f"{round(value, 3) + 0:.3f}"


def _share(value: float | None) -> str:
    """A share that is whole or nothing only where it says so."""
    if value is None:
        return "–"
    if value in (0, 1):
        return f"{value:.0%}"
    return "<0.1%" if value < 0.001 else ">99.9%" if value > 0.999 else f"{value:.1%}"
