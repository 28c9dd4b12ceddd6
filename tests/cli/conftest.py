"""Every test of the command line works in an empty folder of its own, with experts in it."""

from pathlib import Path

import pytest
from merge_cases import write_experts

from taskmerge.cli import meter


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory; lines about progress, which a slow machine alone would print, are left out."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(meter, "EVERY", 3600.0)
    return tmp_path


@pytest.fixture
def experts(here: Path) -> dict[str, Path]:
    """cars, dogs and maps with their base in the working directory."""
    return write_experts(here)
