"""What text towers share: filling one from a full model's tensors, and embedding prompts in batches."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from taskmerge.errors import Mismatch, listed

BATCH = 256


def loaded(model: nn.Module, state: Mapping[str, Tensor], *, ignored: str, label: str) -> None:
    """Fills every tensor of `model` whose name doesn't start with `ignored`. Raises `Mismatch` listing what lacks."""
    targets = {name: one for name, one in model.state_dict(keep_vars=True).items() if not name.startswith(ignored)}
    missing = [name for name in targets if name not in state]
    if missing:
        what = f"{label} lacks {len(missing)} of {len(targets)} tensors: {listed(missing, 10, plain=True)}"
        raise Mismatch(what, hint="zero-shot heads need a base with its text tower; or give head files")
    for name, target in targets.items():
        source = state[name]
        if source.numel() != target.numel() or (source.dim() > 1 and source.shape != target.shape):
            what = f"{label}: `{name}` is {list(source.shape)}, expected {list(target.shape)}"
            raise Mismatch(what, hint="is the base of another architecture?")
        target.detach().copy_(source.reshape(target.shape))


def prompts_in_batches(encode: Callable[[Tensor], Tensor], tokens: Tensor) -> Tensor:
    """Embeddings [P, D] of tokens [P, L]."""
    with torch.no_grad():
        return torch.cat([encode(batch) for batch in torch.split(tokens, BATCH)])
