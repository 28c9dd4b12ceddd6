"""Heads: a file's, zero-shot from class names, or the expert's own classifier."""

import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from taskmerge.checkpoint.checkpoint import Checkpoint, open_checkpoint
from taskmerge.checkpoint.provenance import provenance_of
from taskmerge.checkpoint.quantised import read_config
from taskmerge.errors import BadFile, Mismatch, UsageError, listed, located
from taskmerge.models.contract import Backbone, Head
from taskmerge.models.fill import Tensors, stored
from taskmerge.specs.class_names import table_of_classes
from taskmerge.specs.heads import CLASSIFIERS, Activation, Classifier
from taskmerge.specs.suite import DENSE, Location, Task

UNNAMED = re.compile(r"LABEL_\d+")
"""What transformers calls classes that nobody named."""
DAMAGED = "is the file damaged? download or copy it again"
HIDDEN = ("hidden.weight", "hidden.bias", "output.weight")
"""The tensors of a file whose head has a hidden layer, besides `output.bias`."""


class LinearHead(nn.Module):
    """z Hᵀ + b of features z [B, D], which are normalised first where the backbone's heads want that.

    `weight` [C, D], `bias` [C] or None. Values [B] for a regression, else [B, C].
    """

    bias: nn.Parameter | None

    def __init__(self, weight: Tensor, bias: Tensor | None, *, normalise: bool, regression: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.float(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.float(), requires_grad=False)
        self.normalise, self.regression, self.outputs = normalise, regression, len(weight)

    def forward(self, features: Tensor) -> Tensor:
        features = functional.normalize(features, dim=-1) if self.normalise else features
        outputs = functional.linear(features, self.weight, self.bias)
        return outputs.squeeze(-1) if self.regression else outputs


class HiddenHead(nn.Module):
    """A classifier with a hidden layer: `hidden` [H, D], an activation, and the linear head `output` [C, H]."""

    def __init__(self, hidden: nn.Linear, activation: Activation, output: LinearHead) -> None:
        super().__init__()
        self.hidden, self.activation, self.output, self.outputs = hidden, activation, output, output.outputs

    def forward(self, features: Tensor) -> Tensor:
        activation: Callable[[Tensor], Tensor] = getattr(functional, self.activation)
        outputs: Tensor = self.output(activation(self.hidden(features)))
        return outputs


def load_head(
    task: Task,
    backbone: Backbone,
    *,
    resolve: Callable[[Location], Path],
    base: Checkpoint | None = None,
    expert: Checkpoint | None = None,
) -> Head:
    """The head that the task names, frozen, on the CPU.

    Raises `Mismatch` for a head that fits neither the features nor the task's classes, `UsageError` for one that
    cannot be made of what the suite gives, `BadFile` for one with NaN or infinity.
    """
    if task.head == "zero_shot":
        head = zero_shot(task, backbone, base)
    elif task.head == "expert":
        head = expert_head(task, backbone, expert)
    else:
        with open_checkpoint(resolve(task.head)) as file:
            head = file_head(task, backbone, file)
            file.check_unchanged()
    _check_finite(head, task)
    return head.eval()


def file_head(task: Task, backbone: Backbone, file: Checkpoint) -> nn.Module:
    """A head file, as `head_files.write_head` writes it: `weight` [C, D] and perhaps `bias` [C]; with a hidden layer
    `hidden.…`, `output.…`, and the activation in the metadata; for dense tasks the tensors of a DeepLab head.
    """
    if task.kind in DENSE:
        return _dense(task, backbone, file, ("", f"decoders.{task.name}.", "classifier."))
    if HIDDEN[0] in file.specs:
        _check_names(task, file, HIDDEN, "output.bias")
        return _hidden(task, backbone, stored(file), "hidden.", "output.", _activation(file))
    _check_names(task, file, ("weight",), "bias")
    return _linear(task, backbone.width, stored(file), "", normalise=backbone.normalised)


def zero_shot(task: Task, backbone: Backbone, base: Checkpoint | None) -> nn.Module:
    """The head of class names: for each, prompts embedded, normalised, averaged, normalised, times exp(logit scale).

    As open_clip's build_zero_shot_classifier, with the logit scale folded in.
    """
    where = task.place or f"task {task.name}"
    if not task.classes or not task.templates:
        lacking = "classes" if not task.classes else "templates"
        raise UsageError(f"a zero-shot head needs `{lacking}`", where=where, hint=f"add `{lacking}: […]` to the task")
    if backbone.text is None or task.kind != "classification":
        what = "a zero-shot head needs a backbone with a text tower, and classes"
        raise UsageError(what, where=where, hint="name a head file: `head: heads/…safetensors`")
    if base is None:
        raise UsageError("a zero-shot head needs the base's text tower", where=where, hint="add `base:` to the suite")
    prompts = [template.format(name) for name in task.classes for template in task.templates]
    with located(str(base.path)):
        state = Tensors(base, backbone.naming.plain(base.specs))
        embedded, scale = backbone.text(state, prompts)
    each = functional.normalize(embedded, dim=-1).reshape(len(task.classes), len(task.templates), -1)
    weight = functional.normalize(each.mean(dim=1), dim=-1) * scale
    if weight.shape[1] != backbone.width:
        raise Mismatch(f"prompts have {weight.shape[1]} numbers, features {backbone.width}", where=where)
    return LinearHead(weight, None, normalise=backbone.normalised, regression=False)


def expert_head(task: Task, backbone: Backbone, expert: Checkpoint | None) -> nn.Module:
    """The classifier in a fine-tuned model's own checkpoint, found by name."""
    where = task.place or f"task {task.name}"
    if expert is None:
        raise UsageError("`head: expert`, and the task has no expert", where=where, hint="add `expert:` to the task")
    names = backbone.naming.plain(expert.specs)
    if task.kind in DENSE:
        return _dense(task, backbone, expert, tuple(_decoders(task, names)))
    classifier = CLASSIFIERS.get(backbone.family)
    if classifier is None:
        what = f"where {backbone.label} keeps its classifier is not known"
        raise UsageError(what, where=where, hint=f"name a head file; known: {', '.join(CLASSIFIERS)}")
    if backbone.pooling != classifier.pooling:
        what = f"the expert's classifier reads `pooling: {classifier.pooling}`, the suite says {backbone.pooling}"
        raise UsageError(what, where=where, hint=f"set `pooling: {classifier.pooling}`, or name a head file")
    return _in_order(_classifier(task, backbone, Tensors(expert, names), classifier), task, expert)


def _in_order(head: LinearHead | HiddenHead, task: Task, expert: Checkpoint) -> LinearHead | HiddenHead:
    """The classifier with its outputs in the order of the task's classes, where the expert's config names them."""
    folder = expert.home
    named = (read_config(folder) or {}).get("id2label")
    output = head.output if isinstance(head, HiddenHead) else head
    if folder is None or not isinstance(named, dict) or not task.classes or task.kind != "classification":
        return head
    names = [named.get(str(number)) for number in range(output.outputs)]
    if not all(isinstance(name, str) and not UNNAMED.fullmatch(name) for name in names):
        return head
    hint = "name the task's classes as the expert's config.json does, or give it a head file: `head: FILE`"
    table, _ = table_of_classes(list(map(str, names)), task.classes, str(folder / "config.json"), hint)
    order = sorted(table, key=lambda number: table[number])
    output.weight = nn.Parameter(output.weight[order], requires_grad=False)
    if output.bias is not None:
        output.bias = nn.Parameter(output.bias[order], requires_grad=False)
    return head


def _classifier(task: Task, backbone: Backbone, expert: Tensors, parts: Classifier) -> LinearHead | HiddenHead:
    output = f"{parts.output}."
    if parts.hidden is None:
        return _linear(task, backbone.width, expert, output, normalise=backbone.normalised)
    return _hidden(task, backbone, expert, f"{parts.hidden}.", output, parts.activation)


def _hidden(
    task: Task, backbone: Backbone, file: Tensors, inner: str, outer: str, activation: Activation
) -> HiddenHead:
    """The hidden layer under the prefix `inner` and the linear layer under `outer`, after checking their shapes."""
    weight, bias = _tensor(file, f"{inner}weight"), _tensor(file, f"{inner}bias")
    _check_width(file, f"{inner}weight", backbone.width)
    _check_bias(file, inner, weight, bias)
    hidden = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        hidden.weight.copy_(weight)
        hidden.bias.copy_(bias)
    output = _linear(task, hidden.out_features, file, outer, normalise=False)
    return HiddenHead(hidden.requires_grad_(False), activation, output)


def _activation(file: Checkpoint) -> Activation:
    """The activation that a head file's metadata names. Raises BadFile."""
    said = (provenance_of(file) or {}).get("activation")
    found: Activation | None = next((name for name in get_args(Activation) if name == said), None)
    if found is None:
        what = (
            f"is a head with a hidden layer, whose metadata names {'no' if said is None else 'an unknown'} activation"
        )
        hint = f"its entry `taskmerge` has a key `activation`: {' or '.join(get_args(Activation))}"
        raise BadFile(what, where=str(file.path), hint=hint)
    return found


def _linear(task: Task, width: int, file: Tensors, prefix: str, *, normalise: bool) -> LinearHead:
    """The linear layer under `prefix`, after checking its shape against features and classes."""
    weight = _tensor(file, f"{prefix}weight")
    bias = _tensor(file, f"{prefix}bias") if f"{prefix}bias" in file else None
    _check_width(file, f"{prefix}weight", width)
    if bias is not None:
        _check_bias(file, prefix, weight, bias)
    _check_outputs(task, len(weight), str(file.checkpoint.path))
    return LinearHead(weight, bias, normalise=normalise, regression=task.kind == "regression")


def _dense(task: Task, backbone: Backbone, file: Checkpoint, prefixes: tuple[str, ...]) -> nn.Module:
    from taskmerge.models.dense import dense_head

    head = dense_head(task.kind, backbone.width, file, prefixes)
    _check_outputs(task, head.outputs, str(file.path))
    return head


def _decoders(task: Task, names: Collection[str]) -> list[str]:
    """The prefixes under which an expert's dense head may stand: the task's name, its kind, or the only one."""
    decoders = list(dict.fromkeys(name.split(".")[1] for name in names if name.startswith("decoders.")))
    own = [name for name in (task.name, task.kind, task.kind.removesuffix("s")) if name in decoders]
    return [f"decoders.{name}." for name in own or (decoders if len(decoders) == 1 else ())] or ["classifier."]


def _tensor(file: Tensors, name: str) -> Tensor:
    if name not in file:
        what = f"no tensor `{name}`: this checkpoint has no such classifier"
        raise Mismatch(what, where=str(file.checkpoint.path), hint="is it a bare encoder? name a head file instead")
    return file[name]


def _check_finite(head: nn.Module, task: Task) -> None:
    """Raises BadFile for a head with NaN or infinity."""
    sources = {"zero_shot": "it is made by the base's text tower: ", "expert": "it is the expert's: "}
    for name, tensor in head.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            where = f"{task.place}: `{task.head}`" if isinstance(task.head, str) else str(task.head)
            hint = sources.get(str(task.head), "") + DAMAGED
            raise BadFile(f"the head's `{name}` holds NaN or infinity", where=where, hint=hint)


def _check_names(task: Task, file: Checkpoint, needed: tuple[str, ...], optional: str) -> None:
    """Raises Mismatch for a file that has other tensors than such a head."""
    if not set(needed) <= set(file.specs) <= {*needed, optional}:
        has = listed(file.specs, 10, plain=True) or "nothing"
        what = f"a head has {listed(needed)} and perhaps `{optional}`; this file has {has}"
        raise Mismatch(what, where=str(file.path), hint=f"is it the head of task {task.name}?")


def _check_bias(file: Tensors, prefix: str, weight: Tensor, bias: Tensor) -> None:
    if bias.shape != weight.shape[:1]:
        what = f"bias {list(bias.shape)} for a weight {list(weight.shape)}"
        raise Mismatch(what, where=f"{file.checkpoint.path}: `{prefix}bias`", hint="is the head damaged?")


def _check_width(file: Tensors, name: str, width: int) -> None:
    shape = file.checkpoint.specs[file.names[name]].shape
    if len(shape) != 2 or shape[1] != width:
        what = f"a head {list(shape)} for features of {width} numbers"
        raise Mismatch(what, where=f"{file.checkpoint.path}: `{name}`", hint="is it the head of another backbone?")


def _check_outputs(task: Task, outputs: int, where: str) -> None:
    wanted = {"regression": 1, "depth": 1, "normals": 3}.get(task.kind, len(task.classes) or outputs)
    if outputs != wanted:
        what = f"the head has {outputs} outputs, task {task.name} has {wanted}"
        raise Mismatch(f"{what} classes" if task.classes else what, where=where, hint="check `head` and `classes`")
