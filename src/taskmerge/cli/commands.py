"""The program with all its commands: they register with it when they are imported."""

from taskmerge.cli import diff, eval, inspect, merge, methods, schema, suites, vectors, verify
from taskmerge.cli.program import app

__all__ = ["app", "diff", "eval", "inspect", "merge", "methods", "schema", "suites", "vectors", "verify"]
