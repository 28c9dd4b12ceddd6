"""One thread a library: test processes share a few cores, and small matrices gain nothing from more."""

from collections.abc import Iterator

import pytest

from taskmerge.numerics.lapack import single_threaded


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    with single_threaded():
        yield
