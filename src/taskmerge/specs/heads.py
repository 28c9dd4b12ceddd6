"""Where models keep their task heads: which tensors of a file are a classifier or a decoder, by name alone."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from taskmerge.specs.suite import Pooling

Activation = Literal["tanh", "relu", "gelu"]
"""A function of torch.nn.functional."""


@dataclass(frozen=True, slots=True)
class Classifier:
    """Where a family of transformers' models keeps its classifier, and which token it reads: the linear layer `output`,
    and before it a layer `hidden` with an activation."""

    output: str
    pooling: Pooling
    hidden: str | None = None
    activation: Activation = "tanh"


_ROBERTA = Classifier("classifier.out_proj", "cls", "classifier.dense")
CLASSIFIERS = {
    "bert": Classifier("classifier", "cls", "bert.pooler.dense"),
    "camembert": _ROBERTA,
    "distilbert": Classifier("classifier", "cls", "pre_classifier", "relu"),
    "electra": Classifier("classifier.out_proj", "cls", "classifier.dense", "gelu"),
    "gpt2": Classifier("score", "last"),
    "roberta": _ROBERTA,
    "vit": Classifier("classifier", "cls"),
    "xlm-roberta": _ROBERTA,
}
"""Model type -> its sequence or image classifier, as transformers' AutoModelFor…Classification builds it."""

OUTPUT_WEIGHTS = ("weight", "output.weight")
"""What has a row a class in a head's own file: of a linear head, and of one with a hidden layer."""
DECODERS = "decoders."
DEEPLAB = ("classifier.0.convs.", "classifier.")
"""What tells that a file holds torchvision's dense head, and what that head's names start with."""


def head_names(names: Collection[str]) -> frozenset[str]:
    """Those of a file's (or several files') tensors that belong to a known task head, whole heads at a time.

    A wrapper that all names carry (`module.`) makes no difference. BERT's pooler is part of the head where a classifier
    reads it, with or without `bert.` before it, and part of the encoder in a file without a classifier.
    """
    first = {name.partition(".")[0] for name in names}
    wrapper = f"{first.pop()}." if len(first) == 1 else ""
    bare = {name.removeprefix(wrapper): name for name in names}
    there = [family for family, one in CLASSIFIERS.items() if f"{one.output}.weight" in bare]
    layers = {layer for family in there for layer in _layers(family)}
    starts = [DECODERS, *(DEEPLAB[1:] if any(name.startswith(DEEPLAB[0]) for name in bare) else ())]
    whole = {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")}
    return frozenset(full for name, full in bare.items() if name in whole or name.startswith(tuple(starts)))


def _layers(family: str) -> list[str]:
    """The layers of a family's classifier; those inside the encoder also as a bare encoder names them."""
    one = CLASSIFIERS[family]
    hidden = [one.hidden, one.hidden.removeprefix(f"{family}.")] if one.hidden else []
    return [one.output, *hidden]
