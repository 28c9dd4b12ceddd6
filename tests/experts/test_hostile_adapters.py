"""Adapters whose configuration anybody may have written: every wrong value at every place is named, in time."""

import copy
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import taskmerge
from taskmerge.errors import BadFile, Mismatch, TaskmergeError
from taskmerge.experts.lora import Adapter
from taskmerge.experts.lora_files import METADATA, open_adapter
from taskmerge.experts.lora_names import CONFIG

WEIRD: dict[str, Any] = {
    "null": None, "true": True, "false": False, "0": 0, "1": 1, "2": 2, "-2": -2, "2.5": 2.5, "10^400": 10**400,
    "-10^400": -(10**400), "10^4000": 10**4000, "1e308": 1e308, "NaN": math.nan, "infinity": math.inf, "no text": "",
    "2 as text": "2", "text": "x", "too large a text": "1e400", "NUL": "a\0b", "half a character": "\ud800",
    "escape": "\x1b[31m", "long": "x" * 50_000, "[]": [], "list": [2], "nested list": [[2]], "{}": {},
    "map": {"fc": 2}, "nested map": {"fc": {"fc": 2}}, "map of text": {"fc": "2"}, "map of null": {"fc": None},
    "map of 10^400": {"fc": 10**400}, "no pattern": {"(": 2}, "a pattern of anything": {".*": 2},
    "deep": json.loads("[" * 90 + "]" * 90), "long list": ["x"] * 5_000,
}  # fmt: skip
GOOD: dict[str, Any] = {
    "peft_type": "LORA", "r": 2, "lora_alpha": 3, "rank_pattern": {}, "alpha_pattern": {"fc": 5}, "use_rslora": False,
    "fan_in_fan_out": False, "init_lora_weights": True, "task_type": "CAUSAL_LM", "base_model_name_or_path": "org/base",
    "target_modules": ["fc"], "bias": "none", "modules_to_save": None,
}  # fmt: skip
PLACES = [*((key,) for key in GOOD), ("alpha_pattern", "fc")]


def pair(first: str, second: str, module: str = "fc") -> dict[str, torch.Tensor]:
    """The factors of one module, by names that end so."""
    drawn = torch.Generator().manual_seed(0)
    sizes = {first: (2, 6), second: (4, 2)}
    return {f"{module}.{side}": torch.randn(size, generator=drawn) for side, size in sizes.items()}


def written(folder: Path, config: object, module: str = "base_model.model.fc") -> Path:
    """peft's folder, with a configuration, or with a text in its place."""
    folder.mkdir(exist_ok=True)
    save_file(pair("lora_A.weight", "lora_B.weight", module), folder / "adapter_model.safetensors")
    (folder / CONFIG).write_text(config if isinstance(config, str) else json.dumps(config))
    return folder


def based(folder: Path) -> Path:
    save_file({"fc.weight": torch.randn(4, 6), "fc.bias": torch.zeros(4)}, folder / "base.safetensors")
    return folder / "base.safetensors"


def opened(path: Path) -> Adapter | TaskmergeError:
    """The adapter, or the error that says why it is none."""
    try:
        adapter = open_adapter(path)
    except TaskmergeError as error:
        return error
    adapter.checkpoint.close()
    return adapter


def check_sound(found: Adapter | TaskmergeError, where: Path) -> None:
    """An adapter whose numbers are numbers, or one message of code 3 or 4 that names it."""
    if isinstance(found, Adapter):
        assert math.isfinite(found.pairs[0].scaling)
        assert found.fan_in_fan_out in (True, False)
    else:
        assert found.exit_code in (3, 4)
        assert str(where) in found.message
        assert len(found.message) < 6_000


# --- peft's ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", PLACES, ids=".".join)
def test_every_wrong_value_of_a_configuration_is_named_or_harmless(tmp_path: Path, place: tuple[str, ...]) -> None:
    for value in WEIRD.values():
        config = copy.deepcopy(GOOD)
        inner = config
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = value
        check_sound(opened(written(tmp_path / "x", config)), tmp_path / "x")


@pytest.mark.parametrize("value", ["1", "true", "no", 1, 0, [], {}])
@pytest.mark.parametrize("key", ["use_rslora", "fan_in_fan_out"])
def test_switches_are_on_or_off(tmp_path: Path, key: str, value: object) -> None:
    with pytest.raises(BadFile, match=f"`{key}` is .*, not true or false"):
        open_adapter(written(tmp_path / "x", {**GOOD, key: value}))


BROKEN = ("", "{", "[]", "3", '{"r": 1%s}' % ("0" * 400), '{"r": 2, "r": 4}', "[" * 99_999, '{"a": "\\ud800"}', "\0")


@pytest.mark.parametrize("text", BROKEN, ids=range(len(BROKEN)))
def test_what_is_no_configuration_is_named(tmp_path: Path, text: str) -> None:
    with pytest.raises(BadFile, match=CONFIG):
        open_adapter(written(tmp_path / "x", text))


MAKE: dict[str, Callable[[Path], None]] = {
    "pipe": os.mkfifo, "device": lambda path: path.symlink_to("/dev/zero"), "loop": lambda path: path.symlink_to(path),
    "nowhere": lambda path: path.symlink_to("none"),
}  # fmt: skip


@pytest.mark.parametrize("kind", MAKE)
def test_a_configuration_that_is_no_file_is_named_at_once(tmp_path: Path, kind: str) -> None:
    folder = written(tmp_path / "x", GOOD)
    (folder / CONFIG).unlink()
    MAKE[kind](folder / CONFIG)
    error = opened(folder)
    assert isinstance(error, TaskmergeError)
    assert error.exit_code in (3, 4)
    assert str(folder) in error.message


EVIL = (
    "(a+)+$", "(a|a)*$", "(a|aa)+$", "(.*a){9}$", ".*a.*a.*a.*a.*a$", "a?" * 40 + "a" * 40, "(a|a)" * 30, "((a*)*)*$",
    "(" * 500, "a{1,99999999999}", "(?:a*)*b", "x" * 5_000,
)  # fmt: skip


@pytest.mark.parametrize("pattern", EVIL, ids=range(len(EVIL)))
def test_patterns_that_would_take_for_ever_are_refused(tmp_path: Path, pattern: str) -> None:
    config = {**GOOD, "rank_pattern": {pattern: 2}}
    folder = written(tmp_path / "x", config, f"base_model.model.{'a' * 60}!")
    started = time.monotonic()
    with pytest.raises(BadFile, match="`rank_pattern`"):
        open_adapter(folder)
    assert time.monotonic() - started < 1.0


@pytest.mark.parametrize(
    ("pattern", "matches"),
    [
        ("fc", True), (".*fc", True), ("f.", True), ("(fc|fd)", True), (r"(a|b|c)\.fc", False), ("[a-f]c", True),
        ("layers.0.fc", False), (r"(model\.)?fc", True), (r"layers\.(0|1|2|3|4|5|10|11)\.(q|k|v)_proj", False),
        (".*_proj", False), (r"\w+", True), ("[(]*fc", True),
    ],
)  # fmt: skip
def test_patterns_that_people_write_count_as_peft_counts_them(tmp_path: Path, pattern: str, matches: bool) -> None:
    adapter = open_adapter(written(tmp_path / "x", {**GOOD, "alpha_pattern": {pattern: 7}}))
    assert adapter.pairs[0].scaling == (7 if matches else 3) / 2


@settings(max_examples=24, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rank=st.integers() | st.floats() | st.just(2), alpha=st.integers() | st.floats(), root=st.booleans())
def test_a_merge_of_any_numbers_ends_well_or_by_name(tmp_path: Path, rank: float, alpha: float, root: bool) -> None:
    numbers = {"r": rank, "lora_alpha": alpha, "use_rslora": root, "alpha_pattern": {}}
    folder, base = written(tmp_path / "x", {**GOOD, **numbers}), based(tmp_path)
    said = ""
    try:
        taskmerge.merge([folder], base=base, method="average", output=tmp_path / "m.safetensors", overwrite=True)
    except TaskmergeError as error:
        said = error.message if error.exit_code in (3, 4, 7) else "another code"
    assert not said or "`fc" in said or str(folder) in said


def test_a_rank_of_many_digits_is_named(tmp_path: Path) -> None:
    folder = written(tmp_path / "x", {**GOOD, "r": 10**400})
    with pytest.raises(BadFile, match="a number of 401 digits is beyond all range"):
        taskmerge.merge([folder], base=based(tmp_path), method="average", output=tmp_path / "m.safetensors")


def test_whatever_base_an_adapter_names_is_shown_as_text(tmp_path: Path) -> None:
    save_file({"other.weight": torch.ones(4, 6)}, tmp_path / "base.safetensors")
    for name in ("a\0b", "/", "..", "~", "x" * 5_000, "\x1b[31m"):
        folder = written(tmp_path / "x", {**GOOD, "base_model_name_or_path": name})
        with pytest.raises(Mismatch) as caught:
            taskmerge.merge([folder], base=tmp_path / "base.safetensors", output=tmp_path / "m.safetensors")
        assert all(line.isprintable() for line in caught.value.message.split("\n"))


# --- others' ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [math.nan, math.inf, -math.inf])
def test_alphas_that_are_no_numbers_are_named(tmp_path: Path, alpha: float) -> None:
    tensors = pair("lora_down.weight", "lora_up.weight", "lora_unet_fc") | {"lora_unet_fc.alpha": torch.tensor(alpha)}
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(BadFile, match=r"`lora_unet_fc\.alpha`"):
        open_adapter(tmp_path / "x.safetensors")


@pytest.mark.parametrize("what", [*WEIRD, *BROKEN], ids=range(len(WEIRD) + len(BROKEN)))
def test_every_wrong_value_of_diffusers_metadata_is_named_or_harmless(tmp_path: Path, what: str) -> None:
    value, file = WEIRD.get(what), tmp_path / "x.safetensors"
    for said in [{"unet.lora_alpha": value}, {"lora_alpha": value}, value] if what in WEIRD else [what]:
        text = said if isinstance(said, str) and what in BROKEN else json.dumps(said)
        save_file(pair("lora_A.weight", "lora_B.weight", "unet.fc"), file, {METADATA: text})
        check_sound(opened(file), file)
