"""LoRA files of kohya, diffusers, ComfyUI and renamed ones of peft: their products are merged, or they are refused."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

import taskmerge
from taskmerge.errors import Mismatch, TaskmergeError, UsageError
from taskmerge.experts.lora_names import CONFIG, is_adapter

MODULES = ("down_blocks.0.attentions.0.to_q", "down_blocks.0.attentions.0.to_k", "mid_block.proj_in", "up.1.conv")
Pair = tuple[Tensor, Tensor]


def base_state(front: str) -> dict[str, Tensor]:
    drawn = torch.Generator().manual_seed(0)
    shapes = {module: (6, 6, 3, 3) if module.endswith("conv") else (6, 6) for module in MODULES}
    state = {f"{front}{module}.weight": torch.randn(shape, generator=drawn) for module, shape in shapes.items()}
    return state | {f"{front}norm.weight": torch.ones(6)}


def factors(seed: int, rank: int) -> dict[str, Pair]:
    """Module -> A, B."""
    drawn = torch.Generator().manual_seed(seed)
    found = {}
    for module in MODULES:
        sides = (3, 3) if module.endswith("conv") else ()
        ones = (1,) * len(sides)
        found[module] = (
            torch.randn(rank, 6, *sides, generator=drawn), torch.randn(6, rank, *ones, generator=drawn)
        )  # fmt: skip
    return found


def product(pair: Pair) -> Tensor:
    a, b = pair
    return (b.flatten(1) @ a.flatten(1)).reshape(b.shape[0], *a.shape[1:])


# --- styles: (what stands before modules in the base) -> file, alpha ----------------------------------------------

Style = tuple[Callable[[str], str], str, str, bool]
STYLES: dict[str, Style] = {
    "kohya": (lambda module: f"lora_unet_{module.replace('.', '_')}", ".lora_down.weight", ".lora_up.weight", True),
    "diffusers, old": (lambda module: f"unet.{module}", ".lora.down.weight", ".lora.up.weight", False),
    "diffusers": (lambda module: f"unet.{module}", ".lora_A.weight", ".lora_B.weight", False),
    "diffusers, transformer": (lambda module: f"transformer.{module}", ".lora_A.weight", ".lora_B.weight", False),
    "ComfyUI": (lambda module: f"diffusion_model.{module}", ".lora_A.weight", ".lora_B.weight", True),
    "ComfyUI, down and up": (lambda module: f"diffusion_model.{module}", ".lora_down.weight", ".lora_up.weight", True),
}


def written(path: Path, style: str, pairs: dict[str, Pair], alpha: float | None) -> Path:
    said, down, up, scaled = STYLES[style]
    tensors: dict[str, Tensor] = {}
    for module, (a, b) in pairs.items():
        tensors |= {said(module) + down: a, said(module) + up: b}
        if scaled and alpha is not None:
            tensors[f"{said(module)}.alpha"] = torch.tensor(alpha)
    save_file(tensors, path)
    return path


@settings(max_examples=16, deadline=None)
@given(
    style=st.sampled_from(sorted(STYLES)), front=st.sampled_from(["", "unet.", "model.diffusion_model."]),
    method=st.sampled_from(["average", "task_arithmetic"]), rank=st.integers(1, 3), seed=st.integers(0, 99),
)  # fmt: skip
def test_products_are_merged_in_every_style(
    tmp_path_factory: pytest.TempPathFactory, style: str, front: str, method: str, rank: int, seed: int
) -> None:
    tmp, chance = tmp_path_factory.mktemp("style"), random.Random(seed)
    base = base_state(front)
    save_file(base, tmp / "base.safetensors")
    wanted = {name: value.double() for name, value in base.items()}
    for task in "ab":
        pairs = factors(chance.randrange(1000), rank)
        alpha = chance.choice([None, 0.5, 2.0, 7.0])
        written(tmp / f"{task}.safetensors", style, pairs, alpha)
        scaling = 1.0 if alpha is None or not STYLES[style][3] else alpha / rank
        for module, pair in pairs.items():
            wanted[f"{front}{module}.weight"] += scaling * product((pair[0].double(), pair[1].double())) / 2
    share = {"coefficient": 0.5} if method == "task_arithmetic" else {}
    out = tmp / "out.safetensors"
    taskmerge.merge(
        [tmp / "a.safetensors", tmp / "b.safetensors"],
        base=tmp / "base.safetensors",
        method=method,
        output=out,
        **share,
    )
    found = load_file(out)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name].double(), value, rtol=1e-5, atol=1e-5)
    assert taskmerge.verify(out, [tmp]).same_file


@pytest.mark.parametrize("style", sorted(STYLES))
def test_without_a_base_the_message_says_what_it_is(tmp_path: Path, style: str) -> None:
    path = written(tmp_path / "x.safetensors", style, factors(1, 2), 2.0)
    assert is_adapter(path)
    with pytest.raises(UsageError, match="is a LoRA adapter"):
        taskmerge.merge([path], method="average", output=tmp_path / "out.safetensors")


PEFT = "base_model.model."


def peft_file(path: Path, module: str = "fc", config: dict[str, Any] | None = None, seed: int = 1) -> Path:
    drawn = torch.Generator().manual_seed(seed)
    path.parent.mkdir(exist_ok=True)
    a, b = torch.randn(2, 6, generator=drawn), torch.randn(4, 2, generator=drawn)
    save_file({f"{PEFT}{module}.lora_A.weight": a, f"{PEFT}{module}.lora_B.weight": b}, path)
    if config is not None:
        (path.parent / CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 3, **config}))
    return path


def merged(tmp: Path, *inputs: Path, base: Path | None = None) -> tuple[dict[str, Tensor], Any]:
    if base is None:
        base = tmp / "the-base.safetensors"
        save_file({"fc.weight": torch.zeros(4, 6)}, base)
    out = tmp / "out.safetensors"
    receipt = taskmerge.merge(list(inputs), base=base, method="average", output=out, overwrite=True)
    return load_file(out), receipt


def test_peft_s_file_under_another_name_needs_its_configuration(tmp_path: Path) -> None:
    lone = peft_file(tmp_path / "lone" / "x.safetensors")
    with pytest.raises(Mismatch, match="how its products are scaled") as caught:
        merged(tmp_path, lone)
    assert CONFIG in (caught.value.hint or "")
    named = peft_file(tmp_path / "named" / "x.safetensors", config={})
    usual = peft_file(tmp_path / "usual" / "adapter_model.safetensors", config={})
    assert torch.equal(merged(tmp_path, named)[0]["fc.weight"], merged(tmp_path, usual.parent)[0]["fc.weight"])


UNKNOWN = {
    "LoHa": {"lora_unet_x.hada_w1_a": (2, 4), "lora_unet_x.hada_w1_b": (4, 2), "lora_unet_y.lora_down.weight": (2, 4)},
    "DoRA": {"unet.x.lora_A.weight": (2, 4), "unet.x.lora_B.weight": (4, 2), "unet.x.dora_scale": (4, 1)},
    "Tucker": {"lora_unet_x.lora_down.weight": (2, 4), "lora_unet_x.lora_mid.weight": (2, 2, 3, 3)},
    "a lone factor": {"unet.x.lora_A.weight": (2, 4)},
    "an alpha of nothing": {"unet.x.lora_A.weight": (2, 4), "unet.x.lora_B.weight": (4, 2), "unet.y.alpha": ()},
    "scaled nobody knows how": {"x.lora_A.weight": (2, 4), "x.lora_B.weight": (4, 2)},
    "no such module": {"unet.z.lora_A.weight": (2, 4), "unet.z.lora_B.weight": (4, 2)},
    "another shape": {"unet.x.lora_A.weight": (2, 5), "unet.x.lora_B.weight": (4, 2)},
}  # fmt: skip


@pytest.mark.parametrize("case", UNKNOWN)
def test_what_is_not_plain_lora_is_refused(tmp_path: Path, case: str) -> None:
    save_file({"x.weight": torch.zeros(4, 4), "y.weight": torch.zeros(4, 4)}, tmp_path / "the-base.safetensors")
    save_file({name: torch.ones(shape) for name, shape in UNKNOWN[case].items()}, tmp_path / "x.safetensors")
    with pytest.raises(TaskmergeError) as caught:
        merged(tmp_path, tmp_path / "x.safetensors", base=tmp_path / "the-base.safetensors")
    assert caught.value.exit_code == 4
    assert caught.value.hint


def test_factors_beside_whole_weights_are_never_averaged_apart(tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        drawn = torch.Generator().manual_seed(seed)
        tensors = {
            "fc.base_layer.weight": (4, 4),
            "fc.lora_A.default.weight": (2, 4),
            "fc.lora_B.default.weight": (4, 2),
        }
        save_file(
            {key: torch.randn(shape, generator=drawn) for key, shape in tensors.items()},
            tmp_path / f"{name}.safetensors",
        )
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    with pytest.raises(Mismatch, match="LoRA factors beside whole weights"):
        taskmerge.merge(paths, method="average", output=tmp_path / "out.safetensors")
    taskmerge.merge(paths, method="average", output=tmp_path / "out.safetensors", exclude="*lora_*")
    assert list(load_file(tmp_path / "out.safetensors")) == ["fc.base_layer.weight"]


# --- whole names -------------------------------------------------------------------------------------------------

PARTS = (
    "text_model.",
    "vision_model.",
    "audio_tower.",
    "vision_tower.",
    "language_model.model.",
    "encoder.",
    "decoder.",
    "visual.",
)


@settings(max_examples=30, deadline=None)
@given(own=st.sampled_from(PARTS), other=st.sampled_from(PARTS), inner=st.sampled_from(["", "encoder.", "model."]))
def test_an_adapter_of_one_part_never_lands_in_another(
    tmp_path_factory: pytest.TempPathFactory, own: str, other: str, inner: str
) -> None:
    tmp = tmp_path_factory.mktemp("parts")
    module = f"{inner}layers.0.fc"
    save_file({f"{other}{module}.weight": torch.zeros(4, 6)}, tmp / "the-base.safetensors")
    path = peft_file(tmp / "x" / "adapter_model.safetensors", f"{own}{module}", {})
    if own == other:
        found, _ = merged(tmp, path, base=tmp / "the-base.safetensors")
        assert found[f"{other}{module}.weight"].abs().sum() > 0
        return
    with pytest.raises(Mismatch, match="1 of its 1 targets"):
        merged(tmp, path, base=tmp / "the-base.safetensors")


@pytest.mark.parametrize("part", ["vision_model.", "audio_tower."])
def test_a_part_that_only_the_base_names_is_taken_when_told(tmp_path: Path, part: str) -> None:
    save_file({f"{part}layers.0.fc.weight": torch.zeros(4, 6)}, tmp_path / "the-base.safetensors")
    path = peft_file(tmp_path / "x" / "adapter_model.safetensors", "layers.0.fc", {})
    with pytest.raises(Mismatch) as caught:
        merged(tmp_path, path, base=tmp_path / "the-base.safetensors")
    said = f"layers.* = {part}layers.*"
    assert f"--map '{said}'" in (caught.value.hint or "")
    taskmerge.merge(
        [path],
        base=tmp_path / "the-base.safetensors",
        method="average",
        map=[said],
        output=tmp_path / "out.safetensors",
    )
    assert load_file(tmp_path / "out.safetensors")[f"{part}layers.0.fc.weight"].abs().sum() > 0


# --- what is worth a word -----------------------------------------------------------------------------------------


def test_an_untrained_adapter_is_named(tmp_path: Path) -> None:
    path = peft_file(tmp_path / "x" / "adapter_model.safetensors", config={})
    tensors = load_file(path)
    save_file({name: value * ("lora_A" in name) for name, value in tensors.items()}, path)
    _, receipt = merged(tmp_path, path)
    assert any("x changes nothing" in warning for warning in receipt.warnings)
    _, receipt = merged(tmp_path, peft_file(tmp_path / "y" / "adapter_model.safetensors", config={}))
    assert not any("changes nothing" in warning for warning in receipt.warnings)


@pytest.mark.parametrize(
    ("said", "folder", "warned"),
    [
        ("org/Small-7B", "Small-7B", False), ("org/small-7b", "Small-7B", False), ("org/Small-13B", "Small-7B", True),
        ("org/Small-13B", "base", False), ("", "Small-7B", False), (None, "Small-7B", False),
    ],
)  # fmt: skip
def test_an_adapter_that_names_another_base_is_a_warning(
    tmp_path: Path, said: str | None, folder: str, warned: bool
) -> None:
    (tmp_path / folder).mkdir()
    save_file({"fc.weight": torch.zeros(4, 6)}, tmp_path / folder / "model.safetensors")
    path = peft_file(tmp_path / "x" / "adapter_model.safetensors", config={"base_model_name_or_path": said})
    _, receipt = merged(tmp_path, path.parent, base=tmp_path / folder)
    assert any(f"trained on `{said}`" in warning for warning in receipt.warnings) == warned


def test_the_base_that_an_adapter_names_is_in_the_hint(tmp_path: Path) -> None:
    path = peft_file(tmp_path / "x" / "adapter_model.safetensors", config={"base_model_name_or_path": "org/Small-7B"})
    with pytest.raises(UsageError) as caught:
        taskmerge.merge([path], method="average", output=tmp_path / "out.safetensors")
    assert "`org/Small-7B`" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("left", "taken"), [((CONFIG,), "whole"), (("weights",), "whole"), ((CONFIG, "weights"), "adapter")]
)
def test_of_a_folder_with_both_it_is_said_what_is_taken(tmp_path: Path, left: tuple[str, ...], taken: str) -> None:
    path = peft_file(tmp_path / "x" / "adapter_model.safetensors", config={})
    save_file({"fc.weight": torch.full((4, 6), 5.0)}, tmp_path / "x" / "model.safetensors")
    for name, file in ((CONFIG, path.parent / CONFIG), ("weights", path)):
        if name not in left:
            file.unlink()
    found, receipt = merged(tmp_path, path.parent)
    assert torch.equal(found["fc.weight"], torch.full((4, 6), 5.0)) == (taken == "whole")
    assert any(f"the {'adapter' if taken == 'adapter' else 'whole model'} is taken" in one for one in receipt.warnings)


def test_an_adapter_is_no_base(tmp_path: Path) -> None:
    path = peft_file(tmp_path / "x" / "adapter_model.safetensors", config={})
    with pytest.raises(Mismatch, match="is an adapter, which changes a base"):
        merged(tmp_path, path, base=path.parent)


def test_an_expert_that_is_the_base_is_named(tmp_path: Path) -> None:
    for name, value in (("base", 1.0), ("a", 1.0), ("b", 2.0)):
        save_file({"layers.0.fc.weight": torch.full((3, 3), value)}, tmp_path / f"{name}.safetensors")
    inputs = [tmp_path / f"{name}.safetensors" for name in ("base", "a", "b")]
    receipt = taskmerge.merge(inputs, method="task_arithmetic", output=tmp_path / "out.safetensors")
    assert [warning for warning in receipt.warnings if "equals the base" in warning] == [
        "a equals the base, tensor for tensor: it changes nothing"
    ]
