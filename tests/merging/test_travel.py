"""What goes into an output folder beside the weights: whose it is, what is refused, and that nothing is lost unsaid."""

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

import taskmerge
from taskmerge.checkpoint.configs import clashes, shared, with_values
from taskmerge.errors import Mismatch, UsageError
from taskmerge.merging.record import MergeReceipt

Config = Mapping[str, Any]


def folder(place: Path, config: Config | None = None, **files: object) -> Path:
    """A model's folder; `files` are texts by name, `__` a dot and `___` a slash."""
    place.mkdir(parents=True)
    generator = torch.Generator().manual_seed(len(place.name))
    weights = {"layers.0.w.weight": torch.randn(4, 4, generator=generator), "head.weight": torch.ones(2, 4)}
    save_file(weights, place / "model.safetensors")
    if config is not None:
        (place / "config.json").write_text(json.dumps(config))
    for name, content in files.items():
        path = place / name.replace("___", "/").replace("__", ".")
        path.parent.mkdir(exist_ok=True)
        path.write_text(str(content))
    return place


def merged(place: Path, *experts: str, **options: Any) -> MergeReceipt:
    """The average of folders in `place`, in `place`/out."""
    base = options.pop("base", None)
    options = {"method": "average", "output": place / "out", **options}
    return taskmerge.merge([place / name for name in experts], base=base and place / base, **options)


def told(texts: tuple[str, ...], *words: str) -> bool:
    """Whether one of the texts holds all words."""
    return any(all(word in text for word in words) for text in texts)


# --- the tokenizer ---------------------------------------------------------------------------------------------


def tokenizers(place: Path, **texts: str) -> None:
    for name, text in texts.items():
        folder(place / name, {}, tokenizer__json=text, chat_template__jinja=text)


def test_a_tokenizer_that_all_experts_share_is_theirs(tmp_path: Path) -> None:
    tokenizers(tmp_path, base="b", one="e", two="e")
    receipt = merged(tmp_path, "one", "two", base="base")
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "e"
    assert told(receipt.notes, "tokenizer is the experts'", "chat_template.jinja", "--tokenizer-from base")
    merged(tmp_path, "one", "two", base="base", output=tmp_path / "other", tokenizer_from="base")
    assert (tmp_path / "other" / "chat_template.jinja").read_text() == "b"


def test_of_tokenizers_that_differ_the_warning_says_whose_was_taken(tmp_path: Path) -> None:
    tokenizers(tmp_path, base="b", one="e", two="f")
    receipt = merged(tmp_path, "one", "two", base="base")
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "b"
    assert told(receipt.warnings, "tokenizer.json differs: one | two", "the base's is taken", "--tokenizer-from")
    receipt = merged(tmp_path, "one", "two", base="base", output=tmp_path / "2", tokenizer_from="two")
    assert (tmp_path / "2" / "tokenizer.json").read_text() == "f"
    assert told(receipt.warnings, "tokenizer.json differs", "two's is taken")


def test_files_of_several_tokenizers_are_never_mixed(tmp_path: Path) -> None:
    rng = random.Random(0)
    for case in range(12):
        place = tmp_path / str(case)
        for name in ("base", "one", "two"):
            files = {file: f"{rng.randrange(2)}" for file in ("tokenizer__json", "merges__txt", "vocab__bpe")}
            given = {file: text for file, text in files.items() if rng.random() < 0.8}
            folder(place / name, {}, **given, special_tokens_map__json=name)
        merged(place, "one", "two", base="base")
        owner = (place / "out" / "special_tokens_map.json").read_text()
        for file in ("tokenizer.json", "merges.txt", "vocab.bpe"):
            ours, theirs = place / "out" / file, place / owner / file
            assert ours.exists() == theirs.exists()
            assert not ours.exists() or ours.read_text() == theirs.read_text()


# --- configuration ---------------------------------------------------------------------------------------------

MEANING = {
    "num_attention_heads": (8, 16), "num_key_value_heads": (2, 8), "head_dim": (64, 128), "rope_theta": (1e4, 1e6),
    "rope_scaling": (None, {"type": "linear", "factor": 2.0}), "rms_norm_eps": (1e-5, 1e-6), "hidden_act": ("a", "b"),
    "layer_norm_epsilon": (1e-5, 1e-12), "vocab_size": (9, 10), "max_position_embeddings": (512, 1024),
    "activation_function": ("gelu", "gelu_new"), "rope_parameters": ({"rope_theta": 1.0}, {"rope_theta": 2.0}),
    "partial_rotary_factor": (0.5, 1.0), "n_head": (1, 2),
}  # fmt: skip


@pytest.mark.parametrize("key", MEANING)
def test_keys_that_change_what_weights_mean_are_refused_with_both_values(tmp_path: Path, key: str) -> None:
    one, other = MEANING[key]
    inner = {"text_config": {key: one}}, {"text_config": {key: other}}
    for number, (first, second) in enumerate((({key: one}, {key: other}), inner)):
        place = tmp_path / str(number)
        folder(place / "one", first)
        folder(place / "two", second)
        for output in (place / "out", place / "out.safetensors"):
            with pytest.raises(Mismatch) as refusal:
                merged(place, "one", "two", output=output)
            assert all(word in str(refusal.value) for word in (key, str(one), str(other), "one", "two"))
        with pytest.raises(Mismatch):
            merged(place, "one", base="two")
        receipt = merged(place, "one", "two", config_from="two")
        assert told(receipt.warnings, key, "--config-from")
        assert json.loads((place / "out" / "config.json").read_text()) == second


def test_whoever_says_nothing_of_a_key_is_not_at_odds() -> None:
    assert clashes({"one": {"head_dim": 64}, "two": {}, "base": {"head_dim": None}}) == []
    assert clashes({"one": {"rope_scaling": None}, "two": {"rope_scaling": {"rope_type": "default"}}}) == []
    assert clashes({"one": {"use_cache": True}, "two": {"use_cache": False}}) == []


VALUES = st.one_of(st.none(), st.integers(0, 2), st.text("ab", max_size=2), st.lists(st.integers(0, 2), max_size=2))
FLAT = st.dictionaries(st.sampled_from("abcde"), VALUES, max_size=4)


@given(st.lists(FLAT, min_size=1, max_size=3), FLAT)
def test_what_experts_share_is_what_none_of_them_contradicts(experts: list[Config], base: Config) -> None:
    common = shared(experts)
    result = with_values(base, common)
    for key in {key for one in experts for key in one}:
        said = [one[key] for one in experts if one.get(key) is not None]
        if said and all(value == said[0] for value in said):
            assert common[key,] == said[0] == result[key]
        else:
            assert (key,) not in common
            assert result.get(key) == base.get(key)


def test_an_end_of_text_that_all_experts_share_is_theirs(tmp_path: Path) -> None:
    folder(tmp_path / "base", {"eos_token_id": 1, "own": 0}, generation_config__json='{"eos_token_id": 1}')
    for name, label in (("one", "cat"), ("two", "dog")):
        config = {"eos_token_id": 2, "id2label": {"0": label}, "own": 0}
        folder(tmp_path / name, config, generation_config__json='{"eos_token_id": [2, 3]}')
    receipt = merged(tmp_path, "one", "two", base="base")
    out = tmp_path / "out"
    assert json.loads((out / "config.json").read_text()) == {"eos_token_id": 2, "own": 0}
    assert json.loads((out / "generation_config.json").read_text()) == {"eos_token_id": [2, 3]}
    assert told(receipt.notes, "config.json", "eos_token_id", "--config-from base")
    assert told(receipt.warnings, "config.json differs", "id2label", "the base's is taken")


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_the_type_in_the_configuration_is_the_one_that_is_written(tmp_path: Path, name: str) -> None:
    config = {"torch_dtype": "float64", "text_config": {"dtype": "float64"}, "vision_config": {"dtype": None}}
    for expert in ("one", "two"):
        folder(tmp_path / expert, config)
    receipt = merged(tmp_path, "one", "two", dtype=name)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written == {"torch_dtype": name, "text_config": {"dtype": name}, "vision_config": {"dtype": None}}
    assert told(receipt.notes, f"config.json says {name}", "float64")


# --- everything else -------------------------------------------------------------------------------------------

TRAVELS = (
    "tekken__json", "source__spm", "qwen__tiktoken", "vocab__bpe", "sentence_bert_config__json", "tokenizer__model__v3",
    "config_sentence_transformers__json", "LICENSE__txt", "1_Pooling___config__json", "preprocessor_config__json",
    "additional_chat_templates___rag__jinja",
)  # fmt: skip
STAYS = ("hf_quant_config__json", "notes__md", "eval_results__json", "runs___events__txt", "modeling_own__py")


def test_all_that_is_no_weights_travels_or_is_named(tmp_path: Path) -> None:
    modules = json.dumps([{"path": ""}, {"path": "1_Pooling"}, {"path": "../elsewhere"}, {"path": 3}, 4])
    for name in ("one", "two"):
        folder(tmp_path / name, {}, modules__json=modules, **dict.fromkeys((*TRAVELS, *STAYS), "{}"))
    (tmp_path / "elsewhere").mkdir()
    receipt = merged(tmp_path, "one", "two")
    for name in (text.replace("___", "/").replace("__", ".") for text in TRAVELS):
        assert (tmp_path / "out" / name).read_text() == "{}", name
    for name in (text.partition("___")[0].replace("__", ".") for text in STAYS):
        assert not (tmp_path / "out" / name).exists()
        assert told((*receipt.notes, *receipt.warnings), name), name
    receipt = merged(tmp_path, "one", "two", output=tmp_path / "with", with_code=True)
    assert (tmp_path / "with" / "modeling_own.py").read_text() == "{}"
    assert not told(receipt.warnings, "modeling_own.py")


def test_a_licence_file_in_which_experts_differ_is_said(tmp_path: Path) -> None:
    for name in ("one", "two"):
        folder(tmp_path / name, {}, LICENSE=name)
    receipt = merged(tmp_path, "one", "two")
    assert (tmp_path / "out" / "LICENSE").read_text() == "one"
    assert told(receipt.warnings, "LICENSE differs", "one's is taken")


def front(path: Path) -> dict[str, Any]:
    """The keys of a model card."""
    text = (path / "README.md").read_text()
    keys: dict[str, Any] = yaml.safe_load(text.split("---")[1])
    return keys


def card(licence: str) -> str:
    return f"---\nlicense: {licence}\nbase_model: org/origin\n---\n# Model\n"


def test_the_card_has_what_the_inputs_cards_say(tmp_path: Path) -> None:
    folder(tmp_path / "one", {}, README__md=card("mit"))
    hub = tmp_path / "models--org--two" / "snapshots" / "abc"
    folder(hub, {}, README__md=card("mit"))
    taskmerge.merge({"one": tmp_path / "one", "two": hub}, method="average", output=tmp_path / "out")
    keys = front(tmp_path / "out")
    assert keys["base_model"] == ["one", "org/two", "org/origin"]
    assert (keys["base_model_relation"], keys["license"]) == ("merge", "mit")


@pytest.mark.parametrize("others", ["apache-2.0", "", "[1, 2]", "'"])
def test_a_licence_that_not_all_state_is_nobodys(tmp_path: Path, others: str) -> None:
    folder(tmp_path / "one", {}, README__md=card("mit"))
    folder(tmp_path / "two", {}, README__md=card(others))
    receipt = merged(tmp_path, "one", "two")
    assert "license" not in front(tmp_path / "out")
    assert told(receipt.warnings, "licences differ") == (others == "apache-2.0")


# --- options ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["config_from", "tokenizer_from"])
def test_names_of_no_folder_are_refused(tmp_path: Path, option: str) -> None:
    folder(tmp_path / "one", {})
    lone = folder(tmp_path / "two", {}) / "model.safetensors"
    inputs = {"one": tmp_path / "one", "two": lone}
    for name in ("onn", "two", "base"):
        with pytest.raises(UsageError, match=f"--{option.replace('_', '-')}"):
            taskmerge.merge(inputs, method="average", output=tmp_path / "out", **{option: name})


def test_folders_without_an_output_give_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        folder(tmp_path / name, {})
    assert taskmerge.merge(["one", "two"], method="average").paths == ("merged-average",)
    assert (tmp_path / "merged-average" / "config.json").exists()
    mixed = taskmerge.merge(["one", "two/model.safetensors"], method="average")
    assert mixed.paths == ("merged-average.safetensors",)
    assert taskmerge.verify("merged-average").replayed
