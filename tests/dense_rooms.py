"""A suite of segmentation, depth and normals of one ResNet-50, as NYUv2 has them, on a few random pictures."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
import yaml
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import nn
from torchvision.models.segmentation.deeplabv3 import DeepLabHead

CLASSES = 4
COUNT, HEIGHT, WIDTH = 5, 24, 32
KINDS = {
    "segmentation": ("segmentation", "miou", CLASSES),
    "depth": ("depth", "abs_error", 1),
    "normal": ("normals", "angle", 3),
}
TASKS = tuple(KINDS)


def trunk(seed: int) -> Any:
    """torchvision's ResNet-50, dilated, with statistics that are not 0 and 1."""
    torch.manual_seed(seed)
    model = torchvision.models.get_model("resnet50", weights=None, replace_stride_with_dilation=[False, True, True])
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.8, 1.2)
    del model.fc, model.avgpool
    return model.eval()


def labels() -> dict[str, NDArray[Any]]:
    """Maps with pixels that nothing is known of: -1 and 255, depth 0, the zero vector."""
    random = np.random.default_rng(1)
    classes = random.integers(0, CLASSES, (COUNT, HEIGHT, WIDTH))
    depth = random.uniform(0.5, 9.0, (COUNT, 1, HEIGHT, WIDTH)).astype(np.float32)
    normal = random.normal(size=(COUNT, 3, HEIGHT, WIDTH)).astype(np.float32)
    unknown = random.random((COUNT, HEIGHT, WIDTH)) < 0.2
    classes[unknown] = np.where(random.random(int(unknown.sum())) < 0.5, -1, 255)
    depth[unknown[:, None]] = 0
    normal[np.broadcast_to(unknown[:, None], normal.shape)] = 0
    return {"segmentation": classes, "depth": depth, "normal": normal}


def images() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (COUNT, HEIGHT, WIDTH, 3), dtype=np.uint8)


def write_rooms(path: Path) -> None:
    """A base, three experts (of half precision, under public names), a head each, and the suite: 230 MB."""
    base = {name: one for name, one in trunk(0).state_dict().items() if "num_batches" not in name}
    save_file(base, path / "base.safetensors")
    (path / "heads").mkdir()
    for seed, (task, (_, _, outputs)) in enumerate(KINDS.items(), 1):
        own = {
            name: one if "layer1" in name else base[name]
            for name, one in trunk(seed).state_dict().items()
            if name in base
        }
        save_file({f"encoder.{name}": one.half() for name, one in own.items()}, path / f"{task}.safetensors")
        torch.manual_seed(seed)
        save_file(DeepLabHead(2048, outputs).state_dict(), path / "heads" / f"{task}.safetensors")
    np.savez(path / "data.npz", image=images(), **labels())
    tasks = {
        name: {
            "expert": f"{name}.safetensors", "head": f"heads/{name}.safetensors", "kind": kind, "metric": metric,
            **({"classes": [f"class {n}" for n in range(CLASSES)]} if kind == "segmentation" else {}),
            "data": {"test": {"file": "data.npz", "x": "image", "y": name}},
        }
        for name, (kind, metric, _) in KINDS.items()
    }  # fmt: skip
    backbone = {"library": "torchvision", "model": "resnet50"}
    suite = {"taskmerge": 1, "name": "rooms", "backbone": backbone, "base": "base.safetensors", "tasks": tasks}
    (path / "suite.yaml").write_text(yaml.safe_dump(suite, sort_keys=False))
