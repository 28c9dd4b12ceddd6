"""What a checkpoint's own record says of its making, beside what its numbers say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from taskmerge.methods.registry import methods
from taskmerge.recovery.solve import Fit

LINEAR = ("average", "task_arithmetic")
"""Methods that are one linear combination of base and experts, the same in every tensor."""
CLOSE = 5e-4
"""How far coefficients may be from the recorded ones, beside three standard errors: three digits."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A record: the method, the coefficients that it stands for (None where it is no plain linear merge), recorded
    experts that are not among the candidates by name, candidates that the record does not name, and whether numbers
    agree with it (None where that cannot be told)."""

    method: str
    coefficients: Mapping[str, float] | None
    absent: tuple[str, ...]
    unnamed: tuple[str, ...]
    agrees: bool | None


def claim_of(
    record: Mapping[str, Any], tasks: Sequence[str], fit: Fit, *, linear: bool | None, based: bool
) -> Claim | None:
    """What a provenance says beside the numbers; None where there is none that can be read. Experts are compared by
    name; where it is unclear whether the numbers are linear (None), they confirm nothing and contradict nothing."""
    recipe = record.get("recipe")
    if record.get("kind") != "merge" or not isinstance(recipe, Mapping):
        return None
    method = str(recipe.get("method"))
    names = _names(record.get("tasks"))
    absent, unnamed = ([one for one in these if one not in those] for these, those in ((names, tasks), (tasks, names)))
    plain = method in LINEAR and not recipe.get("lines") and not recipe.get("then")
    said = _coefficients(method, recipe, names) if plain and names else None
    if said is None:
        known = method in methods() and method not in LINEAR
        agrees = not linear if known and len(names) > 2 and linear is not None else None
        return Claim(method, None, tuple(absent), tuple(unnamed), agrees)
    same = not absent and all(
        abs(said.get(task, 0.0) - found) <= CLOSE + 3 * error
        for task, found, error in zip(tasks, fit.coefficients, fit.errors or [0.0] * len(tasks), strict=True)
        if not any(tasks[place] == task for group in fit.unknown for place in group)
    )
    told = (method == "average" or based) and linear is not None and not absent
    return Claim(method, said, tuple(absent), tuple(unnamed), (same and linear) if told else None)


def _names(entries: object) -> list[str]:
    """The experts of a record."""
    known = entries if isinstance(entries, list) else []
    return [str(one["name"]) for one in known if isinstance(one, Mapping) and "name" in one]


def _coefficients(method: str, recipe: Mapping[str, Any], names: Sequence[str]) -> dict[str, float] | None:
    """The coefficients of a linear method, by expert."""
    given, options = recipe.get("weights") or {}, recipe.get("options") or {}
    weights = {name: float(given.get(name, 1.0)) for name in names}
    if method == "average":
        total = sum(weights.values())
        return {name: weight / total for name, weight in weights.items()} if total else None
    scale = options.get("coefficient")
    return None if scale is None else {name: float(scale) * weight for name, weight in weights.items()}
