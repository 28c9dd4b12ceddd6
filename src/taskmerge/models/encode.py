"""Features of many items by one encoder, at the speed of a bare forward loop."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from taskmerge.numerics.lapack import settle_thread
from taskmerge.processes import ALONE, Group
from taskmerge.types import Inputs

AT_ONCE = 8
"""Most batches that a CPU encodes at once: each holds its activations."""
Step = Callable[[int], None]
"""Called with how many items were encoded since the last call."""
Map = Callable[[Callable[[int], Tensor], range], Iterable[Tensor]]


def encode(
    module: nn.Module, inputs: Inputs, *, batch_size: int, device: torch.device, progress: Step | None = None,
    workers: int | None = None, group: Group = ALONE,
) -> Tensor:  # fmt: skip
    """Features of N items on `device`, [N, D] or maps [N, D, h, w], in the items' order; float32, or float64 if the
    module is.

    Pictures go to the device as they are stored (uint8). Texts are encoded by length, each batch cut to its longest,
    so padding costs next to nothing. The same on every run: no autotuning, no TF32. No gradient is recorded, yet the
    features are ordinary tensors: a head that learns from them may save them for its own gradient. A CPU encodes
    `workers` batches at once, by default as many as it has threads. The processes of a `group` encode some batches
    each, and all get all features.
    """
    inputs, order, lengths = _by_length(inputs)
    count = len(next(iter(inputs.values())))

    def forward(start: int) -> Tensor:
        stop = min(start + batch_size, count)
        batch = {name: _slice(whole, start, stop, lengths).to(device) for name, whole in inputs.items()}
        with torch.no_grad():  # a thread has its own
            features: Tensor = module(batch)
            return features.to(torch.promote_types(features.dtype, torch.float32))

    parts, every = [], range(0, count, batch_size)
    spread = group.size > 1 and len(every) >= group.size
    starts = every[slice(*group.bounds(len(every))[group.rank])] if spread else every
    with torch.no_grad(), _exact(device), _mapped(device, len(starts), workers) as mapped:
        for features in mapped(forward, starts):
            parts.append(features)
            if progress is not None:
                progress(len(features))
        joined = torch.cat(parts)
        if spread:
            joined = _from_all(group, joined, count, batch_size)
        return joined if order is None else _restored(joined, order.to(device))


@contextmanager
def _mapped(device: torch.device, batches: int, wanted: int | None) -> Iterator[Map]:
    """A `map` for so many batches: on a CPU several at once, each on its share of torch's threads.

    That is faster than all threads inside one batch, whose small operations wait for each other, and far faster where
    other programs use the cores too. On a GPU they follow each other.
    """
    threads = torch.get_num_threads()
    workers = min(AT_ONCE, wanted or threads, batches)
    if device.type != "cpu" or workers < 2:
        yield map
        return
    torch.set_num_threads(max(1, threads // workers))
    pool = ThreadPoolExecutor(workers, thread_name_prefix="encode", initializer=settle_thread)
    try:
        yield pool.map
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def _by_length(inputs: Inputs) -> tuple[Inputs, Tensor | None, list[int] | None]:
    """Texts sorted by length, longest first, with their order and where each one's mask ends; pictures as they are."""
    mask = inputs.get("attention_mask")
    if mask is None:
        return inputs, None, None
    places = torch.arange(1, mask.shape[1] + 1)
    ends = (mask.ne(0) * places).amax(dim=1)  # not the sum: left padding is not cut
    order = ends.argsort(descending=True, stable=True)
    return {name: whole[order] for name, whole in inputs.items()}, order, ends[order].tolist()


def _slice(whole: Tensor, start: int, stop: int, lengths: list[int] | None) -> Tensor:
    """Items start ... stop as a view; texts cut to the longest, which is the first."""
    return whole[start:stop] if lengths is None or whole.dim() < 2 else whole[start:stop, : max(lengths[start], 1)]


def _from_all(group: Group, mine: Tensor, count: int, batch_size: int) -> Tensor:
    """The features of all items from those that each process has, in runs of whole batches."""
    whole = mine.new_empty(count, *mine.shape[1:])
    for rank, (start, stop) in enumerate(group.bounds(-(-count // batch_size))):
        run = whole[start * batch_size : stop * batch_size]
        if rank == group.rank:
            run.copy_(mine)
        group.broadcast(run, rank)
    return whole


def _restored(features: Tensor, order: Tensor) -> Tensor:
    """Features in the items' own order."""
    own = torch.empty_like(features)
    own[order] = features
    return own


def _exact(device: torch.device) -> AbstractContextManager[None]:
    """cuDNN without TF32 and autotuning: float32 means float32, and two runs agree."""
    if device.type != "cuda":
        return nullcontext()
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
