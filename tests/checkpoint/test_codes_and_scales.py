"""FP8 codes with scales are read as the numbers that they stand for, whatever the layout; what is more is refused."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import save, save_sharded
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fp8_cases import SCALES, TYPES, Coded, broadcast, finite_codes, in_blocks, scales
from taskmerge.checkpoint import checkpoint as reading
from taskmerge.checkpoint import dequantise
from taskmerge.checkpoint.checkpoint import Checkpoint, open_checkpoint, open_plain
from taskmerge.checkpoint.digest import digest_of
from taskmerge.checkpoint.dtypes import DTYPES
from taskmerge.errors import BadFile, Mismatch
from taskmerge.experts.sources import CheckpointSource, Tally

P = "model.layers.0.mlp.down_proj."
W = P + "weight"
sides = st.integers(1, 20)


@st.composite
def layouts(draw: st.DrawFn) -> tuple[Coded, list[int] | None]:
    """Codes of any type with scales of any type, and the size of blocks that the configuration must say."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    dtype, kind = draw(st.sampled_from(TYPES)), draw(st.sampled_from(SCALES))
    stack = draw(st.sampled_from([(), (3,)]))
    shape = (*stack, draw(sides), draw(sides))
    codes = finite_codes(dtype, shape, generator)
    over = draw(st.sampled_from(["tensor", "leading", "blocks", "odd blocks"]))
    if over == "tensor":
        return broadcast(codes, scales(kind, draw(st.sampled_from([(), (1,), (1,) * len(shape)])), generator)), None
    if over == "leading":
        own = draw(st.integers(1, len(shape) - 1))
        grid = shape[:own] + draw(st.sampled_from([(), (1,) * (len(shape) - own)]))
        return broadcast(codes, scales(kind, grid, generator)), None
    powers = st.sampled_from([1, 2, 4, 8, 16, 32])
    size = powers if over == "blocks" else sides
    block = (draw(size), draw(size))
    grid = (*stack, -(-shape[-2] // block[0]), -(-shape[-1] // block[1]))
    said = list(block) if over == "odd blocks" or draw(st.booleans()) else None
    return in_blocks(codes, scales(kind, grid, generator), block), said


@given(case=layouts(), data=st.data(), name=st.sampled_from(["_scale_inv", "_scale", "scale_weight"]))
@settings(deadline=None, max_examples=200)
def test_every_layout_is_the_product_in_float64_rounded_once(
    tmp_path_factory: pytest.TempPathFactory, case: tuple[Coded, list[int] | None], data: st.DataObject, name: str
) -> None:
    folder = tmp_path_factory.mktemp("coded")
    coded, block = case
    scale = P + name if name == "scale_weight" else W + name
    parts = [{W: coded.codes, "norm.weight": torch.ones(3)}, {scale: coded.scale}]
    if data.draw(st.booleans(), "in two shards"):
        save_sharded(folder, {f"model-{i}-of-2.safetensors": part for i, part in enumerate(parts)})
    else:
        save(folder / "model.safetensors", parts[0] | parts[1])
    if block is not None:
        config = {"quantization_config": {"quant_method": "fp8", "weight_block_size": block}}
        (folder / "config.json").write_text(json.dumps(config))
    wanted = coded.values.float()  # the one rounding
    with open_plain(folder) as checkpoint, pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "DECODED", data.draw(st.sampled_from([7, 1 << 20])))
        patch.setattr(dequantise, "PIECE", data.draw(st.sampled_from([5, 1 << 18])))
        assert list(checkpoint.specs) == [W, "norm.weight"]
        assert checkpoint.warnings == ()
        assert torch.equal(checkpoint.tensor(W), wanted)
        start = data.draw(st.integers(0, wanted.numel()))
        stop = data.draw(st.integers(start, wanted.numel()))
        for dtype in (torch.float32, torch.float64):
            out = torch.empty(stop - start, dtype=dtype)
            source = CheckpointSource("x", checkpoint)
            source.read(W, start, out, torch.empty(8 * len(out), dtype=torch.uint8), None)
            assert torch.equal(out, wanted.reshape(-1)[start:stop].to(dtype))
        _check_digest(checkpoint, wanted.numel())


def _check_digest(checkpoint: Checkpoint, numel: int) -> None:
    """What is read in two slices counts as the codes and scales that it was read from."""
    tally, source = Tally(), CheckpointSource("x", checkpoint)
    cut = numel // 2
    for start, stop in ((0, cut), (cut, numel)) if cut else ((0, numel),):
        raw = torch.empty(8 * (stop - start), dtype=torch.uint8)
        source.read(W, start, torch.empty(stop - start), raw, tally)
    source.raw("norm.weight", tally)
    assert tally.finish(source.stored) == (digest_of(checkpoint), 3)


@pytest.mark.parametrize("dtype", TYPES)
def test_every_code(tmp_path: Path, dtype: str) -> None:
    """All 256, NaN and infinities too; the sign of zero stays."""
    codes = torch.arange(256, dtype=torch.uint8).view(DTYPES[dtype]).reshape(16, 16)
    path = save(tmp_path / "x.safetensors", {W: codes, W + "_scale": torch.tensor(1.0)})
    with open_plain(path) as checkpoint:
        assert torch.equal(_bits(checkpoint.tensor(W)), _bits(codes.float()))
        fine = [row for row in range(16) if codes[row].float().isfinite().all()]
        source = CheckpointSource("x", checkpoint)
        for row in range(16):
            out, raw = torch.empty(16), torch.empty(128, dtype=torch.uint8)
            if row in fine:
                source.read(W, row * 16, out, raw, None)
                assert torch.equal(_bits(out), _bits(codes[row].float()))
            else:
                with pytest.raises(BadFile, match="NaN or infinity"):
                    source.read(W, row * 16, out, raw, None)


def _bits(values: Tensor) -> Tensor:
    """The bits of numbers, all NaN being one."""
    return values.masked_fill(values.isnan(), math.nan).view(torch.int32)


@pytest.mark.parametrize("power", [0, 1, 127, 200, 254])
def test_powers_of_two_over_the_whole_range(tmp_path: Path, power: int) -> None:
    """2^-127 is below float32's normal numbers, and 2^127 above what codes other than 1 leave room for."""
    scale = torch.tensor([power], dtype=torch.uint8)
    codes = torch.tensor([[1.0, -1.0]]).to(torch.float8_e4m3fn)
    for kept in (scale, scale.view(torch.float8_e8m0fnu)):
        with open_plain(save(tmp_path / "x.safetensors", {W: codes, W + "_scale_inv": kept})) as checkpoint:
            assert checkpoint.tensor(W).tolist() == [[2.0 ** (power - 127), -(2.0 ** (power - 127))]]


def matrix(rows: int = 8, columns: int = 8) -> Tensor:
    return torch.ones(rows, columns).to(torch.float8_e4m3fn)


REFUSED: dict[str, tuple[dict[str, Tensor], dict[str, Any]]] = {
    "a grid that fits no blocks": ({W: matrix(), W + "_scale_inv": torch.ones(3, 3)}, {}),
    "a grid that no power of two makes": ({W: matrix(10, 10), W + "_scale_inv": torch.ones(4, 4)}, {}),
    "more scales than numbers": ({W: matrix(), W + "_scale_inv": torch.ones(9, 9)}, {}),
    "as many axes, the wrong ones": ({W: matrix(8, 4), W + "_scale": torch.ones(4)}, {}),
    "more axes": ({W: matrix(), W + "_scale": torch.ones(1, 8, 1)}, {}),
    "two scales": ({W: matrix(), W + "_scale": torch.ones(()), W + "_scale_inv": torch.ones(2, 2)}, {}),
    "a second scale": ({W: matrix(), W + "_scale": torch.ones(8, 1), W + "_scale_2": torch.ones(())}, {}),
    "a zero point": ({W: matrix(), W + "_scale": torch.ones(8, 1), W + "_zero_point": torch.ones(8, 1)}, {}),
    "scales that are codes too": ({W: matrix(), W + "_scale": torch.ones(8, 1).to(torch.float8_e5m2)}, {}),
    "ComfyUI's other order": ({W: matrix(8, 32), W + "_scale": torch.full((8, 1), 127, dtype=torch.uint8),
                              P + "comfy_quant": torch.zeros(9, dtype=torch.uint8)}, {}),
    "codes without scales beside others": ({W: matrix(), W + "_scale": torch.ones(()), "a.weight": matrix()}, {}),
    "integers beside": ({W: matrix(), W + "_scale": torch.ones(()), "a.qweight": torch.ones(8, 1, dtype=torch.int32),
                         "a.qzeros": torch.ones(1, 1, dtype=torch.int32)}, {}),
    "int8 in blocks": ({W: matrix().to(torch.int8), W + "_scale_inv": torch.ones(2, 2)}, {}),
    "MXFP4 beside": ({W: matrix(), W + "_scale": torch.ones(()), "e_blocks": torch.ones(2, 8, 1, 16).to(torch.uint8),
                      "e_scales": torch.ones(2, 8, 1).to(torch.uint8)}, {}),
    "no scale at all": ({W: matrix()}, {"quant_method": "fp8"}),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_more_than_code_times_scale_is_refused(tmp_path: Path, case: str) -> None:
    tensors, entry = REFUSED[case]
    path = save(tmp_path / "x.safetensors", tensors)
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": entry}))
    with pytest.raises(Mismatch, match="is quantised") as caught:
        open_plain(path)
    assert caught.value.exit_code == 4
    assert "--on-buffer" not in caught.value.message
    assert "before quantisation" in str(caught.value.hint)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.specs == checkpoint.stored
        assert len(checkpoint.warnings) == 1


def test_what_is_no_weight_is_left_out(tmp_path: Path) -> None:
    attention = "model.layers.0.self_attn."
    tensors = {
        W: matrix(), W + "_scale": torch.ones(8, 1), P + "input_scale": torch.ones(()), P + "bias": torch.ones(8),
        attention + "k_proj.weight": matrix(), attention + "k_proj.weight_scale": torch.ones(8, 1),
        attention + "k_scale": torch.ones(1), "scaled_fp8": torch.empty(0).to(torch.float8_e4m3fn),
        "logit_scale": torch.ones(()), "vision.k_scale": torch.ones(1), P + "output_scale": torch.ones(8),
    }  # fmt: skip
    with open_plain(save(tmp_path / "x.safetensors", tensors)) as checkpoint:
        kept = {W, P + "bias", attention + "k_proj.weight", "logit_scale", "vision.k_scale", P + "output_scale"}
        assert checkpoint.specs.keys() == kept
        assert checkpoint.note is not None
        assert "2 with a scale for each row" in checkpoint.note
        assert "left out" in checkpoint.note


def test_comfyui_s_newer_form_with_one_scale(tmp_path: Path) -> None:
    about = torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
    tensors = {W: matrix(), W + "_scale": torch.tensor(3.0), P + "comfy_quant": about}
    with open_plain(save(tmp_path / "x.safetensors", tensors)) as checkpoint:
        assert list(checkpoint.specs) == [W]
        assert checkpoint.tensor(W).eq(3).all()


def test_blocks_of_128_with_ragged_edges(tmp_path: Path) -> None:
    """DeepSeek's kv_a_proj is 576 rows: 4.5 blocks."""
    generator = torch.Generator().manual_seed(0)
    codes, scale = finite_codes("F8_E4M3", (576, 200), generator), scales("F32", (5, 2), generator)
    with open_plain(save(tmp_path / "x.safetensors", {W: codes, W + "_scale_inv": scale})) as checkpoint:
        assert torch.equal(checkpoint.tensor(W), in_blocks(codes, scale, (128, 128)).values.float())


def test_pickled_codes(tmp_path: Path) -> None:
    torch.save({W: matrix(), W + "_scale": torch.tensor(2.0)}, tmp_path / "x.bin")
    with open_plain(tmp_path / "x.bin", allow_pickle=True) as checkpoint:
        assert checkpoint.tensor(W).eq(2).all()


def test_a_cut_scale_is_an_error(tmp_path: Path) -> None:
    path = save(tmp_path / "x.safetensors", {W: matrix(), W + "_scale": torch.ones(8, 1)})
    with open_plain(path) as checkpoint:
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size - 64 - 8)
        with pytest.raises(BadFile):
            checkpoint.tensor(W)


def test_reading_asks_for_whole_numbers(tmp_path: Path) -> None:
    path = save(tmp_path / "x.safetensors", {W: matrix(), W + "_scale": torch.ones(())})
    with open_plain(path) as checkpoint, pytest.raises(ValueError, match="whole numbers"):
        checkpoint.read_into(W, torch.empty(8, dtype=torch.uint8), 2)
