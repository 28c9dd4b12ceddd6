"""Heads: files, zero-shot against open_clip, experts' classifiers against transformers' own classes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import transformers
from model_cases import (
    PREPROCESS,
    clip_model,
    clip_spec,
    config_of,
    local,
    pictures,
    randomised,
    saved,
    text_backbone,
    text_folder,
)
from torch import Tensor
from torch.nn import functional

from taskmerge.checkpoint.checkpoint import open_checkpoint
from taskmerge.errors import BadFile, Mismatch, UsageError
from taskmerge.models.backbones import build
from taskmerge.models.contract import Backbone
from taskmerge.models.fill import fill
from taskmerge.models.heads import CLASSIFIERS, load_head
from taskmerge.specs.suite import BackboneSpec, Task, Tokenizer

TEXTS = ["a film worth seeing", "bad", "the dog is a kind of animal"]
COLOURS = ("red", "dog", "green thing")
TEMPLATES = ("a picture of {}", "the {}", "one {} alone", "{}")


def task(head: Any, kind: Any = "classification", classes: int | tuple[str, ...] = 3, **more: Any) -> Task:
    names = tuple(map(str, range(classes))) if isinstance(classes, int) else classes
    return Task("colours", None, head, kind, "accuracy", names, place="suite.yaml:7:3", **more)


def plain(width: int, *, normalised: bool) -> Backbone:
    return Backbone(torch.nn.Identity(), prepare=None, width=width, normalised=normalised)  # type: ignore[arg-type]


def head_file(folder: Path, weight: Tensor, bias: Tensor | None = None) -> Path:
    return saved(folder / "head.safetensors", {"weight": weight} | ({} if bias is None else {"bias": bias}))


@pytest.mark.parametrize("normalised", [True, False])
def test_a_file_head_is_its_formula(tmp_path: Path, normalised: bool) -> None:
    weight, bias, features = torch.randn(3, 5), torch.randn(3), torch.randn(4, 5)
    head = load_head(task(head_file(tmp_path, weight, bias)), plain(5, normalised=normalised), resolve=local)
    z = features / features.norm(dim=1, keepdim=True) if normalised else features
    torch.testing.assert_close(head(features), z @ weight.T + bias)
    file = head_file(tmp_path, weight.half(), bias.half())
    half = load_head(task(file), plain(5, normalised=normalised), resolve=local)
    torch.testing.assert_close(half(features), z @ weight.half().float().T + bias.half().float())


def test_a_regression_gives_one_value_an_item(tmp_path: Path) -> None:
    file = head_file(tmp_path, torch.ones(1, 5), torch.ones(1))
    head = load_head(task(file, "regression", 0), plain(5, normalised=False), resolve=local)
    assert head(torch.ones(2, 5)).tolist() == [6, 6]


@pytest.mark.parametrize(
    ("tensors", "kind", "message"),
    [
        ({"weight": torch.zeros(3, 4)}, "classification", r"\[3, 4\] for features of 5 numbers"),
        ({"weight": torch.zeros(4, 5)}, "classification", "4 outputs, task colours has 3 classes"),
        ({"weight": torch.zeros(3, 5)}, "regression", "3 outputs, task colours has 1"),
        ({"weight": torch.zeros(3, 5), "bias": torch.zeros(2)}, "classification", r"bias \[2\]"),
        ({"weight": torch.zeros(15)}, "classification", r"\[15\] for features"),
        ({"weight": torch.zeros(3, 5), "colour": torch.zeros(1)}, "classification", "colour"),
        ({"bias": torch.zeros(3)}, "classification", "`weight`"),
    ],
)
def test_a_head_that_does_not_fit_is_a_mismatch(
    tmp_path: Path, tensors: dict[str, Tensor], kind: str, message: str
) -> None:
    file = saved(tmp_path / "head.safetensors", tensors)
    with pytest.raises(Mismatch, match=message) as caught:
        load_head(task(file, kind), plain(5, normalised=False), resolve=local)
    assert str(file) in str(caught.value.where)


@pytest.mark.parametrize("wrapper", ["", "module."])
def test_zero_shot_is_open_clips(tmp_path: Path, wrapper: str) -> None:
    spec, model = clip_spec(tmp_path), clip_model()
    backbone = build(spec, resolve=local)
    state = {wrapper + name: one for name, one in model.state_dict().items()}
    base = open_checkpoint(saved(tmp_path / "base.safetensors", state))
    head: Any = load_head(task("zero_shot", classes=COLOURS, templates=TEMPLATES), backbone, resolve=local, base=base)
    tokenizer = open_clip.SimpleTokenizer(bpe_path=str(tmp_path / "bpe.txt.gz"), context_length=8)
    with torch.no_grad():
        own = open_clip.build_zero_shot_classifier(model, tokenizer, COLOURS, TEMPLATES).T * model.logit_scale.exp()
        features = torch.randn(4, 12)
        expected = functional.normalize(features, dim=1) @ own.T
    torch.testing.assert_close(head.weight, own, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(head(features), expected, atol=1e-5, rtol=1e-5)


def test_a_registered_models_tokenizer_is_open_clips() -> None:
    from taskmerge.models.open_clip_models import _model, _tokenizer

    for name in ("ViT-B-32", "RN50"):
        spec = BackboneSpec("open_clip", name)
        own = open_clip.get_tokenizer(name)(list(COLOURS))  # type: ignore[operator]
        assert torch.equal(_tokenizer(_model(spec, local), spec, local)(list(COLOURS)), own)
    siglip = BackboneSpec("open_clip", "ViT-B-16-SigLIP")
    with pytest.raises(UsageError, match="tokenizer timm/ViT-B-16-SigLIP"):
        _tokenizer(_model(siglip, local), siglip, local)
    foreign = BackboneSpec("open_clip", "roberta-ViT-B-32", Tokenizer(bpe=Path("any")))
    with pytest.raises(UsageError, match="tokenizer roberta-base"):
        _tokenizer(_model(foreign, local), foreign, local)


def test_zero_shot_says_what_it_lacks(tmp_path: Path) -> None:
    backbone = build(clip_spec(tmp_path), resolve=local)
    state = clip_model().state_dict()
    base = open_checkpoint(saved(tmp_path / "base.safetensors", state))
    tower = {name: one for name, one in state.items() if name.startswith("visual.")}
    bare = open_checkpoint(saved(tmp_path / "bare.safetensors", tower))
    good = task("zero_shot", classes=COLOURS, templates=TEMPLATES)
    with pytest.raises(UsageError, match="the base's text tower"):
        load_head(good, backbone, resolve=local)
    with pytest.raises(UsageError, match="`templates`") as caught:
        load_head(task("zero_shot", classes=COLOURS), backbone, resolve=local, base=base)
    assert caught.value.where == "suite.yaml:7:3"
    with pytest.raises(Mismatch, match="prompts have 12 numbers, features 13"):
        load_head(good, replace(backbone, width=13), resolve=local, base=base)
    with pytest.raises(UsageError, match="`classes`"):
        load_head(task("zero_shot", classes=0, templates=TEMPLATES), backbone, resolve=local, base=base)
    with pytest.raises(UsageError, match="text tower"):
        load_head(good, plain(12, normalised=True), resolve=local, base=base)
    with pytest.raises(Mismatch, match=r"lacks (\d+) of \1 tensors: .*, .* and \d+ more") as lacking:
        load_head(good, backbone, resolve=local, base=bare)
    assert lacking.value.where == str(tmp_path / "bare.safetensors")
    turned = {**state, "text_projection": state["text_projection"].T.reshape(12, 16)}
    with pytest.raises(Mismatch, match=r"`text_projection` is \[12, 16\], expected \[16, 12\]"):
        load_head(good, backbone, resolve=local, base=open_checkpoint(saved(tmp_path / "turned.safetensors", turned)))


def test_a_tokenizer_that_does_not_fit_or_cannot_be_read_is_named(tmp_path: Path) -> None:
    spec = clip_spec(tmp_path)
    backbone = build(replace(spec, tokenizer=None), resolve=local)
    base = open_checkpoint(saved(tmp_path / "base.safetensors", clip_model().state_dict()))
    with pytest.raises(Mismatch, match="49408 tokens, the text tower 516"):
        load_head(task("zero_shot", classes=COLOURS, templates=TEMPLATES), backbone, resolve=local, base=base)
    damaged = tmp_path / "damaged.txt.gz"
    damaged.write_bytes((tmp_path / "bpe.txt.gz").read_bytes()[:-9])
    for path in (damaged, tmp_path / "model.json", tmp_path / "none.txt.gz"):
        backbone = build(replace(spec, tokenizer=Tokenizer(bpe=path)), resolve=local)
        with pytest.raises(BadFile, match=r"no BPE file|no such file|is damaged") as caught:
            load_head(task("zero_shot", classes=COLOURS, templates=TEMPLATES), backbone, resolve=local, base=base)
        assert caught.value.where == str(path)
    (tmp_path / "empty.txt.gz").touch()  # no merges are a vocabulary too, of other numbers
    backbone = build(replace(spec, tokenizer=Tokenizer(bpe=tmp_path / "empty.txt.gz")), resolve=local)
    with pytest.raises(Mismatch, match="514 tokens, the text tower 516"):
        load_head(task("zero_shot", classes=COLOURS, templates=TEMPLATES), backbone, resolve=local, base=base)


@pytest.mark.parametrize("family", sorted(set(CLASSIFIERS) - {"vit"}))
@pytest.mark.parametrize("outputs", [3, 1])
def test_an_experts_classifier_gives_transformers_own_logits(tmp_path: Path, family: str, outputs: int) -> None:
    config = config_of(family)
    config.num_labels = outputs
    model = randomised(transformers.AutoModelForSequenceClassification.from_config(config))
    model.save_pretrained(tmp_path / "expert")
    expert = open_checkpoint(tmp_path / "expert")
    backbone = text_backbone(tmp_path / "suite", family)
    kind = "regression" if outputs == 1 else "classification"
    head = load_head(task("expert", kind, outputs if outputs > 1 else 0), backbone, resolve=local, expert=expert)
    fill(backbone, expert)
    inputs = backbone.prepare(TEXTS)
    with torch.inference_mode():
        expected = model(**{name: one.long() for name, one in inputs.items()}).logits
        found = head(backbone.module(inputs))
    torch.testing.assert_close(found, expected.squeeze(-1) if outputs == 1 else expected, atol=1e-5, rtol=1e-5)


def test_an_expert_vits_classifier_gives_transformers_own_logits(tmp_path: Path) -> None:
    config = config_of("vit")
    config.num_labels = 3
    model = randomised(transformers.ViTForImageClassification(config))
    model.save_pretrained(tmp_path)
    backbone = build(BackboneSpec("transformers", tmp_path, preprocess=PREPROCESS), resolve=local)
    expert = open_checkpoint(tmp_path)
    head = load_head(task("expert"), backbone, resolve=local, expert=expert)
    fill(backbone, expert)
    given = pictures(3)
    mean, std = (torch.tensor(one)[:, None, None] for one in (PREPROCESS.mean, PREPROCESS.std))
    with torch.inference_mode():
        expected = model((torch.from_numpy(given).permute(0, 3, 1, 2) / 255 - mean) / std).logits
        torch.testing.assert_close(head(backbone.module(backbone.prepare(given))), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["bert", "roberta"])  # with a linear layer, with a hidden one
@pytest.mark.parametrize("names", [["BLUE", "Red", "green"], ["2", "0", "1"], ["LABEL_0", "LABEL_1", "LABEL_2"]])
def test_an_experts_classes_are_matched_by_name(tmp_path: Path, family: str, names: list[str]) -> None:
    config = config_of(family)
    config.id2label, config.label2id = dict(enumerate(names)), {name: number for number, name in enumerate(names)}
    model = randomised(transformers.AutoModelForSequenceClassification.from_config(config))
    model.save_pretrained(tmp_path / "expert")
    backbone = text_backbone(tmp_path / "suite", family)
    expert = open_checkpoint(tmp_path / "expert")
    about = replace(task("expert"), classes=("red", "green", "blue"))
    head = load_head(about, backbone, resolve=local, expert=expert)
    fill(backbone, expert)
    inputs = backbone.prepare(TEXTS)
    with torch.inference_mode():
        expected = model(**{name: one.long() for name, one in inputs.items()}).logits
        found = head(backbone.module(inputs))
    order = {"BLUE": [1, 2, 0], "2": [1, 2, 0], "LABEL_0": [0, 1, 2]}[names[0]]
    torch.testing.assert_close(found, expected[:, order], atol=1e-5, rtol=1e-5)


def test_an_experts_other_classes_are_refused(tmp_path: Path) -> None:
    config = config_of("bert")
    config.id2label = {0: "red", 1: "green", 2: "yellow"}
    transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "expert")
    about = replace(task("expert"), classes=("red", "green", "blue"))
    expert, backbone = open_checkpoint(tmp_path / "expert"), text_backbone(tmp_path / "suite", "bert")
    with pytest.raises(BadFile, match="1 only there: `yellow`; 1 only in the task: `blue`") as caught:
        load_head(about, backbone, resolve=local, expert=expert)
    assert caught.value.where == str(tmp_path / "expert" / "config.json")


def test_an_experts_classifier_says_what_it_lacks(tmp_path: Path) -> None:
    config = config_of("roberta")
    config.num_labels = 3
    model = randomised(transformers.AutoModelForSequenceClassification.from_config(config))
    expert = open_checkpoint(saved(tmp_path / "expert.safetensors", model.state_dict()))
    bare = open_checkpoint(saved(tmp_path / "bare.safetensors", model.roberta.state_dict()))
    backbone = text_backbone(tmp_path / "suite", "roberta")
    with pytest.raises(UsageError, match="no expert"):
        load_head(task("expert"), backbone, resolve=local)
    with pytest.raises(Mismatch, match=r"no tensor `classifier\.dense\.weight`"):
        load_head(task("expert"), backbone, resolve=local, expert=bare)
    with pytest.raises(Mismatch, match="3 outputs, task colours has 2"):
        load_head(task("expert", classes=2), backbone, resolve=local, expert=expert)
    with pytest.raises(UsageError, match="pooling: cls"):
        load_head(task("expert"), text_backbone(tmp_path / "mean", "roberta", "mean"), resolve=local, expert=expert)
    clip = build(clip_spec(tmp_path / "clip"), resolve=local)
    with pytest.raises(UsageError, match=r"open_clip model\.json keeps its classifier is not known"):
        load_head(task("expert"), clip, resolve=local, expert=expert)


def test_heads_can_be_moved_saved_and_trained(tmp_path: Path) -> None:
    head: Any = load_head(task(head_file(tmp_path, torch.randn(3, 5))), plain(5, normalised=True), resolve=local)
    assert set(head.state_dict()) == {"weight"}
    assert not head.training
    head.requires_grad_(True)
    head(torch.randn(2, 5)).sum().backward()
    assert head.weight.grad is not None


def test_a_text_folder_is_made_for_every_family(tmp_path: Path) -> None:
    """The cases above would prove little if the tokenizer knew no word."""
    backbone = build(BackboneSpec("transformers", text_folder(tmp_path, config_of("bert"))), resolve=local)
    assert backbone.prepare(["a film worth"])["input_ids"].tolist() == [[2, 4, 5, 6, 3]]
