"""Tells inputs from method options among the words of a command: methods declare their options, no command does."""

import os
from collections.abc import Callable, Iterable, Sequence

from taskmerge.errors import UsageError, unknown_name
from taskmerge.methods.adaptive_registry import adaptive_methods
from taskmerge.methods.options import Declares, Setting
from taskmerge.methods.registry import methods, setting

Find = Callable[[str], Setting | None]
"""What a method declares as its option of a name, if any does."""


def split_merging(words: Sequence[str], flags: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """(inputs, options) of a command that merges by a training-free method; `flags` are the command's own."""
    return _split(words, [*flags, *_flags(methods().values())], setting)


def split_adapting(words: Sequence[str], flags: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """(inputs, options) of a command that adapts; options may be of the merge that it starts from."""
    every: list[Declares] = [*methods().values(), *adaptive_methods().values()]
    settings = {name: option for method in every for name, option in method.settings.items()}
    return _split(words, [*flags, *_flags(every)], settings.get)


def _flags(declared: Iterable[Declares]) -> list[str]:
    """The options of methods as they are written."""
    return [option.flag for method in declared for option in method.settings.values()]


def _split(words: Sequence[str], flags: Sequence[str], find: Find) -> tuple[list[str], dict[str, str]]:
    """(inputs, options): `--its-name VALUE`, `--its-name=VALUE`, and `--switch` or `--no-switch` for switches.

    An option that no method declares is a `UsageError` with the nearest of all `flags`.
    """
    allowed = sorted(set(flags))
    inputs: list[str] = []
    options: dict[str, str] = {}
    waiting = list(reversed(words))
    while waiting:
        word = waiting.pop()
        if not word.startswith("--") or word == "--":
            if word.startswith("-") and word != "--" and not os.path.exists(word):
                raise unknown_name("option", word, allowed)
            inputs.append(word)
            continue
        flag, has_value, value = word.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        declared, switch = find(name), find(name.removeprefix("no_"))
        if switch is not None and switch.type is bool and not has_value:
            value = "true" if declared else "false"
            name = name if declared else name.removeprefix("no_")
        elif declared is None:
            raise unknown_name("option", flag.replace("_", "-"), allowed)
        elif not has_value:
            if not waiting:
                raise UsageError(f"`{flag}` needs a value", hint=f"allowed: {declared.range}")
            value = waiting.pop()
        if name in options:
            raise UsageError(f"`{flag}` stands twice", hint="write a grid with commas: 0.1,0.2")
        options[name] = value
    return [word for word in inputs if word != "--"], options
