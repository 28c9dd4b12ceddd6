"""Codes are not merged, subtracted or scored: exit 4, the scheme and its tensors by name, nothing written."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from eval_cases import prepared
from merge_cases import merge, model, refused, refused_merge, run, save
from torch import Tensor

CODES = "model.layers.0.mlp.down_proj.weight"


def quantised(seed: int) -> dict[str, Tensor]:
    """A matrix of bitsandbytes' codes, their scales, and a plain norm."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-127, 128, (8, 8), generator=generator).to(torch.int8)
    scale = torch.rand(8, generator=generator)
    return {CODES: codes, CODES.removesuffix("weight") + "SCB": scale, "model.norm.weight": torch.ones(8)}


def plain() -> dict[str, Tensor]:
    return {CODES: torch.ones(8, 8), "model.norm.weight": torch.ones(8)}


SAYS = ("is quantised (bitsandbytes, 8 bits)", f"`{CODES}`", "dequantise first")


@pytest.mark.parametrize("bad", ["a", "base"])
@pytest.mark.parametrize("command", ["merge", "vectors"])
def test_experts_and_bases(here: Path, bad: str, command: str) -> None:
    for seed, name in enumerate(("a", "b", "base")):
        save(here / f"{name}.safetensors", quantised(seed) if name == bad else plain())
    words = {"merge": ["--method", "task_arithmetic"], "vectors": []}[command]
    files = ["a.safetensors", "b.safetensors", "--base", "base.safetensors"]
    said = refused(4, command, *files, *words, "-o", "out", folder=here, says=(f"{bad}.safetensors: ", *SAYS))
    assert "--on-buffer" not in said.err


def test_the_base_of_an_adapter(here: Path) -> None:
    save(here / "base/model.safetensors", quantised(0))
    module = "base_model.model." + CODES.removesuffix(".weight")
    factors = {f"{module}.lora_A.weight": torch.ones(2, 8), f"{module}.lora_B.weight": torch.ones(8, 2)}
    save(here / "lora/adapter_model.safetensors", factors)
    (here / "lora/adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2}))
    refused_merge(4, "lora", "--base", "base", "--method", "average", folder=here, says=("base: ", *SAYS))


@pytest.mark.parametrize("words", [["x.safetensors"], ["base"], ["experts"], ["plain.safetensors"]])
def test_what_is_evaluated(here: Path, words: list[str]) -> None:
    """Given, or the suite's base or expert, which heads are read from too."""

    def change(suite: dict[str, Any]) -> None:
        suite["base"] = suite["tasks"]["digits"]["expert"] = "x.safetensors"

    prepared(here, change)
    save(here / "x.safetensors", quantised(0))
    save(here / "plain.safetensors", plain())
    refused(4, "eval", *words, folder=here, says=("x.safetensors: ", *SAYS))


def test_inspect_says_so_and_goes_on(here: Path) -> None:
    save(here / "x.safetensors", quantised(0))
    done = run("inspect", "x.safetensors")
    assert done.code == 0
    assert SAYS[0] in done.err
    assert SAYS[1] in done.err
    (document,) = json.loads(run("inspect", "x.safetensors", "--json").out)
    assert SAYS[0] in document["warnings"][0]


def test_diff_has_no_numbers_for_codes(here: Path) -> None:
    for seed, name in enumerate("ab"):
        save(here / f"{name}.safetensors", quantised(seed))
    refused(4, "diff", "a.safetensors", "b.safetensors", folder=here, says=("a.safetensors: ", *SAYS))


def test_no_rule_for_buffers_takes_codes(here: Path) -> None:
    """`--on-buffer first` would put one expert's codes beside averaged scales."""
    for seed, name in enumerate("ab"):
        save(here / f"{name}.safetensors", quantised(seed))
    refused_merge(
        4, "a.safetensors", "b.safetensors", "--on-buffer", "first", "--method", "average", folder=here, says=SAYS
    )


def test_plain_fp8_merges_as_ever(here: Path) -> None:
    for seed, name in enumerate("ab"):
        save(here / f"{name}.safetensors", model(seed))
    assert merge("a.safetensors", "b.safetensors", "--dtype", "float8_e4m3fn", "-o", "8.safetensors").code == 0
    assert merge("8.safetensors", "--allow-merged", "--method", "average", "-o", "again.safetensors").code == 0
