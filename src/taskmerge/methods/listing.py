"""What methods are called, and their options, read from their source: to import them takes torch, a second or two."""

import ast
import pkgutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import taskmerge.methods as package
from taskmerge.errors import UsageError, unknown_name

GROUP = "taskmerge.methods"
"""Entry points under which other packages bring methods."""
DECORATORS = ("method", "adaptive")
TELLING = (b"\n@method(", b"\n@adaptive(", b" = Literal[")
"""What stands in files that have to be looked at."""
AUTO = "auto"
"""What `adapt` takes in place of a method, to try several."""


@dataclass(frozen=True, slots=True)
class ListedOption:
    """An option of a method: its name, what it means, and its values where these are a few words."""

    name: str
    help: str
    choices: tuple[str, ...]

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")


@dataclass(frozen=True, slots=True)
class Listed:
    """A method as its declaration says in so many words."""

    name: str
    summary: str
    adaptive: bool
    internal: bool
    gives: str
    space: str
    aliases: tuple[str, ...]
    options: tuple[ListedOption, ...]


@dataclass(frozen=True)
class Known:
    """The names by which methods can be asked for: of merging ones, of adaptive ones, of those that only begin a chain;
    and what other tools call them."""

    merging: Collection[str]
    adaptive: Collection[str] = ()
    chained: Collection[str] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)


def plain_name(name: str) -> str:
    """A method's name in its one spelling: `-` and `_` alike, `++` for `_plus`, any case."""
    return name.strip().lower().replace("++", "_plus").replace("-", "_")


def unknown_method(name: str, known: Known, where: str) -> UsageError:
    """Why no merging method is called so: it adapts, is a chain, has that name in other tools, or it is a slip."""
    key = name.strip().lower().replace("-", "_")
    if (adaptive := plain_name(name)) in known.adaptive:
        hint = f"`taskmerge adapt --method {adaptive}` does, on a suite's unlabelled items"
        return UsageError(f"`{name}` learns from data: no merge of checkpoints alone runs it", where=where, hint=hint)
    for first in known.chained:
        then = key.removeprefix(f"{first}_")
        if then in known.merging:  # `dare_ties` is one method elsewhere
            hint = f"write `--method {first} --then {then}`; its own options follow as `--then-NAME`"
            return UsageError(f"unknown method `{name}`", where=where, hint=hint)
    if (own := known.aliases.get(key)) is not None:
        hint = f"taskmerge calls it `{own}`: see `taskmerge methods {own}`"
        return UsageError(f"unknown method `{name}`", where=where, hint=hint)
    return unknown_name("method", name, known.merging, where=where)


def unknown_adaptive(name: str, known: Known, where: str) -> UsageError:
    """Why no adaptive method is called so: it merges without data, or it is a slip."""
    if (key := plain_name(name)) in known.merging:
        hint = f"`taskmerge merge --method {key}` runs it; `--init {key}` lets an adaptive method start there"
        return UsageError(f"`{name}` adapts nothing: it needs no data", where=where, hint=hint)
    return unknown_name("adaptive method", name, known.adaptive, where=where)


# --- out of the source -----------------------------------------------------------------------------------------


def check_merging(name: str, where: str = "--method") -> None:
    """Refuses, without torch, what no merging method is called; silent where other packages bring methods."""
    key = name.strip().lower().replace("-", "_")
    if (own := _in_own_file(key)) is not None and not own.adaptive:
        return
    merging = {own.name for own in listed().values() if not own.adaptive}
    if merging and key not in merging and not plugged():
        raise unknown_method(name, _known(), where)


def check_adaptive(name: str, where: str = "--method") -> None:
    """Refuses, without torch, what no adaptive method is called; silent where other packages bring methods."""
    if (own := _in_own_file(plain_name(name))) is not None and own.adaptive:
        return
    adaptive = {alias for own in listed().values() if own.adaptive for alias in (own.name, *own.aliases, AUTO)}
    if adaptive and plain_name(name) not in adaptive and not plugged():
        raise unknown_adaptive(name, _known(), where)


def _in_own_file(name: str) -> Listed | None:
    """The method of a name in the file of that name, where it is: who names a method that exists waits for no other."""
    files = [Path(folder) / f"{name}.py" for folder in package.__path__ if name.isidentifier()]
    found = [own for file in files if file.is_file() for own in _methods(ast.parse(file.read_bytes()), {})]
    return next((own for own in found if own.name == name), None)


def _known() -> Known:
    """What is listed."""
    public = [own for own in listed().values() if not own.adaptive and not own.internal]
    return Known(
        [own.name for own in public], [own.name for own in listed().values() if own.adaptive],
        [own.name for own in public if own.gives == "task_vectors"],
        {alias: own.name for own in public for alias in own.aliases},
    )  # fmt: skip


def plugged() -> list[str]:
    """What other packages call the methods that they bring."""
    from importlib.metadata import entry_points  # a tenth of the time that --help may take

    return sorted(point.name for point in entry_points(group=GROUP))


@cache
def listed() -> Mapping[str, Listed]:
    """The methods of this package by name, sorted; none where its source is not at hand."""
    trees = []
    for info in pkgutil.iter_modules(package.__path__):
        file = Path(getattr(info.module_finder, "path", "")) / f"{info.name}.py"
        if not file.is_file():
            return {}
        source = file.read_bytes()
        if any(sign in source for sign in TELLING):
            trees.append(ast.parse(source))
    shared = {name: value for tree in trees for name, value in _assigned(tree)}
    found = [method for tree in trees for method in _methods(tree, {**shared, **dict(_assigned(tree))})]
    return {method.name: method for method in sorted(found, key=lambda method: method.name)}


def _assigned(tree: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    """What a module calls annotations that stand for others: `Scope = Literal[...]`."""
    for node in tree.body:
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.value, ast.Subscript)
            and isinstance(node.targets[0], ast.Name)
        ):
            yield node.targets[0].id, node.value


def _methods(tree: ast.Module, named: Mapping[str, ast.expr]) -> Iterator[Listed]:
    """The declared functions of a module."""
    for node in tree.body:
        for call in node.decorator_list if isinstance(node, ast.FunctionDef) else ():
            if isinstance(node, ast.FunctionDef) and isinstance(call, ast.Call) and _called(call) in DECORATORS:
                yield _method(node, call, named)


def _method(node: ast.FunctionDef, call: ast.Call, named: Mapping[str, ast.expr]) -> Listed:
    said = {own.arg: own.value for own in call.keywords}
    parameters = [*node.args.args, *node.args.kwonlyargs]
    options = [option for own in parameters if (option := _option(own, named)) is not None]
    return Listed(
        node.name, (ast.get_docstring(node) or "").partition("\n")[0], _called(call) == "adaptive",
        _constant(said.get("internal")) is True, str(_constant(said.get("gives")) or "merged"),
        str(_constant(said.get("space")) or ""), _texts(said.get("aliases")), tuple(options),
    )  # fmt: skip


def _option(parameter: ast.arg, named: Mapping[str, ast.expr]) -> ListedOption | None:
    """A parameter with an `Option` in its annotation."""
    annotation = _meant(parameter.annotation, named)
    parts = (
        annotation.slice.elts
        if isinstance(annotation, ast.Subscript) and isinstance(annotation.slice, ast.Tuple)
        else []
    )
    for part in parts[1:]:
        if isinstance(part, ast.Call) and _called(part) == "Option":
            return ListedOption(
                parameter.arg, str(_constant(part.args[0] if part.args else None) or ""), _choices(parts[0], named)
            )
    return None


def _choices(annotation: ast.expr, named: Mapping[str, ast.expr]) -> tuple[str, ...]:
    """The words of a Literal."""
    meant = _meant(annotation, named)
    if isinstance(meant, ast.Subscript) and isinstance(meant.value, ast.Name) and meant.value.id == "Literal":
        return _texts(meant.slice)
    return ()


def _meant(annotation: ast.expr | None, named: Mapping[str, ast.expr]) -> ast.expr | None:
    return named.get(annotation.id, annotation) if isinstance(annotation, ast.Name) else annotation


def _called(call: ast.Call) -> str:
    return call.func.id if isinstance(call.func, ast.Name) else ""


def _constant(node: ast.expr | None) -> object:
    return node.value if isinstance(node, ast.Constant) else None


def _texts(node: ast.expr | None) -> tuple[str, ...]:
    """The texts of a tuple, or the one that stands alone."""
    nodes = node.elts if isinstance(node, ast.Tuple) else [node]
    return tuple(text for one in nodes if isinstance(text := _constant(one), str))
