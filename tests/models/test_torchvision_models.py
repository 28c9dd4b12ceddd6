"""Dense ResNets against torchvision's own DeepLab model, under the names of public multi-task checkpoints."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from model_cases import local, pictures, randomised, saved
from torch import Tensor
from torch.nn import functional

from taskmerge.checkpoint.checkpoint import Checkpoint, open_checkpoint
from taskmerge.errors import Mismatch, UsageError
from taskmerge.models.backbones import build
from taskmerge.models.contract import Backbone
from taskmerge.models.fill import fill
from taskmerge.models.heads import load_head
from taskmerge.specs.suite import BackboneSpec, Preprocess, Task, TaskKind


@pytest.fixture(scope="module")
def reference() -> Any:
    """torchvision's model: its trunk is dilated in the same way, its head is the papers' too."""
    model = torchvision.models.segmentation.deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=4)
    for tensor in model.buffers():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=torch.Generator().manual_seed(1)) + 0.5)
    return model.eval()


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return build(BackboneSpec("torchvision", "resnet50"), resolve=local)


def fusion_bench(reference: Any, *tasks: str) -> dict[str, Tensor]:
    """The reference's tensors as public NYUv2 models name them."""
    found = {f"encoder.{name}": one for name, one in reference.backbone.state_dict().items()}
    for task in tasks:
        found |= {f"decoders.{task}.{name}": one for name, one in reference.classifier.state_dict().items()}
    return found


@pytest.fixture(scope="module")
def model_file(reference: Any, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    path = tmp_path_factory.mktemp("dense") / "model.safetensors"
    return open_checkpoint(saved(path, fusion_bench(reference, "segmentation")))


def dense_task(head: Any, kind: TaskKind = "segmentation", classes: int = 4) -> Task:
    return Task("segmentation", None, head, kind, "miou", tuple(str(one) for one in range(classes)))


def test_maps_are_those_of_torchvisions_model(reference: Any, backbone: Backbone, model_file: Checkpoint) -> None:
    given = pictures(2, 32, 48)
    assert not backbone.normalised
    fill(backbone, model_file)
    head = load_head(dense_task("expert"), backbone, resolve=local, expert=model_file)
    values = torch.from_numpy(given).permute(0, 3, 1, 2) / 255
    with torch.inference_mode():
        features = backbone.module(backbone.prepare(given))
        own = reference.backbone(values)["out"]
        maps, expected = head(features), reference.classifier(own)
    torch.testing.assert_close(features, own)
    assert features.shape == (2, backbone.width, 4, 6)
    wanted = functional.interpolate(expected, (32, 48), mode="bilinear", align_corners=True)
    torch.testing.assert_close(maps, wanted, atol=1e-4, rtol=1e-4)


def test_a_trunk_of_another_precision_takes_its_pixels_in_that(backbone: Backbone) -> None:
    inputs = {name: one[:, :, :8, :8] for name, one in backbone.prepare(pictures(1, 8, 8)).items()}
    with torch.no_grad():
        for dtype in (torch.float64, torch.bfloat16):
            assert deepcopy(backbone.module).to(dtype)(inputs).dtype == dtype


@pytest.mark.parametrize("form", ["", "encoder.", "backbone.", "module."])
def test_trunks_fill_under_every_name(tmp_path: Path, reference: Any, backbone: Backbone, form: str) -> None:
    state = {name: one for name, one in reference.backbone.state_dict().items() if "num_batches" not in name}
    extra = {"fc.weight": torch.zeros(2, 2), "fc.bias": torch.zeros(2)} if form in ("", "module.") else {}
    wrapper = form if form == "module." else ""
    tensors = {form + name: one for name, one in state.items()} | {wrapper + name: one for name, one in extra.items()}
    randomised(backbone.module, seed=3)
    fill(backbone, open_checkpoint(saved(tmp_path / "x.safetensors", tensors)))
    found = backbone.module.state_dict()
    assert all(torch.equal(found[name], one) for name, one in state.items())
    assert all(one == 0 for name, one in found.items() if "num_batches" in name)


@pytest.mark.parametrize(("kind", "outputs"), [("depth", 1), ("normals", 3)])
def test_heads_from_files_give_depths_and_unit_normals(
    tmp_path: Path, backbone: Backbone, kind: TaskKind, outputs: int
) -> None:
    from torchvision.models.segmentation.deeplabv3 import DeepLabHead

    path = saved(tmp_path / "head.safetensors", DeepLabHead(2048, outputs).state_dict())
    head = load_head(dense_task(path, kind, classes=0), backbone, resolve=local)
    with torch.inference_mode():
        maps = head(torch.rand(2, 2048, 3, 4))
    assert maps.shape == ((2, 24, 32) if kind == "depth" else (2, 3, 24, 32))
    if kind == "normals":
        torch.testing.assert_close(maps.norm(dim=1), torch.ones(2, 24, 32))


def test_what_does_not_fit_is_said(tmp_path: Path, backbone: Backbone, model_file: Checkpoint) -> None:
    with pytest.raises(Mismatch, match="4 outputs, task segmentation has 13"):
        load_head(dense_task("expert", classes=13), backbone, resolve=local, expert=model_file)
    bare = open_checkpoint(saved(tmp_path / "bare.safetensors", {"conv1.weight": torch.zeros(1)}))
    with pytest.raises(Mismatch, match="no DeepLab head"):
        load_head(dense_task("expert"), backbone, resolve=local, expert=bare)
    with pytest.raises(Mismatch, match="multiples of 8"):
        backbone.prepare(pictures(1, 30, 32))
    with pytest.raises(Mismatch, match="picture 1 is 16x24"):
        backbone.prepare([*pictures(1, 16, 16), *pictures(1, 16, 24)])
    with pytest.raises(Mismatch, match="32x32"):
        build(
            BackboneSpec("torchvision", "resnet50", preprocess=Preprocess(16, (0.5,) * 3, (0.5,) * 3)), resolve=local
        ).prepare(pictures(2, 32, 32))
    with pytest.raises(UsageError, match="did you mean `resnet50`"):
        build(BackboneSpec("torchvision", "resnet5"), resolve=local)
    with pytest.raises(UsageError, match="pooling"):
        build(BackboneSpec("torchvision", "resnet50", pooling="mean"), resolve=local)


def test_several_decoders_are_told_apart_by_the_tasks_name(tmp_path: Path, reference: Any, backbone: Backbone) -> None:
    tensors = fusion_bench(reference, "segmentation", "other")
    tensors["decoders.other.4.bias"] = tensors["decoders.other.4.bias"] + 100
    expert = open_checkpoint(saved(tmp_path / "two.safetensors", tensors))
    head: Any = load_head(dense_task("expert"), backbone, resolve=local, expert=expert)
    assert torch.equal(head.layers[4].bias, tensors["decoders.segmentation.4.bias"])
