"""Runs here are small and many: pages of libraries stay in memory, which saves a third of the time."""

from collections.abc import Iterator

import pytest

from taskmerge.numerics import memory


@pytest.fixture(autouse=True)
def pages_stay() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "return_library_pages", lambda: None)
        yield
