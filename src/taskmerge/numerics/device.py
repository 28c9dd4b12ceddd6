"""The device that a user named, checked, and how many cores this process may use."""

import os

import torch

from taskmerge.errors import NotEnough, UsageError


def named_device(said: str, *, accelerate: bool) -> torch.device:
    """`cpu`, `cuda` or `cuda:N`; `auto` is a GPU where there is one and `accelerate` says that it is worth it.

    UsageError for what is no device, NotEnough for one that this machine lacks.
    """
    if said == "auto":
        said = "cuda" if accelerate and torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(said)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"`{said}` is no device", where="--device", hint="auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise NotEnough(f"there is no device `{said}`", where="--device", hint="use --device cpu")
    return device


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
