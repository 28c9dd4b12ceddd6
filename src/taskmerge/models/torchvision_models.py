"""torchvision's ResNets as dense encoders, dilated to an eighth of the picture as in MTAN and FusionBench."""

from collections.abc import Callable
from pathlib import Path

import torchvision
from torch import Tensor, nn

from taskmerge.errors import UsageError, unknown_name
from taskmerge.models.contract import Backbone
from taskmerge.models.naming import Naming
from taskmerge.models.pictures import PicturePrepare, Triple, normalised
from taskmerge.specs.suite import BackboneSpec, Location
from taskmerge.types import Inputs

STRIDE = 8
"""Pixels of the picture per pixel of the features, on each side."""

MODELS = ("resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d", "wide_resnet50_2")
PARTS = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")


class DilatedTrunk(nn.Module):
    """A bottleneck ResNet without average and classifier; the last two stages dilate instead of striding."""

    def __init__(self, name: str, mean: Triple, std: Triple) -> None:
        super().__init__()
        resnet = torchvision.models.get_model(name, weights=None, replace_stride_with_dilation=[False, True, True])
        for part in PARTS:
            self.add_module(part, getattr(resnet, part))
        self.mean, self.std, self.width = mean, std, int(resnet.fc.in_features)

    def forward(self, inputs: Inputs) -> Tensor:
        """`pixels` uint8 [N, 3, H, W] -> [N, D, H/8, W/8]."""
        features = normalised(inputs["pixels"], self.mean, self.std, self)
        for part in PARTS:
            features = self.get_submodule(part)(features)
        return features


def build(spec: BackboneSpec, resolve: Callable[[Location], Path]) -> Backbone:
    """A dense ResNet. Without `preprocess` pictures keep their values in [0, 1], as public NYUv2 models expect."""
    name = spec.model if isinstance(spec.model, str) else str(spec.model)
    if name not in MODELS:
        raise unknown_name("model of torchvision", name, MODELS, where=spec.place or None)
    if spec.pooling is not None:
        what = f"`pooling: {spec.pooling}` has no meaning for maps of features"
        raise UsageError(what, where=spec.place or None, hint="leave it out")
    mean, std = (spec.preprocess.mean, spec.preprocess.std) if spec.preprocess else ((0.0,) * 3, (1.0,) * 3)
    trunk = DilatedTrunk(name, mean, std)
    size = (spec.preprocess.image_size,) * 2 if spec.preprocess else None
    counters = frozenset(buffer for buffer in trunk.state_dict() if buffer.endswith("num_batches_tracked"))
    return Backbone(
        trunk, PicturePrepare(f"pixels {size or 'own size'}", size, step=STRIDE, where=spec.place), trunk.width,
        normalised=False, optional=counters, naming=_naming(), label=f"torchvision {name}", family=name,
    )  # fmt: skip


def _naming() -> Naming:
    """Bare trunks, FusionBench's models (`encoder.`, `decoders.`), torchvision's dense ones (`backbone.`)."""

    def elsewhere(name: str) -> bool:
        return name.startswith(("decoders.", "classifier.", "aux_classifier.", "fc."))

    return Naming(("module.",), (("", ""), ("encoder.", ""), ("backbone.", "")), elsewhere=elsewhere)
