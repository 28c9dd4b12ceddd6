"""What every backbone offers, whatever library it comes from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor, nn

from taskmerge.models.naming import Naming
from taskmerge.specs.suite import Pooling
from taskmerge.types import Prepare

Features = Tensor
"""[B, D], not normalised; for dense backbones the deepest map [B, D, h, w]."""


@dataclass(frozen=True)
class Backbone:
    """A built architecture without particular weights.

    `module(inputs) -> Features` takes a batch of `Inputs` on its device; its parameters have the library's own names.
    `prepare` turns raw items into inputs; `width` is D; `normalised` says that heads see z/‖z‖ (CLIP).
    `optional` are tensor names (of the module) that a checkpoint may lack and whose value then comes from the
    library's own initialisation because the features do not depend on them. `text` embeds class prompts for
    zero-shot heads, given a full model's tensors; None where there is no text tower. `naming` says how files may name
    the module's tensors (as it does itself, if nothing else is said). `label` names the architecture in messages,
    `family` is the library's model type and `pooling` what of a sequence was pooled: both decide which classifier fits.
    """

    module: nn.Module
    prepare: Prepare
    width: int
    normalised: bool
    optional: frozenset[str] = frozenset()
    text: "TextTower | None" = None
    naming: Naming = field(default_factory=Naming)
    label: str = "the backbone"
    family: str = ""
    pooling: Pooling | None = None


class TextTower(Protocol):
    """Embeds prompts with a full model's text tower."""

    def __call__(self, state: Mapping[str, Tensor], prompts: Sequence[str]) -> tuple[Tensor, float]:
        """Embeddings [P, D], not normalised, and exp(logit_scale)."""


class Head(Protocol):
    """Turns features into outputs: class scores [B, C], values [B], or maps."""

    def __call__(self, features: Features) -> Tensor: ...
