"""`taskmerge methods`."""

from typing import Annotated

import typer

from taskmerge.cli.app import app


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(help="A method, for its formula, options and notes.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """List the merging methods, or explain one."""
    from taskmerge.cli import catalogue

    catalogue.show(name, json, markdown)
