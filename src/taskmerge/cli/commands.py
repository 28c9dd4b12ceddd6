"""The program's commands: each registers with it when its module is imported."""

from collections.abc import Sequence
from importlib import import_module

NAMES = (
    "adapt", "diff", "doctor", "eval", "inspect", "merge", "methods", "recover", "report", "schema", "spectrum",
    "suites", "vectors", "verify",
)  # fmt: skip


def load(arguments: Sequence[str] = ()) -> None:
    """Imports the command that a line names, or all: one alone is a tenth of the time that its --help takes."""
    named = next((word for word in arguments if not word.startswith("-")), None)
    for name in (named,) if named in NAMES else NAMES:
        import_module(f"taskmerge.cli.{name}")
