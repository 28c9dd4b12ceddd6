"""transformers backbones: pooling, tokenizing, padding, preprocessing, silence, and what is refused."""

import json
import shutil
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from model_cases import PREPROCESS, WORDS, config_of, local, pictures, randomised, saved, text_backbone, text_folder
from PIL import Image
from torch import Tensor

from taskmerge.checkpoint.checkpoint import open_checkpoint
from taskmerge.errors import BadFile, Mismatch, TaskmergeError, UsageError
from taskmerge.models.backbones import build
from taskmerge.models.contract import Backbone
from taskmerge.models.fill import fill
from taskmerge.models.transformers_models import pooled
from taskmerge.specs.suite import BackboneSpec, Pooling, Preprocess, Tokenizer

TEXTS = ["a film worth seeing", "bad", "the dog is a kind of animal", "dog dog dog"]


def test_pooling_is_its_definition_with_padding_on_either_side() -> None:
    hidden = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1]])
    rows = {"cls": [0, 0, 2], "last": [3, 1, 3]}
    for pooling in ("cls", "last"):
        expected = torch.stack([hidden[row, place] for row, place in enumerate(rows[pooling])])
        assert torch.equal(pooled(hidden, mask, pooling), expected)
    means = torch.stack([hidden[0].mean(0), hidden[1, :2].mean(0), hidden[2, 2:].mean(0)])
    torch.testing.assert_close(pooled(hidden, mask, "mean"), means)
    assert torch.equal(pooled(hidden, None, "last"), hidden[:, -1])


def own_features(model: Any, backbone: Backbone, texts: list[Any], pooling: Pooling) -> Tensor:
    """One text at a time, without padding, by the model and the tokenizer themselves."""
    rows = []
    for text in texts:
        pair = text if isinstance(text, tuple) else (text,)
        inputs = backbone.prepare.tokenizer(*pair, return_tensors="pt")  # type: ignore[attr-defined]
        hidden = model(**inputs).last_hidden_state[0]
        rows.append({"cls": hidden[0], "mean": hidden.mean(0), "last": hidden[-1]}[pooling])
    return torch.stack(rows)


@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2", "distilbert"])
def test_features_are_those_of_each_text_alone(tmp_path: Path, family: str, pooling: Pooling) -> None:
    backbone = text_backbone(tmp_path, family, pooling)
    model = randomised(transformers.AutoModel.from_config(config_of(family)))
    fill(backbone, open_checkpoint(saved(tmp_path / "model.safetensors", model.state_dict())))
    inputs = backbone.prepare(TEXTS)
    assert {one.dtype for one in inputs.values()} == {torch.int32}
    with torch.inference_mode():
        found, expected = backbone.module(inputs), own_features(model, backbone, TEXTS, pooling)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert backbone.width == 16
    assert not backbone.normalised


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2"])
def test_pairs_of_texts_are_read_as_the_tokenizer_reads_pairs(tmp_path: Path, family: str) -> None:
    backbone = text_backbone(tmp_path, family, "mean")
    model = randomised(transformers.AutoModel.from_config(config_of(family)))
    fill(backbone, open_checkpoint(saved(tmp_path / "model.safetensors", model.state_dict())))
    pairs = [("a film", "bad"), ("the dog is", "a kind of dog")]
    with torch.inference_mode():
        expected = own_features(model, backbone, pairs, "mean")
        found = backbone.module(backbone.prepare(pairs))
        joined = backbone.module(backbone.prepare([" ".join(pair) for pair in pairs]))
    assert ("token_type_ids" in backbone.prepare(pairs)) == (family == "bert")
    assert torch.allclose(found, joined) == (family == "gpt2")  # which puts nothing between the two
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_columns_of_padding_are_cut_and_change_nothing(tmp_path: Path) -> None:
    backbone = text_backbone(tmp_path, "bert", "mean")
    randomised(backbone.module)
    seen = []
    embeddings = backbone.module.get_submodule("embeddings.word_embeddings")
    embeddings.register_forward_hook(lambda module, args, output: seen.append(args[0].shape[1]))
    inputs = backbone.prepare(TEXTS)
    with torch.inference_mode():
        whole = backbone.module(inputs)
        short = backbone.module({name: one[1:2] for name, one in inputs.items()})
    assert seen == [inputs["input_ids"].shape[1], 3]
    torch.testing.assert_close(short, whole[1:2], atol=1e-5, rtol=1e-5)


def test_an_empty_text_has_finite_features(tmp_path: Path) -> None:
    backbone = text_backbone(tmp_path, "gpt2")
    assert backbone.pooling == "last"
    with torch.inference_mode():
        assert bool(backbone.module(backbone.prepare(["", "a film"])).isfinite().all())
        assert bool(backbone.module(backbone.prepare([""])).isfinite().all())
    assert backbone.prepare([])["input_ids"].shape[0] == 0
    assert {name: one.tolist() for name, one in backbone.prepare([""]).items()} == {
        "input_ids": [[0]], "attention_mask": [[1]]
    }  # fmt: skip


def test_texts_are_cut_to_max_length(tmp_path: Path) -> None:
    backbone = text_backbone(tmp_path, "bert", max_length=5)
    assert backbone.prepare(TEXTS)["input_ids"].shape == (4, 5)
    long = text_backbone(tmp_path / "long", "bert").prepare(["a film " * 50])
    assert long["input_ids"].shape == (1, 20)  # the model's positions
    roberta = text_backbone(tmp_path / "roberta", "roberta").prepare(["a film " * 50])
    assert roberta["input_ids"].shape == (1, 19)  # which here start after the padding token's number
    with pytest.raises(UsageError, match=r"21.*20 positions"):
        text_backbone(tmp_path / "longer", "bert", max_length=21)


def test_the_key_tells_tokenizers_and_lengths_apart(tmp_path: Path) -> None:
    keys = [
        text_backbone(tmp_path / "a", "bert").prepare.key,
        text_backbone(tmp_path / "b", "bert", max_length=5).prepare.key,
        text_backbone(tmp_path / "c", "gpt2").prepare.key,
    ]
    assert len(set(keys)) == 3
    assert text_backbone(tmp_path / "d", "bert").prepare.key == keys[0]


@pytest.mark.parametrize(
    "raw", [[Image.new("RGB", (4, 4))], list(pictures(1)), ["a", ("a", "film")], [("a", "b", "c")]]
)
def test_what_is_no_text_is_a_mismatch(tmp_path: Path, raw: list[object]) -> None:
    with pytest.raises(Mismatch, match="reads texts"):
        text_backbone(tmp_path, "bert").prepare(raw)


def test_a_tokenizer_of_another_model_is_a_mismatch(tmp_path: Path) -> None:
    config = config_of("bert")
    config.vocab_size = len(WORDS) - 2
    backbone = build(BackboneSpec("transformers", text_folder(tmp_path, config)), resolve=local)
    with pytest.raises(Mismatch, match=f"counts to {len(WORDS) - 1}.*{len(WORDS) - 2} tokens"):
        backbone.prepare(["the"])


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2"])
def test_a_missing_tokenizer_is_one_error_that_names_the_folder(tmp_path: Path, family: str) -> None:
    folder = tmp_path / "model"
    config_of(family).save_pretrained(folder)
    with pytest.raises(BadFile, match="no tokenizer") as caught:
        build(BackboneSpec("transformers", folder), resolve=local)
    assert caught.value.where == str(folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(BadFile, match="no tokenizer"):
        build(BackboneSpec("transformers", folder), resolve=local)
    with pytest.raises(BadFile, match="no such folder"):
        build(BackboneSpec("transformers", folder, Tokenizer(folder=tmp_path / "none")), resolve=local)


def test_a_tokenizer_without_padding_needs_an_end(tmp_path: Path) -> None:
    folder = text_folder(tmp_path, config_of("gpt2"))
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            said = json.loads((folder / name).read_text())
            said.pop("eos_token", None)
            (folder / name).write_text(json.dumps(said))
    with pytest.raises(BadFile, match="neither a padding nor an end token"):
        build(BackboneSpec("transformers", folder), resolve=local)


def test_a_tokenizer_in_a_folder_of_its_own(tmp_path: Path) -> None:
    text_folder(tmp_path / "tokenizer", config_of("bert"))
    config_of("bert").save_pretrained(tmp_path / "model")
    spec = BackboneSpec("transformers", tmp_path / "model", Tokenizer(folder=tmp_path / "tokenizer"))
    assert build(spec, resolve=local).prepare(["a film"])["input_ids"].tolist() == [[2, 4, 5, 3]]


def bad(folder: Path, case: str) -> BackboneSpec:
    """A specification with one fault."""
    folder.mkdir()
    file = folder / "config.json"
    if case == "name":
        return BackboneSpec("transformers", "bert-base-uncased")
    if case != "no file":
        content = {
            "no json": "{", "no type": "{}", "unknown": '{"model_type": "abacus"}', "no list": "[]",
            "odd heads": '{"model_type": "bert", "hidden_size": 16, "num_attention_heads": 3}',
        }.get(case)  # fmt: skip
        file.write_text(content or json.dumps({"model_type": {"sound": "wav2vec2", "encoder-decoder": "t5"}[case]}))
    return BackboneSpec("transformers", folder)


@pytest.mark.parametrize(
    ("case", "kind"),
    [
        ("name", UsageError), ("no file", BadFile), ("no json", BadFile), ("no type", BadFile), ("unknown", BadFile),
        ("no list", BadFile), ("odd heads", BadFile), ("sound", UsageError), ("encoder-decoder", UsageError),
    ],
)  # fmt: skip
def test_what_is_no_encoder_is_refused(tmp_path: Path, case: str, kind: type[TaskmergeError]) -> None:
    with pytest.raises(kind) as caught:
        build(bad(tmp_path / "model", case), resolve=local)
    assert caught.value.hint


def vision_folder(folder: Path, config: Any, processor: dict[str, Any] | None) -> Path:
    config.save_pretrained(folder)
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


VIT_PROCESSOR = {
    "image_processor_type": "ViTImageProcessor", "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4],
    "size": {"height": 16, "width": 16}, "resample": 2, "do_resize": True, "do_rescale": True,
    "rescale_factor": 1 / 255, "do_normalize": True,
}  # fmt: skip
CLIP_PROCESSOR = {
    **VIT_PROCESSOR, "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 16}, "resample": 3,
    "do_center_crop": True, "crop_size": {"height": 16, "width": 16}, "do_convert_rgb": True,
}  # fmt: skip


def test_vit_gives_the_first_token_after_the_last_norm(tmp_path: Path) -> None:
    folder = vision_folder(tmp_path / "vit", config_of("vit"), VIT_PROCESSOR)
    model = randomised(transformers.ViTModel(config_of("vit"), add_pooling_layer=False))
    model.save_pretrained(folder)  # under the names that files have, which are not today's modules'
    backbone = build(BackboneSpec("transformers", folder), resolve=local)
    fill(backbone, open_checkpoint(folder))
    given = [Image.fromarray(one) for one in pictures(3)]
    processor = transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    with torch.inference_mode():
        expected = model(**processor(given, return_tensors="pt")).last_hidden_state[:, 0]
        found = backbone.module(backbone.prepare(given))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert (backbone.width, backbone.normalised) == (16, False)
    named = build(BackboneSpec("transformers", folder / "config.json"), resolve=local)  # its preprocessor beside it
    assert torch.equal(named.prepare(given)["pixels"], backbone.prepare(given)["pixels"])
    fill(named, open_checkpoint(folder))
    with torch.inference_mode():
        assert torch.equal(named.module(named.prepare(given)), found)


@pytest.mark.parametrize("processor", [VIT_PROCESSOR, CLIP_PROCESSOR])
def test_pictures_are_resized_as_the_folder_says(tmp_path: Path, processor: dict[str, Any]) -> None:
    folder = vision_folder(tmp_path / "vit", config_of("vit"), processor)
    backbone = build(BackboneSpec("transformers", folder), resolve=local)
    smooth = Image.fromarray(pictures(1, 6, 9)[0]).resize((45, 30), Image.Resampling.BICUBIC)
    own = transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True, do_normalize=False)
    expected = own(smooth, return_tensors="pt")["pixel_values"] * 255
    found = backbone.prepare([smooth])["pixels"].float()
    # torchvision's resize of tensors and PIL's, rounded to 8 bits, are a step or two apart
    torch.testing.assert_close(found, expected, atol=2.5, rtol=0)


def clip_config() -> Any:
    tower = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "projection_dim": 12}
    text = {**tower, "hidden_size": 16, "vocab_size": 40, "max_position_embeddings": 20, "bos_token_id": 2}
    vision = {**tower, "hidden_size": 16, "image_size": 16, "patch_size": 8}
    return transformers.CLIPConfig(
        text_config={**text, "eos_token_id": 3, "pad_token_id": 0}, vision_config=vision, projection_dim=12
    )


def test_clip_gives_image_embeddings_from_full_models_and_bare_towers(tmp_path: Path) -> None:
    folder = vision_folder(tmp_path / "clip", clip_config(), CLIP_PROCESSOR)
    full = randomised(transformers.CLIPModel(clip_config()))
    full.save_pretrained(folder)
    base = open_checkpoint(folder)
    backbone = build(BackboneSpec("transformers", folder), resolve=local)
    given = [Image.fromarray(one) for one in pictures(3)]
    values = backbone.prepare(given)
    state = {name: one for name, one in full.state_dict().items() if name.startswith("vision_model.")}
    bare = {name.removeprefix("vision_model."): one for name, one in state.items()}
    processor = transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    with torch.inference_mode():
        inputs = processor(given, return_tensors="pt")
        tower = full.vision_model(**inputs)
        expected = full.visual_projection(tower.pooler_output)
        for name, tensors in {"full": full.state_dict(), "tower": state, "bare": bare}.items():
            randomised(backbone.module, seed=9)
            fill(backbone, open_checkpoint(saved(tmp_path / f"{name}.safetensors", tensors)), base)
            torch.testing.assert_close(backbone.module(values), expected, atol=1e-5, rtol=1e-5)
    pixels = (pictures(3) / 255 - CLIP_PROCESSOR["image_mean"]) / CLIP_PROCESSOR["image_std"]
    with torch.no_grad():
        tower = full.double().vision_model(pixel_values=torch.from_numpy(pixels.transpose(0, 3, 1, 2)))
        expected = full.visual_projection(tower.pooler_output)
        torch.testing.assert_close(backbone.module.double()(values), expected, atol=1e-13, rtol=1e-12)
    assert backbone.normalised
    with pytest.raises(UsageError, match="pooling"):
        build(BackboneSpec("transformers", folder, pooling="mean"), resolve=local)


def test_clips_text_tower_embeds_prompts(tmp_path: Path) -> None:
    folder = vision_folder(tmp_path / "clip", clip_config(), CLIP_PROCESSOR)
    shutil.copy(text_folder(tmp_path / "words", config_of("bert")) / "tokenizer.json", folder)
    shutil.copy(tmp_path / "words" / "tokenizer_config.json", folder)
    full = randomised(transformers.CLIPModel(clip_config()))
    backbone = build(BackboneSpec("transformers", folder), resolve=local)
    assert backbone.text is not None
    embedded, scale = backbone.text(full.state_dict(), ["a film", "the dog is bad"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    with torch.no_grad():
        inputs = tokenizer(["a film", "the dog is bad"], padding=True, return_tensors="pt")
        inputs.pop("token_type_ids", None)
        expected = full.text_projection(full.text_model(**inputs).pooler_output)
    torch.testing.assert_close(embedded, expected, atol=1e-5, rtol=1e-5)
    assert scale == pytest.approx(full.logit_scale.exp().item())


def test_how_pictures_are_normalised_must_be_known(tmp_path: Path) -> None:
    folder = vision_folder(tmp_path / "vit", config_of("vit"), None)
    with pytest.raises(UsageError, match="normalised"):
        build(BackboneSpec("transformers", folder), resolve=local)
    spec = BackboneSpec("transformers", folder, preprocess=PREPROCESS)
    assert build(spec, resolve=local).prepare(pictures(2))["pixels"].shape == (2, 3, 16, 16)
    with pytest.raises(Mismatch, match="24 pixels"):
        build(replace(spec, preprocess=Preprocess(24, (0.5,) * 3, (0.5,) * 3)), resolve=local)
    with pytest.raises(Mismatch, match="texts"):
        build(spec, resolve=local).prepare(["a film"])


def test_nothing_is_asked_of_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket.socket, "connect", lambda *args: pytest.fail(f"connected to {args[1:]}"))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **more: pytest.fail(f"looked up {args}"))
    for family in ("bert", "gpt2"):
        text_backbone(tmp_path / family, family).prepare(TEXTS)
    folder = vision_folder(tmp_path / "vit", config_of("vit"), VIT_PROCESSOR)
    build(BackboneSpec("transformers", folder), resolve=local)


def test_nothing_is_printed_and_settings_stay(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from transformers.utils import logging

    logging.set_verbosity_warning()
    config = config_of("gpt2")
    config.bos_token_id = config.eos_token_id = 50256  # outside the vocabulary: transformers warns of it
    folder = text_folder(tmp_path, config)
    capfd.readouterr()
    backbone = build(BackboneSpec("transformers", folder), resolve=local)
    backbone.module(backbone.prepare(["a film " * 60]))
    assert capfd.readouterr() == ("", "")
    assert logging.get_verbosity() == logging.WARNING
    assert logging.is_progress_bar_enabled()
