"""Heads for maps: DeepLab's head of torchvision, brought back to the picture's size."""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.segmentation.deeplabv3 import DeepLabHead

from taskmerge.checkpoint.checkpoint import Checkpoint
from taskmerge.errors import Mismatch
from taskmerge.models.fill import fill_module
from taskmerge.models.naming import Naming
from taskmerge.models.torchvision_models import STRIDE
from taskmerge.specs.suite import TaskKind

LAST = "4.weight"
"""The last layer's weight [C, 256, 1, 1]: its rows are the outputs."""


class DenseHead(nn.Module):
    """Maps of the picture's size: class scores [B, C, H, W], depths [B, H, W], unit normals [B, 3, H, W]."""

    def __init__(self, kind: TaskKind, layers: nn.Module, outputs: int) -> None:
        super().__init__()
        self.kind, self.layers, self.outputs = kind, layers, outputs

    def forward(self, features: Tensor) -> Tensor:
        """[B, D, H/8, W/8] -> maps. Bilinear with corners aligned, as the published models were trained."""
        maps = functional.interpolate(self.layers(features), scale_factor=STRIDE, mode="bilinear", align_corners=True)
        if self.kind == "depth":
            return maps.squeeze(1)
        return functional.normalize(maps, dim=1) if self.kind == "normals" else maps


def dense_head(kind: TaskKind, width: int, file: Checkpoint, prefixes: tuple[str, ...]) -> DenseHead:
    """The DeepLab head (atrous rates 12, 24, 36) whose tensors stand in the file under one of the prefixes."""
    names = Naming().plain(file.specs)
    prefix = next((one for one in prefixes if one + LAST in names), None)
    if prefix is None:
        what = f"no DeepLab head: none of {', '.join(f'`{one}{LAST}`' for one in prefixes)}"
        raise Mismatch(what, where=str(file.path), hint="is it a bare encoder? name a head file")
    outputs = file.specs[names[prefix + LAST]].shape[0]
    with torch.random.fork_rng(devices=[]):
        layers = DeepLabHead(width, outputs)
    others = Naming(forms=((prefix, ""),), elsewhere=lambda name: bool(prefix) and not name.startswith(prefix))
    fill_module(layers, others, file, f"a DeepLab head for features of {width} numbers")
    return DenseHead(kind, layers.requires_grad_(False).eval(), outputs)
