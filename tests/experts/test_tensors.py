"""What a tensor is: stacks of experts, roles, and how matrices lie in units."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from taskmerge.checkpoint.header import TensorSpec
from taskmerge.experts.classes import classify
from taskmerge.experts.tensors import matrix_shape, role_of, unit_of, units
from taskmerge.specs.merge import Qkv

LAYER = "model.layers.3.mlp."


def spec(name: str, shape: tuple[int, ...], dtype: str = "F32") -> TensorSpec:
    return TensorSpec(name, dtype, shape, Path("x.safetensors"), 0, 4 * math.prod(shape))


@pytest.mark.parametrize(
    ("name", "shape", "kind"),
    [
        (f"{LAYER}experts.gate_up_proj", (8, 64, 32), "stack"),  # Qwen3-MoE, Llama 4, gpt-oss
        (f"{LAYER}experts.down_proj", (8, 32, 32), "stack"),
        (f"{LAYER}experts.down_proj", (1, 32, 32), "stack"),
        ("model.layers.0.block_sparse_moe.input_linear.weight", (8, 64, 32), "stack"),  # Granite
        ("model.layers.0.moe.output_linear.weight", (8, 32, 64), "stack"),
        (f"{LAYER}experts.gate_up_proj_bias", (8, 64), "vector"),  # a bias an expert is no matrix
        (f"{LAYER}experts.3.down_proj.weight", (32, 64), "linear"),
        (f"{LAYER}gate.weight", (8, 32), "linear"),
        (f"{LAYER}shared_experts.up_proj.weight", (64, 32), "linear"),
        ("experts.gate_up_proj", (8, 64, 32), "conv"),  # outside blocks nothing tells
        ("encoder.layers.0.conv.weight", (8, 4, 3), "conv"),
        ("h.0.mixer.conv1d.weight", (16, 1, 4), "conv"),
        (f"{LAYER}experts.scale", (8,), "vector"),
    ],
)
def test_stacks_are_a_class_of_their_own(name: str, shape: tuple[int, ...], kind: str) -> None:
    assert classify(name, shape, floating=True) == kind
    assert classify(name, shape, floating=False) == "buffer"


def test_a_stack_is_seen_expert_by_expert() -> None:
    name = f"{LAYER}experts.down_proj"
    unit = unit_of(name, spec(name, (3, 4, 5)))
    assert (unit.portion, unit.matrix, unit.matrices, unit.truncated()) == ((4, 5), (4, 5), 3, True)
    assert list(unit.portions()) == [(0, 20), (20, 20), (40, 20)]
    assert [unit.expert_at(start) for start, _ in unit.portions()] == [0, 1, 2]
    rows = torch.arange(40.0).view(2, 20)
    (piece,) = unit.cut(rows)
    assert piece.shape == (2, 4, 5)
    assert torch.equal(unit.join([piece[1]]), rows[1])


def test_an_empty_stack_is_one_empty_portion() -> None:
    unit = unit_of(f"{LAYER}experts.down_proj", spec("x", (0, 4, 5)))
    assert [start for start, _ in unit.portions()] == [0]


@given(st.sampled_from(["as-is", "split", "fused"]), st.integers(1, 4), st.integers(1, 5), st.booleans())
def test_cutting_and_joining_give_the_rows_again(qkv: Qkv, m: int, n: int, transposed: bool) -> None:
    """Whatever the layout of q, k and v."""
    block = "h.0.attn."
    stored = {
        f"{block}c_attn.weight": (n, 3 * m) if transposed else (3 * m, n),
        **{f"{block}{part}_proj.weight": (m, n) for part in "qkv"},
        f"{block}in_proj_bias": (3 * m,),
    }
    found = units({name: spec(name, shape) for name, shape in stored.items()}, qkv)
    assert sorted(part.name for unit in found for part in unit.parts) == sorted(stored)
    for unit in found:
        rows = torch.randn(2, unit.numel)
        pieces = unit.cut(rows)
        assert len(pieces) == unit.pieces
        assert torch.equal(unit.join([piece[0] for piece in pieces]), rows[0])
        if len(unit.shape) == 2 and (qkv != "split" or n > 1 or not transposed):
            assert tuple(pieces[0].shape[1:]) == unit.matrix
    trio = [unit for unit in found if len(unit.parts) == 3]
    assert bool(trio) == (qkv == "fused")


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("model.layers.0.self_attn.q_proj.weight", "attention"),
        ("encoder.layer.1.attention.output.dense.weight", "attention"),
        ("encoder.layer.1.output.dense.weight", "mlp"),
        ("encoder.layer.1.intermediate.dense.weight", "mlp"),
        ("visual.transformer.resblocks.2.attn.in_proj_weight", "attention"),
        ("visual.transformer.resblocks.2.mlp.c_fc.weight", "mlp"),
        ("model.layers.0.mlp.experts.down_proj", "mlp"),
        ("encoder.block.3.layer.0.SelfAttention.q.weight", "attention"),
        ("encoder.block.3.layer.1.DenseReluDense.wi.weight", "mlp"),
        ("model.decoder.layers.0.fc1.weight", "mlp"),
        ("model.layers.0.input_layernorm.weight", None),
        ("output.weight", None),
        ("visual.proj", None),
    ],
)
def test_roles(name: str, role: str | None) -> None:
    assert role_of(name) == role


def test_shapes_of_matrices() -> None:
    assert matrix_shape("conv", (8, 3, 4, 4)) == (8, 48)
    assert matrix_shape("embedding", (2, 30, 16)) == (60, 16)
    assert matrix_shape("scalar", ()) == (1, 1)
