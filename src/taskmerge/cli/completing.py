"""What a shell is told of methods, their options and suites while a line is typed. Imports no torch."""

from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from taskmerge.methods.listing import AUTO, Listed, ListedOption, listed, plain_name, plugged

DEFAULTS = {"merge": "cart", "adapt": "blocks"}
"""The methods that run where none is named; tests compare them with the registries'."""
FINISH, DEPTH = "task_arithmetic", "lines"
"""What merges the vectors that a chain begins with, and what --lines adds."""
Told = tuple[str, str]
"""A word, and what it means."""


def merging_methods() -> list[Told]:
    """What `merge --method` takes."""
    own = [(method.name, method.summary) for method in listed().values() if not method.adaptive and not method.internal]
    return [*own, *((name, "of another package") for name in plugged())]


def chained_methods() -> list[Told]:
    """What `merge --then` takes: methods that merge task vectors."""
    fits = [own for own in listed().values() if own.gives == "merged" and own.space == "delta" and not own.internal]
    return [(own.name, own.summary) for own in fits]


def adaptive_methods() -> list[Told]:
    """What `adapt --with` takes."""
    return [(own.name, own.summary) for own in listed().values() if own.adaptive]


def adapting_methods() -> list[Told]:
    """What `adapt --method` takes."""
    return [*adaptive_methods(), (AUTO, "tries several, and keeps the one that agrees best with the experts")]


def every_method() -> list[Told]:
    """What `methods` explains."""
    return [*merging_methods(), *adaptive_methods()]


def suites() -> list[Told]:
    """The suites in the package; files are completed by the shell."""
    from taskmerge.specs.suite_file import packaged

    return [(name, "in the package") for name in packaged()]


def values(ctx: Any) -> list[Told]:
    """Where an option of a method was typed last, the words that it takes; inputs are completed by the shell."""
    words = [word for word in ctx.params.get("inputs") or () if word != "="]
    flag = words[-1] if words else ""
    option = next((own for own_flag, own in _flags(ctx.params) if own_flag == flag), None)
    return [(choice, option.help) for choice in option.choices] if option else []


def options_of(params: Mapping[str, Any]) -> list[Told]:
    """The options of the methods that a line names, but for those that it has already."""
    said = {word.partition("=")[0] for word in params.get("inputs") or ()}
    return [(flag, option.help) for flag, option in _flags(params) if flag not in said]


def as_items(told: Iterable[Told], incomplete: str) -> list[Any]:
    """What Typer prints for the shell."""
    click = "typer._click" if find_spec("typer._click") else "click"  # newer versions bring their own
    item = import_module(f"{click}.shell_completion").CompletionItem
    return [item(word, help=meaning) for word, meaning in told if word.startswith(incomplete)]


def _flags(params: Mapping[str, Any]) -> Iterator[tuple[str, ListedOption]]:
    """(flag, option) of the methods that act; a name that several have is the first's, the others' carry a prefix."""
    taken: set[str] = set()
    for prefix, method in _acting(params):
        for option in method.options:
            flag = option.flag if option.flag not in taken else f"--{prefix}{option.flag.removeprefix('--')}"
            taken.add(flag)
            yield flag, option


def _acting(params: Mapping[str, Any]) -> Iterator[tuple[str, Listed]]:
    """The methods that a line names, and the prefix of options that others have too."""
    command = "adapt" if "with_" in params else "merge"
    named = [("", plain_name(params.get("method") or DEFAULTS[command]))]
    every = listed()
    if command == "adapt":
        named += [("", plain_name(str(params.get("init") or "")))]
    elif named[0][1] in every and every[named[0][1]].gives == "task_vectors":
        named += [("then-", plain_name(params.get("then") or FINISH))]
    if params.get("lines"):
        named += [("lines-", DEPTH)]
    return ((prefix, every[name]) for prefix, name in named if name in every)
