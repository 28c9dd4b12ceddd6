"""Finds the methods that adapt: every file of this package that declares one with `@adaptive`."""

import pkgutil
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from types import MappingProxyType

import taskmerge.methods as package
from taskmerge.methods.adaptive import Adaptive
from taskmerge.methods.listing import Known, plain_name, unknown_adaptive
from taskmerge.methods.registry import methods

RECOMMENDED = "blocks"
"""What `adapt` takes where nobody chooses: the best of the embedded example's measurements (docs/adapt.md)."""


@cache
def adaptive_methods() -> Mapping[str, Adaptive]:
    """All adaptive methods by name, sorted."""
    found: dict[str, Adaptive] = {}
    for info in pkgutil.iter_modules(package.__path__):
        module = import_module(f"{package.__name__}.{info.name}")
        for value in vars(module).values():
            declared = getattr(value, "declaration", None)
            if isinstance(declared, Adaptive) and declared.parts.__module__ == module.__name__:
                found[declared.name] = declared
    return MappingProxyType(dict(sorted(found.items())))


def find_adaptive(name: str, *, where: str = "--method") -> Adaptive:
    """An adaptive method by name; `where` is what named it. A training-free one leads to `merge`."""
    key, every = plain_name(name), adaptive_methods()
    if key in every:
        return every[key]
    for other in every.values():
        if key in other.aliases:
            return other
    raise unknown_adaptive(name, Known(methods(), every), where)
