"""Code that comes with a model is never run, nor asked about: what works without it is used, the rest refused."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import transformers
from model_cases import SMALL, config_of, local, text_folder

from taskmerge.errors import BadFile
from taskmerge.models.backbones import build
from taskmerge.models.own_code import check_kernels, code_of, use_own_implementations
from taskmerge.models.tokens import load_tokenizer
from taskmerge.specs.suite import BackboneSpec

CODE = """
from pathlib import Path
Path(__file__).with_name("ran").write_text("{0}")
Path({1!r}).write_text("{0}")
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast
class OwnConfig(BertConfig):
    model_type = "own"
class OwnModel(BertModel):
    config_class = OwnConfig
class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""
SCRIPT = """
import sys
from pathlib import Path
from taskmerge.errors import TaskmergeError
from taskmerge.models.backbones import build
from taskmerge.specs.suite import BackboneSpec
try:
    build(BackboneSpec("transformers", Path(sys.argv[1])), resolve=lambda location: location)
except TaskmergeError as error:
    sys.stderr.write(error.message)
    sys.exit(error.exit_code)
"""


def changed(file: Path, **entries: Any) -> Path:
    """A JSON file with other entries."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))
    return file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """BERT and a tokenizer, with modules beside them that leave a mark where they are run."""
    folder = text_folder(tmp_path / "model", config_of("bert"))
    for name in ("configuration_own", "modeling_own", "tokenization_own"):
        (folder / f"{name}.py").write_text(CODE.format(name, str(tmp_path / "mark")))
    return folder


@pytest.fixture
def yes(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Somebody who says yes to anything; nothing may be asked, and nothing be run."""
    asked: list[str] = []

    def answer(question: str = "") -> str:
        asked.append(question)
        return "y"

    monkeypatch.setattr("builtins.input", answer)
    yield
    assert asked == []
    assert_untouched(folder)
    assert capsys.readouterr().out == ""


def assert_untouched(folder: Path) -> None:
    assert not (folder.parent / "mark").exists(), "the model's code has run"
    assert not list(folder.parent.rglob("ran"))


def test_a_configuration_that_needs_its_own_code(folder: Path) -> None:
    """In a process of its own, whose stdin says yes to anything."""
    auto_map = {"AutoConfig": "configuration_own.OwnConfig", "AutoModel": "modeling_own.OwnModel"}
    changed(folder / "config.json", auto_map=auto_map, model_type="own")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder)], input="y\n" * 9, capture_output=True, text=True, timeout=120,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder.parent / "home")},
    )  # fmt: skip
    assert_untouched(folder)
    assert (done.returncode, done.stdout) == (3, ""), done.stderr
    assert f"{folder}/config.json: needs code of its own (`configuration_own.OwnConfig`)" in done.stderr
    assert "trust_remote_code" not in done.stderr


@pytest.mark.parametrize("code", [[None, "tokenization_own.OwnTokenizer"], ["tokenization_own.OwnTokenizer", None]])
def test_a_tokenizer_that_needs_its_own_code(folder: Path, yes: None, code: list[str | None]) -> None:
    changed(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": code}, tokenizer_class="OwnTokenizer")
    (folder / "config.json").unlink()  # by whose type transformers would take another tokenizer
    with pytest.raises(BadFile, match=r"needs code of its own \(`tokenization_own\.OwnTokenizer`\)") as caught:
        load_tokenizer(folder)
    assert str(folder / "tokenizer_config.json") in caught.value.message


def test_what_transformers_has_itself_needs_no_other_code(folder: Path, yes: None) -> None:
    auto_map = {"AutoConfig": "configuration_own.OwnConfig", "AutoModel": "modeling_own.OwnModel"}
    changed(folder / "config.json", auto_map=auto_map | {"AutoModelForMaskedLM": "modeling_own.OwnModel"})
    changed(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]})
    backbone = build(BackboneSpec("transformers", folder), resolve=local)
    assert type(backbone.module) is transformers.BertModel
    assert not backbone.naming.elsewhere("nothing of it")  # which asks for the full models too


@pytest.mark.parametrize("key", ["_attn_implementation", "attn_implementation", "_experts_implementation"])
@pytest.mark.parametrize("value", ["org/kernel", "org/kernel@v1:attend", {"": "org/kernel"}, "paged|org/kernel"])
def test_kernels_of_a_hub_are_refused(folder: Path, key: str, value: Any) -> None:
    file = changed(folder / "config.json", **{key: value})
    with pytest.raises(BadFile, match="of a hub, which is never run") as caught:
        build(BackboneSpec("transformers", folder), resolve=local)
    assert f"{file}: `{key}`" in caught.value.message
    assert "org/kernel" in caught.value.message


def test_kernels_of_a_part_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"vision_config": {"layers": [{"_attn_implementation": "org/kernel"}]}}))
    with pytest.raises(BadFile, match="org/kernel"):
        check_kernels(file)
    for document in ("{", "[]", '{"_attn_implementation": "sdpa", "_name_or_path": "org/name"}'):
        file.write_text(document)
        check_kernels(file)


@pytest.mark.parametrize(
    ("asked", "used"),
    [
        (None, "sdpa"), ("sdpa", "sdpa"), ("eager", "eager"), ("flash_attention_2", "sdpa"), ("flex_attention", "sdpa"),
        ("paged|sdpa", "sdpa"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("key", ["_attn_implementation", "attn_implementation"])
def test_attention_is_torchs_own(folder: Path, key: str, asked: str | None, used: str) -> None:
    changed(folder / "config.json", **({key: asked} if asked else {}))
    backbone = build(BackboneSpec("transformers", folder), resolve=local)
    config: Any = backbone.module.config
    assert config._attn_implementation == used


def test_parts_of_a_configuration_keep_what_is_torchs(tmp_path: Path) -> None:
    config = transformers.CLIPConfig()
    config.vision_config._attn_implementation = "eager"
    config.text_config._attn_implementation = "flash_attention_3"
    use_own_implementations(config)
    assert config.vision_config._attn_implementation == "eager"
    assert config.text_config._attn_implementation is None


def test_a_picture_processor_that_needs_its_own_code(tmp_path: Path) -> None:
    config = transformers.ViTConfig(
        **{key: SMALL[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")},
        image_size=16, patch_size=8,
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    known = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "auto_map": {"AutoImageProcessor": "processing_own.Own"}}
    file.write_text(json.dumps({**known, "image_processor_type": "Own"}))
    with pytest.raises(BadFile, match=r"needs code of its own \(`processing_own\.Own`\)"):
        build(BackboneSpec("transformers", tmp_path), resolve=local)
    file.write_text(json.dumps({**known, "image_processor_type": "ViTImageProcessor"}))
    assert build(BackboneSpec("transformers", tmp_path), resolve=local).width == 16


@pytest.mark.parametrize(
    ("named", "code"),
    [
        ({"AutoTokenizer": ["a.B", None]}, "a.B"), ({"AutoTokenizer": [None, "a.C"]}, "a.C"), (["a.B", "a.C"], "a.B"),
        ({"AutoTokenizer": "org/name--a.B"}, "org/name--a.B"), ({"AutoConfig": "a.B"}, None), ({}, None), (None, None),
        ({"AutoTokenizer": [None, None]}, None), (3, None),
    ],
)  # fmt: skip
def test_how_code_is_named(tmp_path: Path, named: Any, code: str | None) -> None:
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps({"auto_map": named}))
    assert code_of(file, "AutoTokenizer") == code
    assert code_of(tmp_path / "none.json", "AutoTokenizer") is None


def test_a_tokenizer_that_cannot_be_read_is_not_blamed_on_code(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(BadFile, match="no tokenizer"):
        load_tokenizer(folder)
