"""The dense ResNet and its head must give what fusion-bench's NYUv2 model gives, from its own checkpoint."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from taskmerge.checkpoint.checkpoint import open_checkpoint
from taskmerge.models.backbones import build
from taskmerge.models.fill import fill
from taskmerge.models.heads import load_head
from taskmerge.specs.suite import BackboneSpec, Task

pytestmark = pytest.mark.rivals

SCRIPT = """
from torch import nn
from fusion_bench.models.nyuv2.aspp import DeepLabHead
from fusion_bench.models.nyuv2.lightning_module import NYUv2Model
from fusion_bench.models.nyuv2.resnet_dilated import resnet_dilated

torch.manual_seed(0)
decoders = nn.ModuleDict({"segmentation": DeepLabHead(2048, 13), "depth": DeepLabHead(2048, 1)})
model = NYUv2Model(resnet_dilated("resnet50", pretrained=False), decoders).eval()
model.image_size = tuple(given["pixels"].shape[1:3])
with torch.no_grad():
    maps = model(given["pixels"].permute(0, 3, 1, 2) / 255)
result.update({f"model.{name}": tensor for name, tensor in model.state_dict().items()})
result.update({f"maps.{name}": tensor for name, tensor in maps.items()})
"""


def test_maps_are_fusion_benchs(rival: Callable[..., dict[str, Tensor]], tmp_path: Path) -> None:
    pixels = torch.randint(0, 256, (2, 48, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = rival(SCRIPT, {"pixels": pixels})
    state = {name.removeprefix("model."): one for name, one in found.items() if name.startswith("model.")}
    save_file(state, tmp_path / "model.safetensors")
    expert = open_checkpoint(tmp_path / "model.safetensors")
    place: Callable[[Any], Any] = lambda one: one  # noqa: E731 - a hub is not needed here
    backbone = build(BackboneSpec("torchvision", "resnet50"), resolve=place)
    fill(backbone, expert)
    with torch.inference_mode():
        features = backbone.module(backbone.prepare(list(pixels.numpy())))
        for name, outputs in {"segmentation": 13, "depth": 1}.items():
            classes = tuple(map(str, range(outputs))) if outputs > 1 else ()
            task = Task(name, None, "expert", name, "miou", classes)  # type: ignore[arg-type]
            maps = load_head(task, backbone, resolve=place, expert=expert)(features)
            torch.testing.assert_close(maps, found[f"maps.{name}"].squeeze(1), atol=1e-4, rtol=1e-4)
