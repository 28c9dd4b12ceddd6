"""`taskmerge methods`."""

from typing import Annotated

import typer

from taskmerge.cli import options
from taskmerge.cli.options import option
from taskmerge.cli.program import app


@app.command()
def methods(
    name: Annotated[
        str | None,
        typer.Argument(
            help="A method, for its formula, options and notes.", autocompletion=options.completion("every_method")
        ),
    ] = None,
    json: options.Json = False,
    markdown: Annotated[bool, option("Print Markdown tables.", "--markdown")] = False,
    debug: options.Debug = False,
) -> None:
    """List the methods of merge and of adapt, or explain one."""
    from taskmerge.cli import catalogue

    catalogue.show(name, json=json, markdown=markdown)
