"""Tells inputs from method options among the words of a command: methods declare their options, no command does."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from taskmerge.errors import UsageError, unknown_name
from taskmerge.methods.contract import Method


def split(
    words: Sequence[str], methods: Mapping[str, Method], flags: Sequence[str]
) -> tuple[list[str], dict[str, str]]:
    """(inputs, options): `--its-name VALUE`, `--its-name=VALUE`, and `--switch` or `--no-switch` for switches.

    An option that no method declares is a `UsageError` with the nearest of all known names.
    """
    declared = {setting.flag: setting for one in methods.values() for setting in one.settings.values()}
    inputs: list[str] = []
    options: dict[str, str] = {}
    waiting = list(reversed(words))
    while waiting:
        word = waiting.pop()
        if not word.startswith("--") or word == "--":
            if word.startswith("-") and word != "--" and not Path(word).exists():
                raise unknown_name("option", word, [*declared, *flags])
            inputs.append(word)
            continue
        flag, has_value, value = word.partition("=")
        flag = flag.replace("_", "-")
        positive = "--" + flag.removeprefix("--no-")
        if positive in declared and declared[positive].type is bool and not has_value:
            value = "true" if flag in declared else "false"
            flag = positive
        elif flag not in declared:
            raise unknown_name("option", flag, [*declared, *flags])
        elif not has_value:
            if not waiting:
                raise UsageError(f"`{flag}` needs a value", hint=f"allowed: {declared[flag].range}")
            value = waiting.pop()
        name = declared[flag].name
        if name in options:
            raise UsageError(f"`{flag}` stands twice", hint="write a grid with commas: 0.1,0.2")
        options[name] = value
    return [one for one in inputs if one != "--"], options
