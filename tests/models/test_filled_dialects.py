"""A backbone is filled from a checkpoint in any dialect of its model, by the module's own values."""

import random
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from model_cases import SMALL, clip_model, clip_spec, local, randomised, saved
from torch import nn

from dialect_cases import spoken, wrapped
from taskmerge.checkpoint.checkpoint import open_checkpoint
from taskmerge.errors import Mismatch
from taskmerge.models.backbones import build
from taskmerge.models.fill import fill, fill_module
from taskmerge.models.naming import Naming

NAMING = Naming((), (("", ""), ("model.", "")))


def mixture(seed: int = 0) -> nn.Module:
    config = transformers.Qwen3MoeConfig(
        **SMALL, num_experts=3, num_experts_per_tok=2, moe_intermediate_size=4, num_key_value_heads=2, head_dim=8,
    )  # fmt: skip
    return randomised(transformers.Qwen3MoeModel(config), seed)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), headed=st.booleans())
def test_a_mixture_of_experts_is_filled_from_any_dialect(
    tmp_path_factory: pytest.TempPathFactory, seed: int, headed: bool
) -> None:
    tmp, source, target = tmp_path_factory.mktemp("fill"), mixture(1), mixture(2)
    front = "model." if headed else ""
    state = {front + name: value for name, value in source.state_dict().items()}
    assert any(".experts.gate_up_proj" in name for name in state), "the library stacks experts"
    path = saved(tmp / "x.safetensors", spoken(state, seed))
    fill_module(target, NAMING, open_checkpoint(path), "a mixture")
    wanted = source.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in target.state_dict().items())


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_wrappers_anywhere_in_names_make_no_difference(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    tmp = tmp_path_factory.mktemp("clip")
    backbone, wanted = build(clip_spec(tmp / "suite"), resolve=local), clip_model(1).state_dict()
    fill(backbone, open_checkpoint(saved(tmp / "x.safetensors", wrapped(dict(wanted), random.Random(seed)))))
    assert all(torch.equal(value, wanted[name]) for name, value in backbone.module.state_dict().items())


def test_renamings_come_first_and_the_message_names_them(tmp_path: Path) -> None:
    state = {name.replace("resblocks", "stack"): value for name, value in clip_model(1).state_dict().items()}
    file = open_checkpoint(saved(tmp_path / "x.safetensors", state))
    plain = build(clip_spec(tmp_path / "suite"), resolve=local)
    with pytest.raises(Mismatch, match="--map"):
        fill(plain, file)
    told = build(clip_spec(tmp_path / "suite"), resolve=local, renamings=["*.stack.* = *.resblocks.*"])
    fill(told, file)
    wanted = clip_model(1).state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in told.module.state_dict().items())
