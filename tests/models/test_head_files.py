"""Heads as files: what is written is read back, to the same outputs, for every head that a suite can have."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from model_cases import clip_model, clip_spec, config_of, local, randomised, saved, text_backbone
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from taskmerge.checkpoint.checkpoint import open_checkpoint
from taskmerge.errors import BadFile, BadNumber, BadOutput, Mismatch
from taskmerge.models.backbones import build
from taskmerge.models.contract import Backbone
from taskmerge.models.dense import DenseHead, dense_head
from taskmerge.models.head_files import head_tensors, write_head
from taskmerge.models.heads import CLASSIFIERS, HiddenHead, LinearHead, load_head
from taskmerge.specs.suite import Task, TaskKind

HIDDEN_FAMILIES = sorted(family for family, one in CLASSIFIERS.items() if one.hidden)


def task(head: Any, kind: TaskKind = "classification", classes: int = 3) -> Task:
    return Task("colours", None, head, kind, "accuracy", tuple(map(str, range(classes))), place="suite.yaml:7:3")


def plain(width: int, *, normalised: bool = False) -> Backbone:
    return Backbone(nn.Identity(), prepare=None, width=width, normalised=normalised)  # type: ignore[arg-type]  # unused


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


def hidden_head(activation: str = "tanh", bias: bool = True, seed: int = 0) -> HiddenHead:
    """Of features of 6 numbers, with 4 in between, for 3 classes."""
    generator = torch.Generator().manual_seed(seed)
    output = LinearHead(
        torch.randn(3, 4, generator=generator), torch.randn(3, generator=generator) if bias else None,
        normalise=False, regression=False,
    )  # fmt: skip
    hidden = nn.Linear(6, 4)
    with torch.no_grad():
        hidden.weight.copy_(torch.randn(4, 6, generator=generator))
        hidden.bias.copy_(torch.randn(4, generator=generator))
    return HiddenHead(hidden, activation, output)  # type: ignore[arg-type]  # some are wrong on purpose


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("regression", [True, False])
def test_a_linear_head_comes_back(tmp_path: Path, normalised: bool, bias: bool, regression: bool) -> None:
    outputs, file = 1 if regression else 3, tmp_path / "heads" / "colours.safetensors"
    weight, offset = torch.randn(outputs, 5), torch.randn(outputs) if bias else None
    head = LinearHead(weight, offset, normalise=normalised, regression=regression)
    write_head(file, head)
    assert set(load_file(file)) == ({"weight", "bias"} if bias else {"weight"})
    kind: TaskKind = "regression" if regression else "classification"
    found = load_head(task(file, kind, 0 if regression else 3), plain(5, normalised=normalised), resolve=local)
    features = torch.randn(4, 5)
    assert torch.equal(found(features), head(features))


def test_a_zero_shot_head_comes_back(tmp_path: Path) -> None:
    backbone = build(clip_spec(tmp_path), resolve=local)
    base = open_checkpoint(saved(tmp_path / "base.safetensors", clip_model().state_dict()))
    own = Task("colours", None, "zero_shot", "classification", "accuracy", ("red", "dog", "a"), templates=("the {}",))
    head = load_head(own, backbone, resolve=local, base=base)
    write_head(tmp_path / "head.safetensors", head)  # type: ignore[arg-type]  # every head of ours is a module
    found, features = load_head(task(tmp_path / "head.safetensors"), backbone, resolve=local), torch.randn(4, 12)
    assert torch.equal(found(features), head(features))


@pytest.mark.parametrize("family", HIDDEN_FAMILIES)
@pytest.mark.parametrize("outputs", [3, 1])
def test_an_experts_classifier_comes_back(tmp_path: Path, family: str, outputs: int) -> None:
    """RoBERTa's, DistilBERT's and others': the file needs no expert, and serves any encoder of that width."""
    config = config_of(family)
    config.num_labels = outputs
    model = randomised(transformers.AutoModelForSequenceClassification.from_config(config))
    expert = open_checkpoint(saved(tmp_path / "expert.safetensors", model.state_dict()))
    backbone, file = text_backbone(tmp_path / "suite", family), tmp_path / "head.safetensors"
    kind: TaskKind = "regression" if outputs == 1 else "classification"
    classes = 0 if outputs == 1 else 3
    head: Any = load_head(task("expert", kind, classes), backbone, resolve=local, expert=expert)
    write_head(file, head)
    assert set(load_file(file)) == {"hidden.weight", "hidden.bias", "output.weight", "output.bias"}
    activation = CLASSIFIERS[family].activation
    assert metadata(file)["taskmerge"] == f'{{"activation":"{activation}","kind":"head"}}'
    for encoder in (backbone, plain(backbone.width), plain(backbone.width, normalised=True)):
        found, features = load_head(task(file, kind, classes), encoder, resolve=local), torch.randn(4, backbone.width)
        assert torch.equal(found(features), head(features))


@pytest.mark.parametrize("activation", ["tanh", "relu", "gelu"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_hidden_head_is_its_formula(tmp_path: Path, activation: str, bias: bool) -> None:
    write_head(tmp_path / "head.safetensors", hidden_head(activation, bias))
    found = load_head(task(tmp_path / "head.safetensors"), plain(6), resolve=local)
    tensors = {name: tensor.double() for name, tensor in load_file(tmp_path / "head.safetensors").items()}
    features = torch.randn(5, 6)
    inner = features.double() @ tensors["hidden.weight"].T + tensors["hidden.bias"]
    active = {
        "tanh": torch.tanh(inner), "relu": inner.clamp(min=0),
        "gelu": inner * 0.5 * (1 + torch.erf(inner / 2**0.5)),
    }[activation]  # fmt: skip
    expected = active @ tensors["output.weight"].T + tensors.get("output.bias", torch.zeros(3))
    torch.testing.assert_close(found(features).double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("kind", "outputs"), [("segmentation", 4), ("depth", 1), ("normals", 3)])
def test_a_dense_head_comes_back_with_its_statistics(tmp_path: Path, kind: TaskKind, outputs: int) -> None:
    from torchvision.models.segmentation.deeplabv3 import DeepLabHead

    torch.manual_seed(0)
    layers, file = DeepLabHead(8, outputs), tmp_path / "rooms.safetensors"
    for module in layers.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.8, 1.2)
            module.num_batches_tracked.fill_(7)
    with open_checkpoint(saved(tmp_path / "own.safetensors", layers.state_dict())) as own:
        head = dense_head(kind, 8, own, ("",))
    write_head(file, head)
    found: Any = load_head(task(file, kind, 4 if kind == "segmentation" else 0), plain(8), resolve=local)
    assert isinstance(found, DenseHead)
    assert head_tensors(found).keys() == head_tensors(head).keys() == layers.state_dict().keys()
    assert all(torch.equal(one, head_tensors(head)[name]) for name, one in head_tensors(found).items())
    assert int(head_tensors(found)["0.convs.0.1.num_batches_tracked"]) == 7
    features = torch.randn(2, 8, 3, 4)
    with torch.no_grad():
        assert torch.equal(found(features), head(features))
        expected = functional.interpolate(layers.eval()(features), scale_factor=8, mode="bilinear", align_corners=True)
        maps = {"depth": expected.squeeze(1), "normals": functional.normalize(expected, dim=1)}.get(kind, expected)
        assert torch.equal(found(features), maps)


def test_the_tensors_of_a_head_are_live() -> None:
    head = hidden_head()
    head_tensors(head)["output.weight"].zero_()
    assert not head.output.weight.any()
    with pytest.raises(TypeError, match="Identity is no head"):
        head_tensors(nn.Identity())


def test_equal_heads_give_equal_bytes_and_files_are_whole(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_head(tmp_path / f"{name}.safetensors", hidden_head().requires_grad_(True))
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()
    with pytest.raises(BadOutput, match="exists already"):
        write_head(tmp_path / "one.safetensors", hidden_head(seed=1))
    write_head(tmp_path / "one.safetensors", hidden_head(seed=1), overwrite=True)
    broken = hidden_head()
    broken.output.weight[0, 0] = float("nan")
    with pytest.raises(BadNumber, match=r"`output\.weight`"):
        write_head(tmp_path / "two.safetensors", broken, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.safetensors", "two.safetensors"]


def changed(path: Path, said: str | None = None, **tensors: Tensor | None) -> Path:
    """A hidden head's file with other tensors (None: without), and another entry in its metadata."""
    write_head(path, hidden_head(), overwrite=True)
    kept = {**load_file(path), **{name.replace("_", ".", 1): tensor for name, tensor in tensors.items()}}
    save_file(
        {name: tensor for name, tensor in kept.items() if tensor is not None}, path,
        metadata(path) if said is None else {"taskmerge": said},
    )  # fmt: skip
    return path


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"hidden_weight": torch.zeros(4, 7)}, r"\[4, 7\] for features of 6 numbers"),
        ({"hidden_weight": torch.zeros(24)}, r"\[24\] for features of 6 numbers"),
        ({"hidden_bias": torch.zeros(3)}, r"bias \[3\] for a weight \[4, 6\]"),
        ({"hidden_bias": torch.zeros(1)}, r"bias \[1\] for a weight \[4, 6\]"),
        ({"hidden_bias": None}, "this file has hidden.weight, output.bias, output.weight"),
        ({"output_weight": torch.zeros(3, 6)}, r"\[3, 6\] for features of 4 numbers"),
        ({"output_weight": torch.zeros(2, 4), "output_bias": torch.zeros(2)}, "2 outputs, task colours has 3 classes"),
        ({"output_bias": torch.zeros(2)}, r"bias \[2\]"),
        ({"output_weight": None}, "a head has `hidden.weight`, `hidden.bias`, `output.weight` and perhaps"),
        ({"colour": torch.zeros(1)}, "colour"),
    ],
)
def test_a_hidden_head_that_does_not_fit_is_a_mismatch(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    file = changed(tmp_path / "head.safetensors", **changes)
    with pytest.raises(Mismatch, match=says) as caught:
        load_head(task(file), plain(6), resolve=local)
    assert caught.value.exit_code == 4
    assert str(file) in str(caught.value.where)


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ('{"kind":"head"}', "whose metadata names no activation"),
        ('{"kind":"head","activation":"swish"}', "whose metadata names an unknown activation"),
        ('{"kind":"head","activation":["tanh"]}', "`activation` is malformed"),
        ("{", "metadata `taskmerge` is no JSON object"),
    ],
)
def test_a_hidden_head_says_its_activation(tmp_path: Path, said: str, says: str) -> None:
    file = changed(tmp_path / "head.safetensors", said)
    with pytest.raises(BadFile, match=says) as caught:
        load_head(task(file), plain(6), resolve=local)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("name", ["hidden_bias", "output_weight"])
def test_bad_numbers_in_a_hidden_head_are_named(tmp_path: Path, name: str) -> None:
    shape = (4,) if name == "hidden_bias" else (3, 4)
    file = changed(tmp_path / "head.safetensors", **{name: torch.full(shape, float("nan"))})
    with pytest.raises(BadFile, match=f"the head's `{name.replace('_', '.')}` holds NaN"):
        load_head(task(file), plain(6), resolve=local)
