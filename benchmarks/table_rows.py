"""The rows of the measured tables, as data: what each is called, what makes it, and its keywords."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Kind = Literal["given", "static", "adaptive", "auto"]
JOINT, SEQUENTIAL = 40, 40
"""Iterations of methods that shape weights: updates if joint, times the number of tasks if sequential."""
FEATURES = 100
"""Iterations of methods that see frozen features alone."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row: `keywords` are those of `merge` (static) or of `adapt`; a `given` row is a word that `eval` knows.

    `iterations` None is the method's own horizon; of `auto` it is the budget. `seeds` is how many are worth a run: 1
    where the result depends on none.
    """

    name: str
    kind: Kind
    keywords: Mapping[str, Any] = field(default_factory=dict)
    iterations: int | None = None
    seeds: int | None = None

    @property
    def learns(self) -> bool:
        """Whether a split is adapted on."""
        return self.kind in ("adaptive", "auto")

    @property
    def command(self) -> str:
        """What makes the row, as one would say it on the command line."""
        if self.kind == "given":
            return f"eval {self.name}"
        method = {"method": "auto"} if self.kind == "auto" else {}
        horizon = {} if self.iterations is None else {self.horizon: self.iterations}
        words = [_option(name, value) for name, value in {**method, **self.keywords, **horizon}.items()]
        return " ".join(["merge" if self.kind == "static" else "adapt", *words])

    @property
    def horizon(self) -> str:
        """The keyword that `iterations` is."""
        return "budget" if self.kind == "auto" else "iterations"

    def within(self, iterations: int | None) -> "Row":
        """The same with another horizon, where it has one."""
        given = iterations is not None and self.iterations is not None
        return replace(self, iterations=iterations) if given else self


def _option(name: str, value: object) -> str:
    flag = f"--{name.rstrip('_').replace('_', '-')}"
    return flag if value is True else f"{flag} {value}"


def _static(name: str, method: str, **keywords: Any) -> Row:
    return Row(name, "static", {"method": method, **keywords})


def _adaptive(name: str, method: str, iterations: int | None, **keywords: Any) -> Row:
    return Row(name, "adaptive", {"method": method, **keywords}, iterations)


def _heads(name: str, init: str, **keywords: Any) -> Row:
    return Row(name, "adaptive", {"method": "heads", "init": init, **keywords}, seeds=1)


def _once(row: Row) -> Row:
    """One seed: enough to place a row that decides nothing."""
    return replace(row, seeds=1)


def _refitted(row: Row) -> Row:
    return _once(replace(row, name=f"{row.name}+refit", keywords={**row.keywords, "refit_heads": True}))


GIVEN = (Row("experts", "given"), Row("base", "given"))
STATIC = (
    _static("average", "average"),
    _static("task-arithmetic-0.3", "task_arithmetic", coefficient=0.3),
    _static("ties-sum-0.3", "ties", aggregate="sum", coefficient=0.3, threshold="next"),
    _static("tsv-m", "tsv_m"),
    _static("iso-c", "iso_c"),
    _static("iso-cts", "iso_cts"),
    _static("cart-8", "cart", rank=0.08, coefficient=1.0),
    _static("cart-16", "cart", rank=0.16, coefficient=1.0),
)
PUBLISHED = (
    _adaptive("adamerging", "adamerging", JOINT),
    _adaptive("adamerging-plus", "adamerging_plus", JOINT),
    _adaptive("cart-plus", "cart_plus", JOINT),
    _adaptive("ta+adarank", "adarank", JOINT, origin="base"),
    _adaptive("cart+adarank", "adarank", JOINT, origin="mean"),
    _adaptive("tint", "tint", SEQUENTIAL),
    _adaptive("symerge-head", "symerge", SEQUENTIAL),  # tint_plus is the same
    _adaptive("symerge-last", "symerge", SEQUENTIAL, layer="last"),
    _adaptive("surgery", "surgery", FEATURES, init="cart"),
    _adaptive("probsurgery", "probsurgery", FEATURES, init="cart"),
)
HEADS = (
    _heads("heads-average", "average"),
    _heads("heads-cart-16", "cart", rank="0.16"),
    _heads("heads-iso-cts", "iso_cts"),
)
SELF_LABELLED = (
    _once(_adaptive("adamerging-self", "adamerging", JOINT, objective="self")),
    _once(_adaptive("ta+adarank-self", "adarank", JOINT, objective="self")),
    _once(_adaptive("ta+adarank+tint", "adarank", SEQUENTIAL, with_="tint")),
    _once(_adaptive("symerge-mean-16", "symerge", SEQUENTIAL, origin="mean", rank="0.16")),
)
CHOSEN = (
    _adaptive("blocks", "blocks", None),
    _adaptive("blocks-late", "blocks", None, layer="late"),
    Row("auto", "auto", iterations=60, seeds=1),
    _once(_adaptive("symerge-stop", "symerge", SEQUENTIAL, stop="agreement", every=40, watch=40)),
)
"""What is recommended, and choices that read no label; `watch` has labels look on for the regret."""

REFITTED = ("adamerging", "cart-plus", "ta+adarank", "cart+adarank", "symerge-head", "symerge-last", "surgery")
ROWS = (
    *GIVEN,
    *STATIC,
    *PUBLISHED,
    *map(_refitted, (row for row in PUBLISHED if row.name in REFITTED)),
    *HEADS,
    *SELF_LABELLED,
    *CHOSEN,
)
