"""Commands whose methods have options of their own, and `--keep-from NAME GLOB`, an option of two words that may be
given again: what Typer has no way to declare."""

from collections.abc import Sequence
from typing import Any

from typer.core import TyperCommand

PAIRED = "--keep-from"


class PairCommand(TyperCommand):
    """A command whose paired options reach the parser as one word, NAME=GLOB."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, joined(args))


class MethodCommand(PairCommand):
    """Such a command that completes options of methods too."""

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        from taskmerge.cli.completing import as_items, options_of

        own = super().shell_complete(ctx, incomplete)
        known = {item.value for item in own}
        more = as_items(options_of(ctx.params), incomplete) if incomplete.startswith("-") else []
        return [*own, *(item for item in more if item.value not in known)]


def joined(arguments: Sequence[str]) -> list[str]:
    """A command line with the two words of a pair made one; what is one already, or lacks its glob, stays."""
    given, words = list(arguments), list[str]()
    while given and given[0] != "--":
        words.append(given.pop(0))
        if words[-1] == PAIRED and len(given) > 1 and "=" not in given[0] and not given[1].startswith("-"):
            words.append(f"{given.pop(0)}={given.pop(0)}")
    return words + given
