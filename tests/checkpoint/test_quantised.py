"""Quantised checkpoints are told from headers, by scheme; what only looks like one is not."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import save, save_sharded
from hypothesis import given
from hypothesis import strategies as st

from taskmerge.checkpoint.checkpoint import open_checkpoint, open_plain
from taskmerge.checkpoint.dtypes import DTYPES, is_float
from taskmerge.checkpoint.header import TensorSpec
from taskmerge.checkpoint.quantised import LAYOUTS, config_warning, quantisation, weights_like
from taskmerge.errors import Mismatch

P = "model.layers.0.mlp.down_proj."
FP8, BF16 = torch.float8_e4m3fn, torch.bfloat16


def specs_of(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> dict[str, TensorSpec]:
    """Headers alone: name -> (code, shape)."""
    return {name: TensorSpec(name, code, shape, Path("x.safetensors"), 0, 0) for name, (code, shape) in tensors.items()}


QUANTISED: dict[str, tuple[str, dict[str, tuple[str, tuple[int, ...]]]]] = {
    "DeepSeek-V3": ("DeepSeek", {"weight": ("F8_E4M3", (256, 256)), "weight_scale_inv": ("F32", (2, 2))}),
    "int8 in blocks": ("DeepSeek", {"weight": ("I8", (256, 256)), "weight_scale_inv": ("F32", (2, 2))}),
    "experts in one": ("DeepSeek", {"gate_up_proj": ("F8_E4M3", (4, 8, 8)), "gate_up_proj_scale_inv": ("F32", (4, 1))}),
    "a scale for each tensor": ("scales", {"weight": ("F8_E4M3", (8, 8)), "weight_scale": ("F32", ())}),
    "a scale for each row, int8": ("scales", {"weight": ("I8", (8, 8)), "weight_scale": ("BF16", (8, 1))}),
    "BitNet": ("scales", {"weight": ("U8", (2, 8)), "weight_scale": ("BF16", (1,))}),
    "EETQ": ("scales", {"weight": ("I8", (8, 8)), "weight_scales": ("F16", (8,))}),
    "HIGGS": ("scales", {"weight": ("I16", (2, 8)), "scales": ("F16", (8, 1)), "tables": ("F32", (4,))}),
    "scales of activations": ("scales", {"weight": ("F8_E5M2", (8, 8)), "input_scale": ("F32", ())}),
    "DeepSeek's own run time": ("scales", {"weight": ("F8_E4M3", (8, 8)), "scale": ("F32", (1, 1))}),
    "MXFP8": ("scales", {"weight": ("F8_E4M3", (8, 32)), "weight_scale": ("F8_E8M0", (8, 1))}),
    "E8M0 of another name": ("MX", {"weight": ("F8_E4M3", (8, 32)), "e": ("F8_E8M0", (8, 1))}),
    "ComfyUI": ("ComfyUI", {"weight": ("F8_E4M3", (8, 8)), "scale_weight": ("F32", (1,))}),
    "ComfyUI's newer": ("ComfyUI", {"weight": ("F8_E4M3", (8, 8)), "comfy_quant": ("U8", (30,)),
                                    "weight_scale": ("F32", ())}),
    "NVFP4": ("NVFP4", {"weight": ("U8", (8, 4)), "weight_scale": ("F8_E4M3", (8, 1)), "weight_scale_2": ("F32", ()),
                        "input_scale": ("F32", ())}),
    "compressed-tensors, int4": ("compressed-tensors", {"weight_packed": ("I32", (8, 1)), "weight_shape": ("I64", (2,)),
                                 "weight_scale": ("BF16", (8, 1)), "weight_zero_point": ("I32", (1, 1))}),
    "compressed-tensors, NVFP4": ("compressed-tensors", {"weight_packed": ("U8", (8, 4)),
                                  "weight_scale": ("F8_E4M3", (8, 1)), "weight_global_scale": ("F32", (1,))}),
    "gpt-oss": ("gpt-oss", {"gate_up_proj_blocks": ("U8", (4, 8, 1, 16)), "gate_up_proj_scales": ("U8", (4, 8, 1))}),
    "GPTQ": ("GPTQ", {"qweight": ("I32", (1, 8)), "qzeros": ("I32", (1, 1)), "scales": ("F16", (1, 8)),
                      "g_idx": ("I32", (8,))}),
    "AWQ": ("AWQ", {"qweight": ("I32", (8, 1)), "qzeros": ("I32", (1, 1)), "scales": ("F16", (1, 8))}),
    "bnb nf4": ("bitsandbytes, 4 bits", {"weight": ("U8", (32, 1)), "weight.absmax": ("F32", (1,)),
                "weight.quant_map": ("F32", (16,)), "weight.quant_state.bitsandbytes__nf4": ("U8", (90,))}),
    "bnb nf4 stored as bfloat16": ("bitsandbytes, 4 bits", {"weight": ("BF16", (16, 1)),
                "weight.quant_state.bitsandbytes__nf4": ("U8", (90,))}),
    "bnb int8": ("bitsandbytes, 8 bits", {"weight": ("I8", (8, 8)), "SCB": ("F32", (8,)), "weight_format": ("U8", ())}),
    "HQQ": ("HQQ", {"W_q": ("U8", (4, 8)), "scale": ("F16", (8, 1)), "zero": ("F16", (8, 1))}),
    "quanto": ("quanto", {"weight._data": ("I8", (8, 8)), "weight._scale": ("F32", (8, 1))}),
    "torchao": ("torchao", {"_weight_qdata": ("I8", (8, 8)), "_weight_scale": ("F32", (8, 1))}),
    "MLX": ("MLX", {"weight": ("U32", (8, 1)), "scales": ("BF16", (8, 1)), "biases": ("BF16", (8, 1))}),
}  # fmt: skip


@pytest.mark.parametrize("prefix", ["", P])
@pytest.mark.parametrize("case", QUANTISED)
def test_every_scheme_is_named(case: str, prefix: str) -> None:
    scheme, tensors = QUANTISED[case]
    norm = {"model.norm.weight": ("BF16", (8,)), "logit_scale": ("F32", ())}
    found = quantisation(specs_of({prefix + name: one for name, one in tensors.items()} | norm))
    assert found is not None
    assert scheme in found.scheme
    assert found.tensors == (prefix + next(iter(tensors)),)
    assert f"1 tensor holds codes (`{prefix}{next(iter(tensors))}`)" in found.what
    assert "quantis" in found.what
    assert "quantis" in found.hint


INNOCENT: dict[str, dict[str, tuple[str, tuple[int, ...]]]] = {
    "CLIP": {"logit_scale": ("F32", ()), "logit": ("F32", ()), "visual.ln.weight": ("F32", (8,))},
    "LayerScale": {"ls1.weight": ("F32", (8,)), "ls1.scale": ("F32", (8,)), "layer_scale": ("F32", (8,)),
                   "layer": ("F32", (8, 8))},
    "scaled norms": {"norm.weight": ("BF16", (8,)), "norm.scale": ("BF16", (8,)), "norm.weight_scale": ("BF16", (8,))},
    "a parameter W_q": {"attn.W_q": ("F32", (8, 8)), "attn.scale": ("F32", ()), "attn.zero": ("F32", ())},
    "an int8 mask": {"attn.mask": ("I8", (8, 8)), "attn.scale": ("F32", ()), "attn.weight": ("F32", (8, 8))},
    "a uint8 causal mask": {"h.0.attn.bias": ("U8", (1, 1, 8, 8)), "h.0.attn.weight": ("F32", (8, 8))},
    "BatchNorm": {"bn.weight": ("F32", (8,)), "bn.num_batches_tracked": ("I64", ()), "bn.scale": ("F32", ())},
    "positions": {"position_ids": ("I64", (1, 512)), "position_ids_scale": ("F32", ())},
    "a scaled embedding": {"embed.weight": ("F16", (9, 8)), "embed_scale": ("F32", ()),
                           "embed.embed_scale": ("F32", ())},
    "plain FP8": {P + "weight": ("F8_E4M3", (8, 8)), "model.norm.weight": ("F8_E4M3", (8,)),
                  "norm.scale": ("BF16", ())},
    "all of it cast to FP8": {"n.weight": ("F8_E4M3", (8,)), "n.scale": ("F8_E4M3", (8,)), "n.weight_scale":
                              ("F8_E4M3", (8,)), "logit_scale": ("F8_E4M3", ())},
    "scales alone": {P + "weight_scale_inv": ("F32", (2, 2)), P + "scales": ("F16", (8,)), "k_scale": ("F32", ())},
    "plain MoE": {"gate_up_proj_blocks": ("BF16", (4, 8)), "gate_up_proj_scales": ("BF16", (4, 8))},
    "nothing": {},
}  # fmt: skip


@pytest.mark.parametrize("case", INNOCENT)
def test_names_alone_catch_nobody(case: str) -> None:
    assert quantisation(specs_of(INNOCENT[case])) is None


@given(
    layout=st.sampled_from([one for one in LAYOUTS if one.dtypes is not None]),
    code=st.sampled_from([code for code in DTYPES if is_float(code) and not code.startswith("F8")]),
    prefix=st.sampled_from(["", "a.", "a.b_"]),
)
def test_weights_of_a_wide_type_are_never_codes(layout: Any, code: str, prefix: str) -> None:
    tensors = {prefix + layout.codes: (code, (8, 8))}
    tensors |= {prefix + companion: ("F32", (8, 1)) for companion in layout.companions}
    assert quantisation(specs_of(tensors), {"quantization_config": {"quant_method": "fp8"}}) is None


def test_a_marker_counts_beside_fp8() -> None:
    marked = {"scaled_fp8": ("F8_E4M3", (0,)), "a.weight": ("F8_E4M3", (8, 8))}
    found = quantisation(specs_of(marked))
    assert found is not None
    assert "ComfyUI" in found.scheme
    assert "`scaled_fp8`" in found.what
    assert quantisation(specs_of({"scaled_fp8": ("F32", ()), "a.weight": ("F32", (8, 8))})) is None


@pytest.mark.parametrize("config", [{}, None, {"quantization_config": None}, {"quantization_config": {}}])
def test_a_configuration_that_says_nothing(config: dict[str, Any] | None) -> None:
    assert quantisation(specs_of(INNOCENT["plain FP8"]), config) is None
    assert config_warning(config) is None


def test_a_configuration_counts_beside_codes_alone() -> None:
    config = {"quantization_config": {"quant_method": "fp8"}}
    found = quantisation(specs_of(INNOCENT["plain FP8"]), config)
    assert found is not None
    assert found.what.startswith("is quantised (fp8): 2 tensors hold codes (`model.layers.0.mlp.down_proj.weight`, ")
    assert "FineGrainedFP8Config(dequantize=True)" in found.hint
    unknown = quantisation(specs_of({"a.codes": ("I16", (8, 8, 1))}), {"quantization_config": {"quant_method": "aqlm"}})
    assert unknown is not None
    for case in ("CLIP", "BatchNorm", "a uint8 causal mask", "positions"):
        assert quantisation(specs_of(INNOCENT[case]), config) is None
    assert "config.json says quantised (fp8), the tensors are plain" in str(config_warning(config))


def test_weights_like_integers() -> None:
    def like(name: str, code: str, *shape: int) -> bool:
        return weights_like(name, specs_of({name: (code, shape)})[name])

    assert like("a.weight", "I8", 8, 8)
    assert like("a.weight", "I64", 8)
    assert like("a.qweight", "I32", 8)
    assert like("a.codes", "I16", 8, 8, 1)
    assert not like("bn.num_batches_tracked", "I64")
    assert not like("position_ids", "I64", 1, 512)
    assert not like("attn.bias", "U8", 1, 1, 8, 8)
    assert not like("a.weight", "F32", 8, 8)
    assert not like("a.mask", "BOOL", 8, 8)


def test_codes_in_one_shard_and_scales_in_another(tmp_path: Path) -> None:
    """Are weights together; alone the codes' shard is refused, if the configuration beside it tells."""
    index = save_sharded(
        tmp_path,
        {
            "model-00001-of-00002.safetensors": {P + "weight": torch.ones(8, 8).to(FP8)},
            "model-00002-of-00002.safetensors": {P + "weight_scale_inv": torch.full((1, 1), 3.0)},
        },
    )
    for path in (index, tmp_path):
        with open_plain(path) as checkpoint:
            assert checkpoint.tensor(P + "weight").eq(3).all()
    with open_plain(tmp_path / "model-00001-of-00002.safetensors") as shard:  # nothing here says so
        assert shard.note is None
    config = {"quantization_config": {"quant_method": "fp8"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(Mismatch, match=r"config\.json") as caught:
        open_plain(tmp_path / "model-00001-of-00002.safetensors")
    assert caught.value.exit_code == 4
    assert "another shard" in caught.value.message


def test_plain_weights_under_a_configuration_that_says_quantised_are_read_with_a_warning(tmp_path: Path) -> None:
    save(tmp_path / "model.safetensors", {"a.weight": torch.ones(4, 4, dtype=BF16)})
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "bitsandbytes"}}))
    with open_plain(tmp_path) as checkpoint:
        (warning,) = checkpoint.warnings
    assert warning.startswith(f"{tmp_path}: config.json says quantised (bitsandbytes)")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is not JSON"), (b"[]", "is no JSON object"), (b"{", "is not JSON"), (b"\x80", "no UTF-8 at byte 0"),
        (b'{"a": 1, "a": 2}', "the key `a` stands twice"), (b"[" * 100_000, "nested"), (b"\0", "is not JSON"),
    ],
)  # fmt: skip
def test_a_damaged_configuration_is_said_and_nothing_more(tmp_path: Path, content: bytes, says: str) -> None:
    save(tmp_path / "model.safetensors", {"a.weight": torch.ones(4, 4).to(FP8)})
    (tmp_path / "config.json").write_bytes(content)
    for path in (tmp_path, tmp_path / "model.safetensors"):
        with open_plain(path) as checkpoint:
            (warning,) = checkpoint.warnings
        assert warning.startswith(f"{path}: config.json ")
        assert says in warning


@pytest.mark.parametrize("kind", ["pipe", "device", "loop", "folder"])
def test_what_is_no_file_in_place_of_a_configuration_is_said_at_once(tmp_path: Path, kind: str) -> None:
    save(tmp_path / "model.safetensors", {"a.weight": torch.ones(4, 4)})
    config = tmp_path / "config.json"
    make = {
        "pipe": lambda: os.mkfifo(config), "device": lambda: config.symlink_to("/dev/zero"),
        "loop": lambda: config.symlink_to(config), "folder": config.mkdir,
    }  # fmt: skip
    make[kind]()
    with open_plain(tmp_path) as checkpoint:
        (warning,) = checkpoint.warnings
    assert "config.json" in warning


def test_a_configuration_of_no_use_is_no_damaged_one(tmp_path: Path) -> None:
    save(tmp_path / "model.safetensors", {"a.weight": torch.ones(4, 4).to(FP8)})
    (tmp_path / "config.json").write_text('{"quantization_config": 3, "rope": [NaN, Infinity]}')
    with open_plain(tmp_path) as checkpoint:
        assert checkpoint.warnings == ()


def test_quantised_checkpoints_are_still_opened_and_described(tmp_path: Path) -> None:
    tensors = {"a.weight": torch.ones(4, 4, dtype=torch.int8), "a.SCB": torch.ones(4)}
    with open_checkpoint(save(tmp_path / "x.safetensors", tensors)) as checkpoint:
        (warning,) = checkpoint.warnings
        assert warning == (
            f"{tmp_path}/x.safetensors: is quantised (bitsandbytes, 8 bits): 1 tensor holds codes (`a.weight`), "
            "the first with `a.SCB`"
        )
        assert checkpoint.specs == checkpoint.stored


def test_pickled_ones_too(tmp_path: Path) -> None:
    torch.save({"a.weight": torch.ones(4, 4, dtype=torch.int8), "a.SCB": torch.ones(4)}, tmp_path / "x.bin")
    with pytest.raises(Mismatch, match="8 bits"):
        open_plain(tmp_path / "x.bin", allow_pickle=True)
