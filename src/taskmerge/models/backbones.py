"""Builds the architecture that a suite names, whatever library it comes from."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import torch

from taskmerge.errors import TaskmergeError
from taskmerge.models.config_values import unbuildable
from taskmerge.models.contract import Backbone
from taskmerge.specs.renaming import parse_renaming
from taskmerge.specs.suite import BackboneSpec, Location

MODULES = {
    "open_clip": "taskmerge.models.open_clip_models",
    "transformers": "taskmerge.models.transformers_models",
    "torchvision": "taskmerge.models.torchvision_models",
}


def build(spec: BackboneSpec, *, resolve: Callable[[Location], Path], renamings: Sequence[str] = ()) -> Backbone:
    """The backbone in evaluation mode, float32 on the CPU, with weights of no meaning until it is filled.

    `resolve` turns a location into a path on this machine; `renamings` say how files name tensors (`--map`).
    Nothing is downloaded otherwise, only the library that is asked for is imported, and the caller's random numbers
    stay as they are. Raises `UsageError` for an unknown model, `BadFile` for a configuration or tokenizer that cannot
    be read, `Mismatch` for settings that do not fit the model.
    """
    library = import_module(MODULES[spec.library])
    try:
        with torch.random.fork_rng(devices=[]):
            backbone: Backbone = library.build(spec, resolve)
    except (TaskmergeError, MemoryError):
        raise
    except Exception as error:  # a configuration says more than can be checked here, and libraries raise what they like
        raise unbuildable(error, spec.library, spec.place or str(spec.model)) from error
    backbone.module.eval().requires_grad_(False)
    naming = replace(backbone.naming, renamings=tuple(map(parse_renaming, renamings)))
    return replace(backbone, naming=naming)
