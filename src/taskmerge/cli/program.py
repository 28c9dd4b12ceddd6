"""The program that all commands register with. Imports no torch."""

from typing import Any

import typer
from typer.core import TyperGroup

from taskmerge.version import __version__


class Commands(TyperGroup):
    """The program's commands. Typer loads pydantic for any option of the program itself that is not a plain bool:
    a third of the time that --help may take. So there are no such options, and --help is off, not None."""

    def get_help_option(self, ctx: Any) -> Any:
        option = super().get_help_option(ctx)
        if option is not None:
            option.default = False
        return option

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx))  # in whatever order they were imported

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        command = super().get_command(ctx, cmd_name)
        if command is not None and command.help:  # Typer keeps the line breaks of all paragraphs but the first
            command.help = "\n\n".join(" ".join(part.split()) for part in command.help.split("\n\n"))
        return command


app = typer.Typer(
    name="taskmerge",
    help="Turns several fine-tunings of one base model into one model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,  # its options would be such; cli/app.py answers shells
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"taskmerge {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version and stop."
    ),
) -> None:
    """Turns several fine-tunings of one base model into one model."""
