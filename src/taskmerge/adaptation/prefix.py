"""Encoders of which only the upper blocks learn: what lies below is computed once an item, and skipped from then on."""

import threading
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from taskmerge.experts.classes import block_of
from taskmerge.types import Inputs

MOST = 2 * 10**9
"""Bytes of one task's hidden states above which they are computed anew each time."""
AT_ONCE = 64
CLOSE = 1e-4
"""Relative difference of features within which skipping counts as the same: rounding, of other batch sizes."""


class _Passed(nn.Module):
    """Stands for a block below: gives on what it gets, in the form in which that block gave its result."""

    def __init__(self, as_tuple: bool) -> None:
        super().__init__()
        self.as_tuple = as_tuple

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor, ...]:
        return (hidden,) if self.as_tuple else hidden


@dataclass(frozen=True)
class Shortened:
    """An encoder from its first own block on. `hidden` are all items' states there, items along `axis`; `current` holds
    those of the batch under way, thread by thread."""

    module: nn.Module
    hidden: Tensor
    axis: int
    current: threading.local

    def features(self, inputs: Inputs, places: Tensor, device: torch.device) -> Tensor:
        """Features of the items at `places`, whose `inputs` these are: encoders cut texts to their longest."""
        hidden = self.hidden.index_select(self.axis, places)
        mask = inputs.get("attention_mask")
        if mask is not None and hidden.dim() > 2:
            used = mask.ne(0).any(dim=0).nonzero()
            hidden = hidden.narrow(1 - self.axis, 0, int(used[-1]) + 1 if len(used) else 1)
        self.current.hidden = hidden.to(device)
        features: Tensor = self.module(inputs)
        return features


def shortened(module: nn.Module, own: Sequence[str], inputs: Inputs, device: torch.device) -> Shortened | None:
    """The encoder without what lies below its own parameters `own`, or None where that cannot be left out.

    Left out are the numbered blocks before the first own one. What comes out is compared with the whole encoder on a
    few items; where it differs, or takes too much memory, nothing is left out.
    """
    place = _first(own)
    if place is None:
        return None
    path, index = place
    blocks = module.get_submodule(path)
    if index == 0 or not isinstance(blocks, nn.ModuleList | nn.Sequential):
        return None
    seen = _Seen(module, blocks, index, device)
    axis = seen.axis(inputs)
    if axis is None or seen.bytes_of_all(inputs) > MOST:
        return None
    current = threading.local()
    short = Shortened(_without(module, path, index, seen.as_tuple, current), seen.of_all(inputs, axis), axis, current)
    few = torch.arange(min(4, _count(inputs)))
    batch = {name: whole[few].to(device) for name, whole in inputs.items()}
    with torch.no_grad():
        whole, part = module(batch), short.features(batch, few, device)
    return short if bool((whole - part).norm() <= CLOSE * whole.norm()) else None


def _first(own: Sequence[str]) -> tuple[str, int] | None:
    """(the path of the list of blocks, the index of the first own block); None outside numbered blocks."""
    found = [(block_of(name), name) for name in own]
    if not found or any(block is None for block, _ in found):
        return None
    block, name = min(((one, name) for one, name in found if one is not None), key=lambda pair: pair[0].index)
    path, _, _ = name.partition(f".{block.index}.")
    return path, block.index


@dataclass
class _Seen:
    """What a block of a module sees of items."""

    module: nn.Module
    blocks: nn.Module
    index: int
    device: torch.device
    as_tuple: bool = False

    def axis(self, inputs: Inputs) -> int | None:
        """Along which dimension its hidden states have items; None where two items don't tell."""
        if _count(inputs) < 2:
            return None
        one, two = self.of(inputs, 0, 1), self.of(inputs, 0, 2)
        differing = [axis for axis in range(two.dim()) if one.shape[axis] != two.shape[axis]]
        return differing[0] if len(differing) == 1 and differing[0] < 2 else None

    def bytes_of_all(self, inputs: Inputs) -> int:
        return self.of(inputs, 0, 1).nbytes * _count(inputs)

    def of_all(self, inputs: Inputs, axis: int) -> Tensor:
        """The states of all items, in the host's memory; texts at their full length."""
        parts = [self.of(inputs, start, start + AT_ONCE).cpu() for start in range(0, _count(inputs), AT_ONCE)]
        return torch.cat(parts, dim=axis)

    def of(self, inputs: Inputs, start: int, stop: int) -> Tensor:
        """The states of some items; texts, which encoders cut to the longest of a batch, at their full length."""
        caught: list[Tensor] = []
        below = self.blocks.get_submodule(str(self.index - 1))

        def catch(module: nn.Module, args: tuple[Any, ...], result: Any) -> None:
            self.as_tuple = isinstance(result, tuple)
            caught.append(result[0] if self.as_tuple else result)

        hook = below.register_forward_hook(catch)
        try:
            with torch.no_grad():
                self.module({name: whole[start:stop].to(self.device) for name, whole in inputs.items()})
        finally:
            hook.remove()
        hidden = caught[0] if caught else torch.empty(0)  # no block was called: nothing that could be left out
        mask = inputs.get("attention_mask")
        if mask is None or hidden.dim() < 3:
            return hidden
        return functional.pad(hidden, (0, 0, 0, mask.shape[1] - hidden.shape[1]))  # nobody looks at what is masked


def _without(module: nn.Module, path: str, index: int, as_tuple: bool, current: threading.local) -> nn.Module:
    """A copy of the module, sharing everything, whose blocks before `index` pass on, the last of them what is held."""

    class Held(_Passed):
        def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor, ...]:
            return super().forward(current.hidden)

    blocks = list(module.get_submodule(path).children())
    passed = [_Passed(as_tuple) for _ in range(index - 1)] + [Held(as_tuple)]
    is_list = isinstance(module.get_submodule(path), nn.ModuleList)
    every = [*passed, *blocks[index:]]
    replaced = nn.ModuleList(every) if is_list else nn.Sequential(*every)
    return _put(module, path.split("."), replaced)


def _put(module: nn.Module, path: Sequence[str], child: nn.Module) -> nn.Module:
    """A copy of a module in which one descendant is another; all else is shared."""
    own = copy(module)
    own._modules = dict(module._modules)
    name, *rest = path
    own._modules[name] = child if not rest else _put(module.get_submodule(name), rest, child)
    return own


def _count(inputs: Mapping[str, Tensor]) -> int:
    return len(next(iter(inputs.values())))
