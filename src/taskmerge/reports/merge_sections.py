"""The page of a merge's receipt: what was written, from what, how, and at what cost. Scores are not among it."""

from collections.abc import Mapping, Sequence
from typing import Any

from taskmerge.reports.runs import Run
from taskmerge.reports.sections import Fact, Facts, Part, Prose, Section
from taskmerge.reports.tables import EMPTY, NOTHING, Cell, Table, written

UNSCORED = "A receipt says what was merged, not how good it is: `taskmerge eval` scores it, `report` joins the two."


def sections(run: Run) -> list[Section]:
    """What was merged, then inputs and tensors."""
    return [_answer(run.document), _inputs(run.document), _tensors(run.document)]


def method_of(provenance: Mapping[str, Any]) -> str:
    """The method's name; several in the order in which they work."""
    method = provenance["recipe"].get("method", "?")
    return method if isinstance(method, str) else " then ".join(map(str, method))


def options_text(options: Mapping[str, Any]) -> str:
    """Options of a method in one line."""
    return ", ".join(f"{name} {_short(value)}" for name, value in options.items()) or "none"


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _answer(receipt: Mapping[str, Any]) -> Section:
    outputs, provenance = receipt["outputs"], receipt["provenance"]
    experts = [task["name"] for task in provenance["tasks"]]
    what = "one checkpoint" if len(outputs) == 1 else f"{len(outputs)} checkpoints"
    lead = f"{method_of(provenance)} made {what} of {len(experts)} experts. {UNSCORED}"
    facts = (
        Fact(method_of(provenance), "method", options_text(outputs[0]["options"]) if len(outputs) == 1 else ""),
        Fact(str(len(experts)), "experts"),
        Fact(f"{written(receipt['seconds'])} s", "time", f"{written(receipt['bytes_read'] / 1e6)} MB read"),
        Fact(f"{receipt['peak_memory'] / 1e6:,.0f} MB", "peak memory",
             f"{receipt['predicted_memory'] / 1e6:,.0f} MB were predicted"),
    )  # fmt: skip
    told = [Prose(text, "warning") for text in receipt["warnings"]]
    notes = [Prose(text, "note") for text in receipt["notes"]]
    parts: Sequence[Part] = (Facts(facts), *told, _outputs(outputs), *notes)
    return Section("In short", "answer", lead, tuple(parts))


def _outputs(outputs: Sequence[Mapping[str, Any]]) -> Table:
    names = list(dict.fromkeys(name for output in outputs for name in output["options"]))
    cells = tuple(
        (*(_option(output["options"].get(name)) for name in names), Cell(f"{output['bytes'] / 1e6:,.4g}"),
         Cell(str(len(output["files"]))))
        for output in outputs
    )  # fmt: skip
    paths = tuple(output["path"] for output in outputs)
    return Table("What was written", "checkpoint", (*names, "MB", "files"), paths, cells)


def _option(value: object) -> Cell:
    return EMPTY if value is None else Cell(_short(value))


def _inputs(receipt: Mapping[str, Any]) -> Section:
    provenance = receipt["provenance"]
    rows = [("expert", task) for task in provenance["tasks"]]
    rows += [("base", provenance["base"])] if "base" in provenance else []
    cells = tuple(
        (
            Cell(role),
            Cell(str(own.get("tensors", NOTHING))),
            Cell(f"{own['digest'][:23]}…" if "digest" in own else NOTHING),
        )
        for role, own in rows
    )
    names = tuple(own["name"] for _, own in rows)
    table = Table("Inputs by content", "name", ("role", "tensors read", "digest"), names, cells)
    return Section("Inputs", "inputs", "Digests are of names, types, shapes and bytes of the tensors read.", (table,))


def _tensors(receipt: Mapping[str, Any]) -> Section:
    treated = receipt["provenance"].get("treated", {})
    lead = f"{sum(treated.values()):,} tensors by class and by what happened to them." if treated else ""
    names = tuple(kind.partition("/")[0] for kind in treated)
    cells = tuple((Cell(kind.partition("/")[2]), Cell(f"{count:,}")) for kind, count in treated.items())
    table = Table("Tensors", "class", ("treatment", "tensors"), names, cells)
    return Section("Tensors", "tensors", lead, (table,) if treated else ())
