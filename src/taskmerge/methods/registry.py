"""Finds the methods: every file of this package, and the entry points `taskmerge.methods` of others."""

import pkgutil
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from types import MappingProxyType

import taskmerge.methods as package
from taskmerge.errors import UsageError, unknown_name
from taskmerge.methods.contract import Method, Setting

GROUP = "taskmerge.methods"
ELSEWHERE = {
    "linear": "average",
    "simple_average": "average",
    "weighted_average": "average",
    "dare_linear": "dare",
    "tsv": "tsv_m",
    "breadcrumbs_linear": "breadcrumbs",
}  # what other tools call a method of ours
PREFIXES = ("then_", "lines_")  # of an option of the second method of a chain, or of the factor of --lines


def _declared(holder: object) -> list[Method]:
    """The declarations in a module, or of one decorated function."""
    own = getattr(holder, "declaration", None)
    if isinstance(own, Method):
        return [own]
    module = getattr(holder, "__name__", None)
    found = (getattr(value, "declaration", None) for value in vars(holder).values())
    return [one for one in found if isinstance(one, Method) and one.kernel.__module__ == module]


@cache
def methods() -> Mapping[str, Method]:
    """All methods by name, sorted; a plug-in may not take a name that is taken."""
    found: dict[str, Method] = {}
    for info in pkgutil.iter_modules(package.__path__):
        for one in _declared(import_module(f"{package.__name__}.{info.name}")):
            found[one.name] = one
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        for one in _declared(point.load()):
            if one.name in found:
                raise UsageError(
                    f"the plug-in `{point.name}` declares the method `{one.name}`, which exists already",
                    where=point.value,
                    hint="uninstall that package or rename its method",
                )
            found[one.name] = one
    return MappingProxyType(dict(sorted(found.items())))


def find(name: str, *, where: str = "--method") -> Method:
    """A method by name (`-` and `_` alike, any case); `where` is what named it."""
    key = name.strip().lower().replace("-", "_")
    known = methods()
    if key not in known:
        for first in known:  # `dare_ties` is one method elsewhere
            if known[first].gives == "task_vectors" and key.removeprefix(f"{first}_") in known:
                then = key.removeprefix(f"{first}_")
                hint = f"write `--method {first} --then {then}`; its own options follow as `--then-NAME`"
                raise UsageError(f"unknown method `{name}`", where=where, hint=hint)
        if key in ELSEWHERE:
            hint = f"taskmerge calls it `{ELSEWHERE[key]}`: see `taskmerge methods {ELSEWHERE[key]}`"
            raise UsageError(f"unknown method `{name}`", where=where, hint=hint)
        raise unknown_name("method", name, known, where=where)
    return known[key]


def setting(name: str) -> Setting | None:
    """What some method declares as its option `name`, if any does; `then_` or `lines_` before it says whose it is."""
    known = {own: one for declared in methods().values() for own, one in declared.settings.items()}
    plain = next((name.removeprefix(one) for one in PREFIXES if name.startswith(one)), name)
    return known.get(name) or known.get(plain)
