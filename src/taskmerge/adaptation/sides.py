"""Builds what every task has of its own: head, adapter, block; and frozen features where the encoder doesn't learn."""

from collections.abc import Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn

from taskmerge.adaptation.fitted import fit_head
from taskmerge.adaptation.opening import OpenedTask, Place, features_of
from taskmerge.adaptation.prefix import shortened
from taskmerge.adaptation.tasks import Features, TaskSide
from taskmerge.adaptation.teachers import Teacher
from taskmerge.adaptation.weights import with_own
from taskmerge.data.batches import places
from taskmerge.errors import UsageError
from taskmerge.experts.classes import block_of, depths, in_sequence
from taskmerge.methods.adaptive import Adapter, Heads, Parts
from taskmerge.models.adapters import prob_surgery, surgery
from taskmerge.seeds import uniform_at
from taskmerge.specs.adapt import AdaptSpec

HEAD, ADAPTER, BLOCK = "head/", "adapter/", "block/"
HELD_OUT = "held out"


def training_places(opened: OpenedTask, spec: AdaptSpec) -> tuple[Tensor, Tensor]:
    """(places that train, places that are held out for `--stop`), both ascending; a function of seed and task."""
    count = len(opened.items)
    held = int(spec.held_out * count) if spec.stop is not None else 0
    if spec.stop is not None and not 0 < held < count:
        what = f"{count} items of `{opened.task.name}` leave nothing to hold out a share of {spec.held_out:g} of"
        raise UsageError(what, where="--held-out", hint="give more items, or leave --stop out")
    order = places(spec.seed, f"{opened.task.name} {HELD_OUT}", 0, count=count, batch_size=count)
    return order[held:].sort().values, order[:held].sort().values


def side_of(
    opened: OpenedTask, teacher: Teacher, parts: Parts, spec: AdaptSpec, place: Place, block: Mapping[str, Tensor]
) -> TaskSide:  # fmt: skip
    """One task at the start, with the merged weights in the backbone; `block` are the tensors that become its own, by
    name, as they start."""
    train, _ = training_places(opened, spec)
    own: dict[str, nn.Parameter] = {}
    module = place.module
    if block:
        mine = {name: nn.Parameter(value.clone()) for name, value in block.items()}
        module, own = with_own(place.module, mine), {BLOCK + name: value for name, value in mine.items()}
    head = deepcopy(opened.head if opened.own_head is None else opened.own_head)
    adapter = _adapter(parts, opened, place, spec)
    if adapter is not None:
        own |= _learning(adapter, ADAPTER)
    heads = parts.of(Heads)
    frozen = None
    if not parts.shapes_weights and not block:
        frozen = Features(features_of(place, opened.items))
    if isinstance(heads, Heads):
        _start(heads, head, opened, teacher, place, spec, train, frozen)
        own |= _learning(head, HEAD)
    short = shortened(module, tuple(block), opened.items.inputs, place.device) if _only_above(parts, block) else None
    learnt = parts.of(Adapter)
    penalty = learnt.penalty if isinstance(learnt, Adapter) else 0.0
    return TaskSide(
        opened.task, opened.items, train, teacher, opened.objective, module, head, adapter, own, frozen, short, penalty
    )


def _only_above(parts: Parts, block: Mapping[str, Tensor]) -> bool:
    """Whether everything below the own block stays as it is."""
    return bool(block) and not parts.shapes_weights


def _learning(module: nn.Module, prefix: str) -> dict[str, nn.Parameter]:
    """The module's parameters, which learn from now on, by name."""
    module.requires_grad_(True)
    return {prefix + name: parameter for name, parameter in module.named_parameters()}


def _adapter(parts: Parts, opened: OpenedTask, place: Place, spec: AdaptSpec) -> nn.Module | None:
    learnt = parts.of(Adapter)
    if not isinstance(learnt, Adapter):
        return None
    width, name = place.backbone.width, opened.task.name
    made: nn.Module = (
        surgery(width, name, rank=learnt.size, seed=spec.seed)
        if learnt.kind == "surgery"
        else prob_surgery(width, name, hidden=learnt.size, seed=spec.seed)
    )
    made = made.to(place.device, place.dtype)
    if opened.own_adapter is None:
        return made
    if _shapes(opened.own_adapter) != _shapes(made):
        what = f"the adapter of `{name}` there is no {learnt.kind} adapter of width {learnt.size}"
        raise UsageError(what, where="--init", hint="continue it by its own --method and --size")
    return deepcopy(opened.own_adapter).train()


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in module.named_parameters()}


def _start(
    heads: Heads, head: nn.Module, opened: OpenedTask, teacher: Teacher, place: Place, spec: AdaptSpec, train: Tensor,
    frozen: Features | None,
) -> None:  # fmt: skip
    """Where a head begins: as it is, fitted to the merged features, or at random."""
    if heads.start == "random":
        _randomise(head, opened.task.name, spec.seed)
    elif heads.start == "fitted":
        features = features_of(place, opened.items, train) if frozen is None else frozen.values[train]
        fit_head(head, features, teacher.outputs[train], opened.task.kind, spec)


def _randomise(head: nn.Module, task: str, seed: int) -> None:
    """Kaiming's uniform numbers (a = √5) of the weights' own length: random directions, the scale of the head kept."""
    for name, parameter in head.named_parameters():
        uniform = uniform_at(seed, task, f"random {name}", 0, parameter.numel()).view(parameter.shape).to(parameter)
        random = 2 * uniform - 1
        length = parameter.detach().norm()
        with torch.no_grad():
            parameter.copy_(random * (length / random.norm()) if bool(length) else random * 0)


def block_names(module: nn.Module, layer: str) -> tuple[str, ...]:
    """The encoder's parameters that belong to one of its numbered blocks, or to a group of them.

    `first`, `middle`, `last` and an index are one block; `early` and `late` halves of them; `all` every one. Blocks of
    stages (ResNets) are counted through. Raises UsageError for an index that no block has, or an encoder without
    numbered blocks.
    """
    parameters = dict(module.named_parameters())
    sequence = in_sequence(depths(parameters))
    found = {
        name: sequence[block.tower][0] + block.index
        for name in parameters if (block := block_of(name)) is not None
    }  # fmt: skip
    count = max((total for _, total in sequence.values()), default=0)
    if not count:
        raise UsageError("this encoder has no numbered blocks", where="--layer", hint="leave --layer out: the head")
    halves = {"early": range(count // 2), "late": range(count // 2, count), "all": range(count)}
    single = {"first": 0, "middle": count // 2, "last": count - 1}
    index = single[layer] if layer in single else -1 if layer in halves else int(layer)
    wanted = halves.get(layer, range(index, index + 1))
    chosen = tuple(name for name, place in found.items() if place in wanted)
    if not chosen:
        raise UsageError(f"there is no block {layer}", where="--layer", hint=f"give 0 to {count - 1}")
    return chosen
