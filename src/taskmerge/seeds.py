"""Random numbers that are a function of what they are for: seed, task, tensor name and element, never of order."""

import hashlib
import json

import numpy as np
import torch
from numpy.random import Philox
from torch import Tensor

NUMBERS_A_BLOCK = 8  # a Philox counter gives four 64-bit words, and each word serves two elements
RESOLUTION = 2.0**-24


def uniform_at(seed: int, task: str, tensor: str, start: int, count: int) -> Tensor:
    """The uniform numbers of elements start .. start + count - 1 of one tensor of one task: float32 [count] in [0, 1).

    Counter-based: the key is SHA-256 of the seed and the names, the counter is the element's index, so any
    chunking, any order and any thread gives the same numbers. Always on the CPU. Multiples of 2**-24.
    """
    block, skipped = divmod(start, NUMBERS_A_BLOCK)
    words = Philox(key=_key(seed, task, tensor), counter=block).random_raw((skipped + count + 1) // 2)
    halves = words.astype("<u8", copy=False).view("<u4")[skipped : skipped + count]
    return torch.from_numpy((halves >> 8).view(np.int32)).to(torch.float32).mul_(RESOLUTION)


def _key(seed: int, task: str, tensor: str) -> int:
    """128 bits that no two triples share, short of a collision of SHA-256."""
    said = json.dumps([seed, task, tensor], ensure_ascii=True).encode()
    return int.from_bytes(hashlib.sha256(said).digest()[:16], "little")
