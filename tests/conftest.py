"""What holds for every test: one thread a library, and signals as a terminal leaves them."""

import signal
from collections.abc import Iterator

import pytest

from taskmerge.numerics.lapack import single_threaded


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Test processes share a few cores, and small matrices gain nothing from more."""
    with single_threaded():
        yield


@pytest.fixture(autouse=True, scope="session")
def signals() -> None:
    """What `nohup` and a shell's background jobs ignore stops a run in tests all the same."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
