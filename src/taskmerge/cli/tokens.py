"""Tells inputs from method options among the words of a command: methods declare their options, no command does."""

import os
from collections.abc import Sequence

from taskmerge.errors import UsageError, unknown_name
from taskmerge.methods.registry import methods, setting


def split(words: Sequence[str], flags: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """(inputs, options): `--its-name VALUE`, `--its-name=VALUE`, and `--switch` or `--no-switch` for switches.

    An option that no method declares is a `UsageError` with the nearest of all known names.
    """
    allowed = sorted({*flags, *(option.flag for method in methods().values() for option in method.settings.values())})
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
        declared, switch = setting(name), setting(name.removeprefix("no_"))
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
