"""What torchrun has started: which process this is, what all can read and write, and which of them failed first."""

import json
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING

from taskmerge.errors import TaskmergeError, UsageError

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]  # public, but torch doesn't mark it so

WHERE = "torchrun"
PATIENCE = 1800.0
"""Seconds after which a process that does not answer counts as gone. One that ends is missed at once."""
FAILED, TOLD = "failed", "told"
INTERRUPTED = 130
LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, slots=True)
class Seat:
    """Which of the processes this is: number `rank` of `size`, and `local_rank` of `local_size` on this machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1


def seat() -> Seat:
    """This process's place as torchrun's environment tells it; alone where nothing is told.

    Raises UsageError for an environment that makes no sense.
    """
    if any(name not in os.environ for name in LAUNCHED):
        return Seat()
    try:
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        local_rank, local_size = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    except ValueError as error:
        raise UsageError(f"the environment names no process: {error}", where=WHERE, hint=_launch()) from None
    if not (0 <= rank < size and 0 <= local_rank < local_size):
        said = f"process {rank} of {size}, {local_rank} of {local_size} here"
        raise UsageError(f"the environment names no process: {said}", where=WHERE, hint=_launch())
    return Seat(rank, size, local_rank, local_size)


def _launch() -> str:
    return "start it with `torchrun --nproc-per-node N -m taskmerge ...`"


# --- failures --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Failure:
    """The first failure among the processes: whose it is, what it says, its exit code."""

    rank: int
    what: str
    code: int


class Ended(TaskmergeError):
    """Another process has gone. Where it has said why (`explained`), this one has nothing to add, and ends with its
    status."""

    def __init__(self, what: str, *, hint: str | None = None, code: int = 1, explained: bool = False) -> None:
        super().__init__(what, where=WHERE, hint=hint)
        self.exit_code = code
        self.explained = explained


def ended(failure: Failure) -> BaseException:
    """What the failure of one process is to the others."""
    if failure.code == INTERRUPTED:
        return KeyboardInterrupt()
    return Ended(f"process {failure.rank} has failed: {failure.what}", code=failure.code, explained=True)


def first_to_end(what: str, code: int) -> bool:
    """Whether this process, which ends by an error, is the first of all to do so: the one that tells people.

    Where the processes cannot reach each other it is: better told twice than never.
    """
    here = seat()
    if here.size == 1 or not (_hosted() or shared_store.cache_info().currsize):
        return True
    try:
        return claimed(shared_store(), Failure(here.rank, what, code)).rank == here.rank
    except RuntimeError:
        return True


def told() -> None:
    """Says that people have been told: the others may end now."""
    if shared_store.cache_info().currsize:
        with suppress(RuntimeError):
            shared_store().set(TOLD, "yes")


def await_told() -> None:
    """Waits until the failing process has told people, a few seconds at most: torchrun stops it once another ends."""
    with suppress(RuntimeError):
        for _ in range(100):
            if shared_store().check([TOLD]):
                return
            time.sleep(0.05)


def claimed(store: "Store", failure: Failure) -> Failure:
    """Says that this process fails, unless another one said so before; the failure that counts."""
    said = store.compare_set(FAILED, "", json.dumps([failure.rank, failure.what, failure.code]))
    return failure_of(said)


def failure_of(said: bytes) -> Failure:
    """A failure as it was said."""
    rank, what, code = json.loads(said)
    return Failure(int(rank), str(what), int(code))


# --- how they reach each other ---------------------------------------------------------------------------------


def _hosted() -> bool:
    """Whether torchrun itself keeps what the processes tell each other: it is there before and after them."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


@cache
def shared_store() -> "Store":
    """What the processes tell each other, by name. Every attempt of torchrun's has its own."""
    from torch.distributed.rendezvous import rendezvous

    found, _, _ = next(iter(rendezvous("env://", timeout=timedelta(seconds=PATIENCE))))
    return below(found, f"taskmerge {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}")


def below(store: "Store", name: str) -> "Store":
    """A store's names below one of them."""
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]  # as Store

    return PrefixStore(name, store)
