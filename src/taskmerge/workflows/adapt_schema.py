"""The published JSON schema of an adaptation's report.json. Imports no torch."""

import json
from functools import cache
from importlib.resources import files
from typing import Any

KIND, SCHEMA_VERSION = "adapt", 1


@cache
def schema() -> dict[str, Any]:
    """The schema (draft 2020-12)."""
    text = (files("taskmerge.workflows") / "adapt.schema.json").read_text(encoding="utf-8")
    document: dict[str, Any] = json.loads(text)
    return document
