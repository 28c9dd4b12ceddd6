"""Several processes that work on one thing, as torchrun starts them; one alone is a group too. Imports torch late.

All of them run the same lines. What one alone may do (write a file, ask the disk) goes through `by_first`; what each
does a part of is put together by `sum_in_order` and `broadcast`, whose results have the same bits everywhere.
"""

import pickle
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from hashlib import sha256
from itertools import count, pairwise
from typing import TYPE_CHECKING, TypeVar

from taskmerge.errors import BadNumber, NotEnough, TaskmergeError, UsageError
from taskmerge.launched import (
    FAILED,
    INTERRUPTED,
    PATIENCE,
    WHERE,
    Ended,
    Failure,
    Seat,
    below,
    claimed,
    ended,
    failure_of,
    seat,
    shared_store,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.distributed import Store  # type: ignore[attr-defined]  # public, but torch doesn't mark it so

T = TypeVar("T")
SMALL = 2**20
"""Up to so many numbers are sent as they are and added in the order of the processes; more are summed on the way."""


@dataclass(frozen=True)
class Link:
    """How the processes of one group reach each other: `store` keeps what they say, `numbers` counts what is awaited;
    after `patience` seconds without an answer a process counts as gone. `gpus` are connected by NCCL."""

    store: "Store"
    patience: float
    gpus: bool = False
    numbers: Iterator[int] = field(default_factory=count)

    @contextmanager
    def reached(self) -> Iterator[None]:
        """Inside, the others are waited for. Raises Ended (KeyboardInterrupt after a Ctrl-C) where one has gone."""
        import torch

        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # of a backend: each has its own words
            failure = self._failed_soon()
            if failure is not None:
                raise ended(failure) from error
            what = f"another process has gone, or has not answered for {self.patience:.0f} seconds"
            hint = "torchrun's own message says which; it may have been killed for want of memory"
            raise Ended(what, hint=hint) from error

    def awaited(self, name: str) -> bytes:
        """What another process says under a name, however long it takes, unless one fails."""
        pause = 0.001
        while not self.store.check([name]):
            if failure := self.failed():
                raise ended(failure)
            time.sleep(pause)
            pause = min(2 * pause, 0.1)
        said: bytes = self.store.get(name)
        return said

    def failed(self) -> Failure | None:
        """The first failure, if there is one."""
        return failure_of(self.store.get(FAILED)) if self.store.check([FAILED]) else None

    @contextmanager
    def failing_together(self, rank: int) -> Iterator[None]:
        """Tells the others of a failure inside before the connection goes, from which they see that it has."""
        try:
            yield
        except BaseException as error:
            what = error.message if isinstance(error, TaskmergeError) else f"{type(error).__name__}: {error}"
            usual = INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1
            with suppress(RuntimeError):
                claimed(self.store, Failure(rank, what, getattr(error, "exit_code", usual)))
            if not self.gpus:  # NCCL would wait for the others: its connections go with the process
                _disconnect()
            raise

    def _failed_soon(self) -> Failure | None:
        """The failure that explains a lost connection: said before the connection went, seen a moment later."""
        with suppress(RuntimeError):
            for _ in range(20):
                if failure := self.failed():
                    return failure
                time.sleep(0.05)
        return None


# --- the group -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Group:
    """Processes that work on one thing, of which this is number `rank` of `size`; `local_rank` of `local_size` here.

    Alone (`link` None) every exchange is the identity. All processes must make the same exchanges in the same order.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    link: Link | None = None

    @property
    def is_first(self) -> bool:
        """Whether this one writes files and speaks."""
        return self.rank == 0

    def placed(self, device: "torch.device") -> "torch.device":
        """This process's own device: of several GPUs each takes one."""
        import torch

        return torch.device("cuda", self.local_rank) if self.link is not None and device.type == "cuda" else device

    def bounds(self, items: int) -> list[tuple[int, int]]:
        """[start, stop) of every process's share of so many items: runs in their order, of equal length to one."""
        cuts = [items * rank // self.size for rank in range(self.size + 1)]
        return list(pairwise(cuts))

    def barrier(self) -> None:
        """Waits until all processes are here."""
        import torch

        self.sum_in_order([torch.zeros(1)])

    def all(self, said: bool) -> bool:
        """Whether every process says so."""
        import torch

        (total,) = self.sum_in_order([torch.tensor([int(said)])])
        return int(total) == self.size

    def by_first(self, work: Callable[[], T]) -> T:
        """What the first process makes of `work`, on all of them: a plain value. The others wait, however long.

        Raises Ended on the others where the first one fails; there must be no exchange inside.
        """
        if self.link is None:
            return work()
        import torch

        name = f"first {next(self.link.numbers)}"
        if self.is_first:
            made = work()
            packed = torch.frombuffer(bytearray(pickle.dumps(made)), dtype=torch.uint8)
            with self.link.reached():
                self.link.store.set(name, str(len(packed)))
        else:
            with self.link.reached():
                packed = torch.empty(int(self.link.awaited(name)), dtype=torch.uint8)
        self.broadcast(packed, 0)
        if not self.is_first:
            made = pickle.loads(packed.numpy().tobytes())
        return made

    def broadcast(self, tensor: "Tensor", source: int) -> None:
        """Puts one process's tensor into those of all others, of the same shape."""
        if self.link is None or not tensor.numel():
            return
        from torch import distributed

        with self.link.reached():
            distributed.broadcast(tensor, source)

    def sum_in_order(self, tensors: "Sequence[Tensor]") -> "list[Tensor]":
        """Each tensor summed over the processes: the same bits on all of them, and on every run."""
        if self.link is None:
            return list(tensors)
        import torch

        summed = list(tensors)
        kinds = dict.fromkeys((tensor.dtype, tensor.device) for tensor in tensors)
        for kind in kinds:  # one exchange for all of a kind
            places = [place for place, own in enumerate(tensors) if (own.dtype, own.device) == kind]
            total = self._summed(torch.cat([tensors[place].reshape(-1) for place in places]), self.link)
            parts = torch.split(total, [tensors[place].numel() for place in places])
            for place, part in zip(places, parts, strict=True):
                summed[place] = part.view(tensors[place].shape)
        return summed

    def check_same(self, tensors: "Iterable[Tensor]", where: str) -> None:
        """Raises BadNumber on all processes unless they hold the same bits."""
        if self.link is None:
            return
        import torch

        digest = sha256()
        for tensor in tensors:
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        mine = torch.tensor(list(digest.digest()), dtype=torch.int64)
        firsts = mine.clone()
        self.broadcast(firsts, 0)
        if not self.all(bool(torch.equal(mine, firsts))):
            hint = "run all processes on machines of one kind, or one process alone"
            raise BadNumber("the processes have drifted apart", where=where, hint=hint)

    def _summed(self, flat: "Tensor", link: Link) -> "Tensor":
        import torch
        from torch import distributed

        with link.reached():
            if flat.numel() > SMALL:
                distributed.all_reduce(flat)
                return flat
            parts = [torch.empty_like(flat) for _ in range(self.size)]
            distributed.all_gather(parts, flat)
            total = parts[0]
            for part in parts[1:]:
                total += part
            return total


ALONE = Group()
"""A process that shares its work with nobody."""


@contextmanager
def group(device: "torch.device", *, within: Group = ALONE, patience: float = PATIENCE) -> Iterator[Group]:
    """The processes that torchrun started, connected by NCCL where `device` is a GPU and by gloo elsewhere.

    A process alone is `ALONE`; `within` is a group that is open already, and is taken as it is. A failure inside is
    told to the others, which end with the same status. Raises UsageError and NotEnough for devices that don't suit.
    """
    here = seat()
    if within.link is not None or here.size == 1:
        yield within
        return
    _check_free()
    names = shared_store()
    opened = names.add(f"opened by {here.rank}", 1)  # all open their groups in the same order
    link = Link(below(names, f"group {opened}"), patience, device.type == "cuda")
    with link.failing_together(here.rank):
        _connect(here, device, link)
        made = Group(here.rank, here.size, here.local_rank, here.local_size, link)
        yield made
        made.barrier()  # none goes while another may still ask it
        _disconnect()


def _connect(here: Seat, device: "torch.device", link: Link) -> None:
    """Waits for all processes, and connects them."""
    from torch import distributed

    if link.gpus:
        _take_gpu(here, device)
    backend = "cpu:gloo,cuda:nccl" if link.gpus else "gloo"
    with link.reached():
        link.store.set(f"here {here.rank}", "yes")
        for rank in range(here.size):
            link.awaited(f"here {rank}")
        distributed.init_process_group(
            backend, store=below(link.store, "backend"), rank=here.rank, world_size=here.size,
            timeout=timedelta(seconds=link.patience),
        )  # fmt: skip


def _check_free() -> None:
    """Refuses to share torch.distributed with others: two that exchange in orders of their own wait for ever."""
    from torch import distributed

    if distributed.is_initialized():
        hint = "leave `init_process_group` to taskmerge"
        raise UsageError("torch.distributed is in use already", where=WHERE, hint=hint)


def _take_gpu(here: Seat, device: "torch.device") -> None:
    """Makes this process's GPU the one it works on."""
    import torch

    if device.index is not None:
        hint = "say --device cuda: every process takes the GPU of its own number"
        raise UsageError(f"`{device}` is one GPU for {here.size} processes", where="--device", hint=hint)
    if here.local_size > torch.cuda.device_count():
        found = torch.cuda.device_count()
        what = f"{here.local_size} processes on this machine, which has {found} GPUs"
        raise NotEnough(what, where=WHERE, hint=f"give --nproc-per-node {found}, or --device cpu")
    torch.cuda.set_device(here.local_rank)


def _disconnect() -> None:
    """Closes the connections, which the others notice."""
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()
