"""open_clip backbones against open_clip itself: preprocessing, features, names, tokenizers, bad configurations."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from model_cases import CLIP, PREPROCESS, clip_model, clip_spec, local, pictures, saved, split_clip
from PIL import Image

from taskmerge.checkpoint.checkpoint import open_checkpoint
from taskmerge.errors import BadFile, Mismatch, TaskmergeError, UsageError
from taskmerge.models.backbones import build
from taskmerge.models.encode import encode
from taskmerge.models.fill import fill
from taskmerge.specs.suite import BackboneSpec, Preprocess


@pytest.mark.parametrize("size", [(16, 16), (16, 23), (40, 20), (7, 9)])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
def test_features_are_those_of_open_clips_own_preprocess_and_encode_image(
    tmp_path: Path, size: tuple[int, int], mode: str
) -> None:
    model, backbone = clip_model(), build(clip_spec(tmp_path), resolve=local)
    fill(backbone, open_checkpoint(saved(tmp_path / "full.safetensors", model.state_dict())))
    given = [Image.fromarray(one).convert(mode) for one in pictures(3, *size)]
    preprocess = open_clip.image_transform(16, is_train=False, mean=PREPROCESS.mean, std=PREPROCESS.std)
    with torch.inference_mode():
        expected = model.encode_image(torch.stack([preprocess(one) for one in given]))
        found = backbone.module(backbone.prepare(given))
    assert torch.equal(found, expected)
    assert backbone.normalised
    assert backbone.width == found.shape[1] == 12


def in_float64(given: np.ndarray) -> torch.Tensor:
    """Pictures [N, H, W, 3] as open_clip normalises them, computed in float64."""
    values = (given.astype(np.float64) / 255 - PREPROCESS.mean) / PREPROCESS.std
    return torch.from_numpy(values.transpose(0, 3, 1, 2))


def test_features_of_a_float64_model_are_as_exact_as_that(tmp_path: Path) -> None:
    model, backbone, given = clip_model(), build(clip_spec(tmp_path), resolve=local), pictures(3)
    fill(backbone, open_checkpoint(saved(tmp_path / "full.safetensors", model.state_dict())))
    found = encode(backbone.module.double(), backbone.prepare(given), batch_size=2, device=torch.device("cpu"))
    with torch.no_grad():
        expected = model.double().encode_image(in_float64(given))
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, atol=1e-13, rtol=1e-12)


def test_gradients_of_a_float64_model_are_slopes(tmp_path: Path) -> None:
    """Along one direction of all weights, against central differences."""
    model, backbone = clip_model(), build(clip_spec(tmp_path), resolve=local)
    fill(backbone, open_checkpoint(saved(tmp_path / "full.safetensors", model.state_dict())))
    module, inputs = backbone.module.double().requires_grad_(True), backbone.prepare(pictures(2))
    generator = torch.Generator().manual_seed(0)
    ways = [torch.randn(one.shape, generator=generator, dtype=one.dtype) for one in module.parameters()]
    module(inputs).square().sum().backward()
    slope = sum(float((one.grad * way).sum()) for one, way in zip(module.parameters(), ways, strict=True))
    values = []
    with torch.no_grad():
        for step in (1e-6, -2e-6):
            for one, way in zip(module.parameters(), ways, strict=True):
                one.add_(way, alpha=step)
            values.append(float(module(inputs).square().sum()))
    assert slope == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-6)


def test_arrays_and_pictures_are_the_same_inputs(tmp_path: Path) -> None:
    prepare = build(clip_spec(tmp_path), resolve=local).prepare
    for arrays in (pictures(3), pictures(3, 30, 19)):
        of_pictures = prepare([Image.fromarray(one) for one in arrays])["pixels"]
        assert of_pictures.dtype == torch.uint8
        assert of_pictures.shape == (3, 3, 16, 16)
        assert torch.equal(prepare(arrays)["pixels"], of_pictures)
    assert prepare([])["pixels"].shape == (0, 3, 16, 16)


@pytest.mark.parametrize("raw", [["a film"], [("a", "film")]])
def test_texts_are_a_mismatch(tmp_path: Path, raw: list[object]) -> None:
    with pytest.raises(Mismatch, match="texts"):
        build(clip_spec(tmp_path), resolve=local).prepare(raw)


@pytest.mark.parametrize("raw", [np.zeros((1, 16, 16, 4), np.uint8), np.full((1, 16, 16, 3), 0.5), np.zeros((1, 5))])
def test_what_is_no_picture_is_named(tmp_path: Path, raw: np.ndarray) -> None:
    with pytest.raises(BadFile, match="item 0"):
        build(clip_spec(tmp_path), resolve=local).prepare(raw)


def test_a_suite_cannot_change_another_of_the_same_file_name(tmp_path: Path) -> None:
    first = build(clip_spec(tmp_path / "a"), resolve=local)
    names, paths = open_clip.list_models(), list(open_clip.factory._MODEL_CONFIG_PATHS)
    second = build(clip_spec(tmp_path / "b", embed_dim=20), resolve=local)
    assert (first.width, second.width) == (12, 20)
    assert build(clip_spec(tmp_path / "a"), resolve=local).width == 12
    assert (open_clip.list_models(), open_clip.factory._MODEL_CONFIG_PATHS) == (names, paths)


def test_building_leaves_random_numbers_alone(tmp_path: Path) -> None:
    spec = clip_spec(tmp_path)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    build(spec, resolve=local)
    assert torch.equal(torch.rand(1), expected)


def test_a_registered_model_brings_its_preprocessing() -> None:
    backbone = build(BackboneSpec("open_clip", "RN50"), resolve=local)  # built without weights, from its name
    assert backbone.width == 1024
    assert (backbone.module.mean, backbone.module.std) == (
        open_clip.OPENAI_DATASET_MEAN,
        open_clip.OPENAI_DATASET_STD,
    )
    assert backbone.prepare(pictures(1, 300, 250))["pixels"].shape == (1, 3, 224, 224)
    assert "visual.conv1.weight" in backbone.module.state_dict()
    assert not backbone.module.training


def test_siglip_squashes_as_its_published_weights_were_trained() -> None:
    from taskmerge.models.open_clip_models import _published

    settings = _published("ViT-B-16-SigLIP")
    assert (settings["resize_mode"], settings["mean"]) == ("squash", (0.5, 0.5, 0.5))
    assert "mean" not in _published("ViT-L-14")  # its weights disagree: open_clip's own default holds


def test_a_folder_with_open_clip_config_and_its_preprocessing(tmp_path: Path) -> None:
    cfg = {
        "model_cfg": CLIP,
        "preprocess_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "resize_mode": "squash"},
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps(cfg))
    backbone = build(BackboneSpec("open_clip", tmp_path), resolve=local)
    picture = Image.fromarray(pictures(1, 20, 40)[0])
    own = open_clip.image_transform(16, is_train=False, resize_mode="squash", mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    from taskmerge.models.pictures import normalised

    found = normalised(
        backbone.prepare([picture])["pixels"], backbone.module.mean, backbone.module.std, backbone.module
    )
    assert torch.equal(found[0], own(picture))


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        (None, BadFile, "no such file"),
        ("{", BadFile, "is not JSON"),
        ("[]", BadFile, "JSON object"),
        ('{"model_cfg": 3}', BadFile, "JSON object"),
        ('{"embed_dim": 1}', BadFile, "lacks vision_cfg, text_cfg"),
        ('{"embed_dim": 1, "vision_cfg": 1, "text_cfg": {}}', BadFile, "lacks vision_cfg"),
        (json.dumps({**CLIP, "vision_cfg": {"colour": 1}}), BadFile, "colour"),
    ],
)
def test_a_bad_configuration_is_named(
    tmp_path: Path, content: str | None, kind: type[TaskmergeError], message: str
) -> None:
    file = tmp_path / "model.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(kind, match=message) as caught:
        build(BackboneSpec("open_clip", file), resolve=local)
    assert "model.json" in caught.value.message


def test_an_unknown_name_says_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean `ViT-B-32`"):
        build(BackboneSpec("open_clip", "ViT-B32", place="suite.yaml:3:1"), resolve=local)


def test_another_size_of_pictures_is_a_mismatch(tmp_path: Path) -> None:
    spec = replace(clip_spec(tmp_path), preprocess=Preprocess(24, (0.5,) * 3, (0.5,) * 3))
    with pytest.raises(Mismatch, match=r"24 pixels .* \(16, 16\)"):
        build(spec, resolve=local)


def test_fused_and_split_layouts_give_the_same_features(tmp_path: Path) -> None:
    import transformers

    model = clip_model(seed=1)
    fused = build(clip_spec(tmp_path / "fused"), resolve=local)
    fill(fused, open_checkpoint(saved(tmp_path / "fused.safetensors", model.state_dict())))
    config = transformers.CLIPVisionConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128, image_size=16, patch_size=8,
        projection_dim=12, hidden_act="gelu",
    )  # fmt: skip
    config.save_pretrained(tmp_path / "split")
    split = build(BackboneSpec("transformers", tmp_path / "split", preprocess=PREPROCESS), resolve=local)
    fill(split, open_checkpoint(saved(tmp_path / "split.safetensors", split_clip(model.state_dict(), layers=2))))
    given = [Image.fromarray(one) for one in pictures(4, 21, 30)]
    with torch.inference_mode():
        ours, theirs = (one.module(one.prepare(given)) for one in (fused, split))
    assert fused.width == split.width
    assert fused.normalised
    assert split.normalised
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
