"""Paths as documents say them."""

import os
from pathlib import Path


def beside(folder: Path, said: str) -> Path:
    """A path relative to the document's folder; `~` is the user's home, as in a shell."""
    return folder / os.path.expanduser(said)
