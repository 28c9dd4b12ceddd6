"""All commands, imported so that they register with the program."""

from taskmerge.cli import diff, eval, inspect, merge, methods, schema, suites, vectors, verify

__all__ = ["diff", "eval", "inspect", "merge", "methods", "schema", "suites", "vectors", "verify"]
