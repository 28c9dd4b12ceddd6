"""`taskmerge schema`."""

from typing import Annotated

import typer

from taskmerge.cli import options, show
from taskmerge.cli.program import app


@app.command()
def schema(
    name: Annotated[
        str | None, typer.Argument(help="A kind of report: adapt, doctor, eval, merge, recover, spectrum or sweeps.")
    ] = None,
    debug: options.Debug = False,
) -> None:
    """Print the JSON schema of a report, or the names of those there are."""
    from taskmerge.diagnosis import report
    from taskmerge.errors import unknown_name
    from taskmerge.evaluation import results
    from taskmerge.merging import receipt_schema
    from taskmerge.recovery import report as recovered
    from taskmerge.spectra import report as spectrum
    from taskmerge.workflows import adapt_schema
    from taskmerge.workflows.sweeps import schema as sweeps

    schemas = {
        "adapt": adapt_schema.schema, "doctor": report.schema, "eval": results.schema,
        "merge": receipt_schema.schema, "recover": recovered.schema, "spectrum": spectrum.schema,
        "sweeps": sweeps.schema,
    }  # fmt: skip
    if name is None:
        print("\n".join(schemas))
    elif name in schemas:
        show.document(schemas[name]())
    else:
        raise unknown_name("schema", name, schemas)
