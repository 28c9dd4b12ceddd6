"""A spectrum report as one page for a terminal."""

from collections.abc import Mapping
from typing import Any

from taskmerge.cli import show


def show_page(document: Mapping[str, Any]) -> None:
    """Prints the page."""
    tasks = document["tasks"]
    show.page([f"{len(tasks)} experts, {len(document['matrices'])} matrices"])
