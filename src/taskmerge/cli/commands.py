"""All commands, imported so that they register with the program."""

from taskmerge.cli import diff, inspect, merge, methods, vectors, verify

__all__ = ["diff", "inspect", "merge", "methods", "vectors", "verify"]
