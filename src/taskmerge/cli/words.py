"""A command's words: its options are the fields of a frozen dataclass, each read once, and the command gets the value.

Imports no torch: `--help` needs the declarations alone.
"""

from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import MISSING, dataclass, fields
from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

from typer.models import OptionInfo

from taskmerge.cli.program import app
from taskmerge.specs.values import parse_path

W = TypeVar("W")


@dataclass(frozen=True)
class Reads:
    """Stands behind the option in a field's annotation where the field holds something else than what Typer parses:
    that is a `given`, of which `parse(given, flag)` makes the field's value."""

    parse: Callable[[Any, str], Any]
    given: Any = str


PLACE = Reads(parse_path)
"""Reads options that are paths: Typer's own would take an empty one for `.`."""


@dataclass(frozen=True)
class Declared:
    """A field of a command's words: the type that Typer parses, what it says of it, and how the value is read."""

    name: str
    type: Any
    info: Any
    default: Any
    reads: Reads | None

    @property
    def flags(self) -> list[str]:
        """How the option is written, the long name first; nothing for an argument."""
        if not isinstance(self.info, OptionInfo):
            return []
        names = (self.info.default, *(self.info.param_decls or ()))  # Typer keeps the first in a default's place
        return [name for name in names if isinstance(name, str)] or [f"--{self.name.replace('_', '-')}"]

    def parameter(self, panel: str | None) -> Parameter:
        """The same for Typer, as a parameter of a function."""
        info = copy(self.info)
        info.rich_help_panel = panel
        if self.reads is PLACE:
            info.metavar = "<path>"
        default = Parameter.empty if self.default is MISSING else self.default
        return Parameter(self.name, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[self.type, info])

    def value(self, given: Any) -> Any:
        """The field's value; what was not said is the default."""
        if given is None or given == []:
            return self.default
        return self.reads.parse(given, self.flags[0]) if self.reads else given


def declared(words: type) -> list[Declared]:
    """The fields of a command's words, in their order."""
    hints, declarations = get_type_hints(words, include_extras=True), []
    for field in fields(words):
        type_, info, *more = get_args(hints[field.name])
        reads = more[0] if more else PLACE if type_ == Path | None else None
        type_ = reads.given | None if reads else type_
        declarations.append(Declared(field.name, type_, info, field.default, reads))
    return declarations


def flags_of(words: type) -> list[str]:
    """How the options of a command are written."""
    return [flag for declaration in declared(words) for flag in declaration.flags]


def command(
    words: type[W], name: str, *, panels: Mapping[str, str] | None = None, **settings: Any
) -> Callable[[Callable[[W], None]], Callable[[W], None]]:
    """Registers a function of a command's words under `name`; its docstring is the help page's text.

    `panels` are the parts of that page: the field with which each begins, and its title.
    """

    def register(carry_out: Callable[[W], None]) -> Callable[[W], None]:
        declarations = declared(words)

        def run(**given: Any) -> None:
            carry_out(words(**{field.name: field.value(given[field.name]) for field in declarations}))

        run.__doc__ = carry_out.__doc__
        signature = Signature(_parameters(declarations, panels or {}))
        run.__signature__ = signature  # type: ignore[attr-defined]  # what `inspect.signature` looks for
        app.command(name, **settings)(run)
        return carry_out

    return register


def _parameters(declarations: list[Declared], panels: Mapping[str, str]) -> list[Parameter]:
    panel, parameters = None, []
    for declaration in declarations:
        panel = panels.get(declaration.name, panel)
        parameters.append(declaration.parameter(panel))
    return parameters


def given_options(words: Any) -> dict[str, Any]:
    """What was said, by field: whatever is not the default. Lists become tuples."""
    return {
        field.name: tuple(value) if isinstance(value, list) else value
        for field in fields(words)
        if (value := getattr(words, field.name)) != field.default
    }
