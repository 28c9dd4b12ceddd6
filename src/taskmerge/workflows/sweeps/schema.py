"""The published JSON schema of what sweeps find: the part `sweeps` of a report. Imports no torch."""

import json
from functools import cache
from importlib.resources import files
from typing import Any


@cache
def schema() -> dict[str, Any]:
    """The schema (draft 2020-12)."""
    text = (files("taskmerge.workflows.sweeps") / "sweeps.schema.json").read_text(encoding="utf-8")
    document: dict[str, Any] = json.loads(text)
    return document
