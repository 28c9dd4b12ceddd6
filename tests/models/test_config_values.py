"""Configurations of models with a wrong value in every place: refused in a moment, before anything is built."""

import copy
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from model_cases import CLIP, PREPROCESS, SMALL, clip_spec, local
from safetensors.torch import save_file

from taskmerge.errors import BadFile, NotEnough, TaskmergeError
from taskmerge.models.backbones import build
from taskmerge.models.config_values import MOST_LAYERS, check_fits, check_layers, check_sizes, square, triple
from taskmerge.specs.suite import BackboneSpec

WRONG = {
    "null": None, "true": True, "zero": 0, "negative": -3, "fraction": 1.5, "text": "x", "number text": "16",
    "huge": 10**7, "larger": 10**30, "empty list": [], "list": ["x"], "nested": [[[-1]]], "empty map": {},
    "map": {"x": 1}, "nan": float("nan"),
}  # fmt: skip
VIT = {
    "model_type": "vit", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
    "image_size": 16, "patch_size": 8, "num_channels": 3,
}  # fmt: skip
BERT = {"model_type": "bert", "type_vocab_size": 2, "pad_token_id": 0, **SMALL}
PROCESSOR = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "resample": 3, "do_center_crop": True}


def places(document: object, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(document, dict):
        for key, value in document.items():
            yield (*above, key)
            yield from places(value, (*above, key))


def replaced(document: dict[str, Any], place: tuple[str, ...], value: object) -> dict[str, Any]:
    found = copy.deepcopy(document)
    inner = found
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return found


def tried(spec: BackboneSpec) -> TaskmergeError | None:
    """The error with which a backbone is refused, within a time in which nothing large can be built."""
    start = time.process_time()
    error = None
    try:
        build(spec, resolve=local)
    except TaskmergeError as caught:
        error = caught
    assert time.process_time() - start < 10
    return error


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize("place", list(places(CLIP)), ids=".".join)
def test_open_clip(tmp_path: Path, place: tuple[str, ...], what: str) -> None:
    spec = clip_spec(tmp_path)
    (tmp_path / "model.json").write_text(json.dumps(replaced(CLIP, place, WRONG[what])))
    error = tried(spec)
    assert error is None or error.exit_code in (3, 4)
    if place[-1] in ("width", "layers", "patch_size") and what in ("zero", "negative", "huge", "empty list", "text"):
        assert f"`{place[-1]}` is a whole number" in str(error)


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize("place", list(places(VIT)), ids=".".join)
def test_pictures_of_transformers(tmp_path: Path, place: tuple[str, ...], what: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(replaced(VIT, place, WRONG[what])))
    error = tried(BackboneSpec("transformers", tmp_path, preprocess=PREPROCESS))
    assert error is None or error.exit_code in (2, 3, 4)
    if place != ("model_type",) and what in ("zero", "negative", "huge", "text", "empty list"):
        assert isinstance(error, BadFile)
        assert "config.json" in str(error)


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize("place", list(places(PROCESSOR)), ids=".".join)
def test_preprocessing_of_transformers(tmp_path: Path, place: tuple[str, ...], what: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(VIT))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(replaced(PROCESSOR, place, WRONG[what])))
    error = tried(BackboneSpec("transformers", tmp_path))
    assert error is None or isinstance(error, BadFile)
    if place[0].startswith("image_"):
        assert f"`{place[0]}` is a list of three numbers" in str(error)


@pytest.mark.parametrize("what", ["zero", "negative", "huge", "text", "empty list"])
@pytest.mark.parametrize("key", sorted(SMALL))
def test_texts_of_transformers(tmp_path: Path, key: str, what: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(BERT | {key: WRONG[what]}))
    error = tried(BackboneSpec("transformers", tmp_path))
    assert error is not None
    # positions and vocabularies of ten millions may be: this machine has room for those of so narrow a model, or not
    assert error.exit_code in ((3, 5) if what == "huge" else (3,))


def test_layers_by_the_million_are_refused_whatever_they_are_called() -> None:
    for key in ("num_hidden_layers", "layers", "depth", "n_layer", "depths"):
        for document in ({key: 10**7}, {"vision_config": {key: 10**7}}, {"towers": [{key: [2, 10**7]}]}):
            with pytest.raises(BadFile, match=f"`{key}` is a whole number from 1 to {MOST_LAYERS:,}"):
                check_sizes(document, "config.json")


@pytest.mark.parametrize(
    ("said", "there", "fine"), [(201, 12, False), (999, 201, False), (201, 201, True), (200, 1, True)]
)
def test_unusually_many_layers_are_those_of_the_weights_beside_them(
    tmp_path: Path, said: int, there: int, fine: bool
) -> None:
    names = [f"encoder.layer.{number}.weight" for number in range(there)]
    save_file({name: torch.zeros(1) for name in names}, tmp_path / "model.safetensors")
    for document in ({"num_hidden_layers": said}, {"vision_cfg": {"layers": [2, said]}}):
        if fine:
            check_layers(document, tmp_path, "config.json")
        else:
            with pytest.raises(BadFile, match=f"says {said} layers, the weights beside it have {there}"):
                check_layers(document, tmp_path, "config.json")
        check_layers(document, tmp_path / "elsewhere", "config.json")


def test_what_real_configurations_say_is_let_through() -> None:
    check_sizes(
        {
            "layers": [3, 4, 6, 3], "depths": [2, 2, 18, 2], "image_size": [224, 160], "num_key_value_heads": None,
            "no_repeat_ngram_size": 0, "type_vocab_size": 0, "layer_types": ["full"], "head_dim": None,
            "vocab_size": 262144,
        },
        "config.json",
    )  # fmt: skip


def test_a_model_without_room_is_refused_before_it_is_built(tmp_path: Path) -> None:
    from torch import nn

    with pytest.raises(NotEnough, match="more than this machine has memory"):
        check_fits(lambda: nn.Linear(1 << 24, 1 << 24), "config.json")
    (tmp_path / "config.json").write_text(json.dumps(BERT | {"vocab_size": 1 << 24, "hidden_size": 1 << 18}))
    error = tried(BackboneSpec("transformers", tmp_path))
    assert isinstance(error, NotEnough)


def test_sizes_and_triples() -> None:
    assert square(8, "") == (8, 8)
    assert square([8, 4], "") == (8, 4)
    assert triple({"mean": [0, 0.5, 1]}, "mean", "") == (0.0, 0.5, 1.0)
    for bad in (None, [], [1, 2, 3], 0, True, "8", 1.0):
        with pytest.raises(BadFile):
            square(bad, "")
