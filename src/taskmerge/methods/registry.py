"""Finds the methods: every file of this package, and the entry points `taskmerge.methods` of others."""

import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType

import taskmerge.methods as package
from taskmerge.errors import UsageError
from taskmerge.methods.contract import Method
from taskmerge.methods.listing import GROUP, Known, unknown_method
from taskmerge.methods.options import PREFIXES, Setting

DEFAULT = "cart"


@dataclass(frozen=True, slots=True)
class Broken:
    """An entry point that adds no method: its name, its package, and the reason."""

    name: str
    package: str
    reason: str

    @property
    def problem(self) -> str:
        return f"the plug-in `{self.name}` of the package {self.package} is left out: {self.reason}"


@dataclass(frozen=True, slots=True)
class Registry:
    """Methods by name, sorted, those that no list shows, and the plug-ins that could not be loaded."""

    methods: Mapping[str, Method]
    internal: Mapping[str, Method]
    broken: tuple[Broken, ...]


def _declared(holder: object) -> list[Method]:
    """The declarations in a module, or of one decorated function."""
    own = getattr(holder, "declaration", None)
    if isinstance(own, Method):
        return [own]
    module = getattr(holder, "__name__", None)
    attached = (getattr(value, "declaration", None) for value in vars(holder).values())
    return [method for method in attached if isinstance(method, Method) and method.kernel.__module__ == module]


@cache
def _registry() -> Registry:
    """Everything that is installed. A plug-in may not take a name that is taken, and harms nobody but itself."""
    methods: dict[str, Method] = {}
    for info in pkgutil.iter_modules(package.__path__):
        methods |= {method.name: method for method in _declared(import_module(f"{package.__name__}.{info.name}"))}
    broken = []
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        try:
            methods |= _of_plug_in(point, methods)
        except Exception as error:  # whatever somebody else's module does when it is imported
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            broken.append(Broken(point.name, _package(point), reason))
    public, internal = (
        MappingProxyType({name: method for name, method in sorted(methods.items()) if method.internal is hidden})
        for hidden in (False, True)
    )
    return Registry(public, internal, tuple(broken))


def _of_plug_in(point: EntryPoint, taken: Mapping[str, Method]) -> dict[str, Method]:
    """The methods that an entry point leads to."""
    declared = {method.name: method for method in _declared(point.load())}
    if not declared:
        raise ImportError(f"`{point.value}` declares no method with @method")
    for name in declared.keys() & taken.keys():
        raise ImportError(f"it declares the method `{name}`, which exists already")
    return declared


def _package(point: EntryPoint) -> str:
    """The name under which a plug-in was installed."""
    return point.dist.name if point.dist is not None else point.module


def methods() -> Mapping[str, Method]:
    """All methods by name, sorted, but for internal ones."""
    return _registry().methods


def problems() -> tuple[str, ...]:
    """One line for every plug-in that could not be loaded."""
    return tuple(broken.problem for broken in _registry().broken)


def find(name: str, *, where: str = "--method") -> Method:
    """A method by name (`-` and `_` alike, any case), internal or not; `where` is what named it."""
    key, every = _plain(name), {**_registry().internal, **methods()}
    if key not in every:
        raise _unknown(name, key, where)
    return every[key]


def _unknown(name: str, key: str, where: str) -> UsageError:
    """Why there is no such method: a failing plug-in, or what `unknown_method` knows."""
    from taskmerge.methods.adaptive_registry import adaptive_methods  # it knows these methods too

    every = methods()
    for broken in _registry().broken:
        if key == _plain(broken.name):
            hint = f"it comes with the package {broken.package}: update or uninstall that"
            return UsageError(f"the method `{name}` cannot be loaded: {broken.reason}", where=where, hint=hint)
    chained = [method.name for method in every.values() if method.gives == "task_vectors"]
    aliases = {alias: method.name for method in every.values() for alias in method.aliases}
    return unknown_method(name, Known(every, adaptive_methods(), chained, aliases), where)


def _plain(name: str) -> str:
    """A method's name in its one spelling."""
    return name.strip().lower().replace("-", "_")


def setting(name: str) -> Setting | None:
    """What some method declares as its option `name`, if any does; `then_` or `lines_` before it says whose it is."""
    settings = {own: setting for method in methods().values() for own, setting in method.settings.items()}
    plain = next((name.removeprefix(prefix) for prefix in PREFIXES if name.startswith(prefix)), name)
    return settings.get(name) or settings.get(plain)
