"""Blocks: a task's own part of the encoder, put in and taken out again by the names of the shared checkpoint."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from model_cases import clip_model, clip_spec, config_of, local, pictures, randomised, saved, text_backbone
from torch import Tensor

from taskmerge.checkpoint.checkpoint import Checkpoint, open_checkpoint
from taskmerge.errors import BadFile, Mismatch
from taskmerge.models.backbones import build
from taskmerge.models.contract import Backbone
from taskmerge.models.fill import block_for, check_fits, exchange, fill
from taskmerge.models.outputs import Forward, passes
from taskmerge.specs.suite import Task

LAYER = "visual.transformer.resblocks.1."
CPU = torch.device("cpu")


@pytest.fixture
def clip(tmp_path: Path) -> Backbone:
    return build(clip_spec(tmp_path / "suite"), resolve=local)


def visual(seed: int = 0, layer: str = "") -> dict[str, Tensor]:
    return {
        name: one for name, one in clip_model(seed).state_dict().items() if name.startswith("visual.") and layer in name
    }


def opened(path: Path, tensors: dict[str, Tensor]) -> Checkpoint:
    return open_checkpoint(saved(path, tensors))


def state(backbone: Backbone) -> dict[str, Tensor]:
    return {name: one.clone() for name, one in backbone.module.state_dict().items()}


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(one, expected[name]) for name, one in found.items())


def named(name: str, kind: Any = "classification") -> Task:
    return Task(name, None, Path("head"), kind, "accuracy")


@pytest.mark.parametrize("form", ["visual", "bare", "module", "full"])
def test_a_block_stands_in_the_encoder_until_it_is_exchanged(tmp_path: Path, clip: Backbone, form: str) -> None:
    """In every form of names that a checkpoint may have; blocks may overlap."""

    def spelt(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        short = {"bare": "", "module": "module.visual."}.get(form, "visual.")
        return {short + name.removeprefix("visual."): one for name, one in tensors.items()}

    shared = spelt(visual(0)) if form != "full" else dict(clip_model(0).state_dict())
    model = opened(tmp_path / "model.safetensors", shared)
    one = opened(tmp_path / "one.safetensors", spelt(visual(1, LAYER)))
    parts = {name: tensor for name, tensor in visual(2).items() if LAYER + "mlp" in name or "resblocks.0.ln" in name}
    two = opened(tmp_path / "two.safetensors", spelt(parts))
    fill(clip, model)
    exchange(clip, model, None, one)
    assert same(state(clip), {**visual(0), **visual(1, LAYER)})
    exchange(clip, model, one, two)
    assert same(state(clip), {**visual(0), **parts})
    exchange(clip, model, two, None)
    assert same(state(clip), visual(0))


def test_a_block_may_be_of_another_precision(tmp_path: Path, clip: Backbone) -> None:
    model = opened(tmp_path / "model.safetensors", {name: one.half() for name, one in visual(0).items()})
    block = opened(tmp_path / "block.safetensors", visual(1, LAYER))
    fill(clip, model)
    exchange(clip, model, None, block)
    assert same(state(clip), {**{name: one.half().float() for name, one in visual(0).items()}, **visual(1, LAYER)})


def test_former_names_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    """A block of an old BERT has `LayerNorm.gamma` where its checkpoint has."""
    backbone = text_backbone(tmp_path / "suite", "bert")
    models = [randomised(transformers.AutoModel.from_config(config_of("bert")), seed) for seed in (0, 1)]
    old = [
        {
            f"bert.{name.replace('LayerNorm.weight', 'LayerNorm.gamma')}": one
            for name, one in model.state_dict().items()
            if "position_ids" not in name and "pooler" not in name
        }
        for model in models
    ]
    model = opened(tmp_path / "model.safetensors", old[0])
    own = {name: one for name, one in old[1].items() if "layer.1.output" in name}
    fill(backbone, model)
    exchange(backbone, model, None, opened(tmp_path / "block.safetensors", own))
    found = backbone.module.state_dict()
    for seed in (0, 1):
        name = f"encoder.layer.{seed}.output.LayerNorm.weight"
        assert torch.equal(found[name], models[seed].state_dict()[name])


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"resblocks.1.mlp.c_fc.bias": torch.zeros(128)}, "1 unexpected: resblocks.1.mlp.c_fc.bias"),
        ({LAYER + "mlp.c_fc.bias": torch.zeros(5)}, r"1 of another shape: .*c_fc\.bias \[5\], expected \[128\]"),
        ({LAYER + "mlp.c_fc.bias": torch.zeros(128, dtype=torch.int8)}, r"not of a floating-point type: .* int8"),
        ({"text_projection": torch.zeros(16, 12)}, "1 unexpected: text_projection"),
        ({LAYER + "mlp.c_fc.bias": torch.zeros(128), "colour": torch.zeros(1)}, "1 unexpected: colour"),
        ({}, "it has no tensor"),
    ],
)
def test_what_is_no_part_of_the_encoder_is_a_mismatch(
    tmp_path: Path, clip: Backbone, tensors: dict[str, Tensor], says: str
) -> None:
    model = opened(tmp_path / "model.safetensors", dict(clip_model(0).state_dict()))
    block = opened(tmp_path / "block.safetensors", tensors)
    fill(clip, model)
    before = state(clip)
    for refused in (
        lambda: block_for(clip, model, block),
        lambda: check_fits(clip, [model], None, [(model, block)]),
        lambda: exchange(clip, model, None, block),
    ):
        with pytest.raises(Mismatch, match=f"does not fit the encoder in model.safetensors: .*{says}") as caught:
            refused()
        assert (caught.value.where, caught.value.exit_code) == (str(block.path), 4)
    assert same(state(clip), before)


def test_all_misfits_are_in_one_message(tmp_path: Path, clip: Backbone) -> None:
    model, bad = opened(tmp_path / "model.safetensors", visual(0)), {"colour": torch.zeros(1)}
    blocks = [(model, opened(tmp_path / f"{name}.safetensors", bad)) for name in ("one", "two")]
    with pytest.raises(Mismatch, match="2 checkpoints do not fit\n") as caught:
        check_fits(clip, [model], None, blocks)
    assert "one.safetensors" in caught.value.what
    assert "two.safetensors" in caught.value.what


def test_tasks_with_a_block_are_encoded_apart(tmp_path: Path) -> None:
    one, two = (opened(tmp_path / f"{name}.safetensors", {"w": torch.zeros(1)}) for name in ("one", "two"))
    tasks = [named(name) for name in ("a", "b", "c", "d")]
    assert passes(tasks, {}) == {None: [0, 1, 2, 3]}
    assert passes(tasks, {"b": one, "d": two, "x": one}) == {None: [0, 2], one: [1], two: [3]}


@pytest.mark.parametrize("kind", ["classification", "depth"])
def test_each_task_sees_its_own_encoder_and_the_shared_one_is_left(tmp_path: Path, clip: Backbone, kind: str) -> None:
    """Also where maps come batch by batch, and are asked for in turn."""
    model, inputs = opened(tmp_path / "model.safetensors", visual(0)), clip.prepare(pictures(7))
    blocks = {
        name: opened(tmp_path / f"{name}.safetensors", visual(seed, LAYER)) for seed, name in enumerate("bd", start=1)
    }
    told: list[tuple[int, int | None, str]] = []
    forward = Forward(clip, CPU, 4, progress=lambda *now: told.append(now))
    wanted = {}
    for name, tensors in (("a", {}), ("b", visual(1, LAYER)), ("d", visual(2, LAYER))):
        fill(clip, opened(tmp_path / "whole.safetensors", {**visual(0), **tensors}))
        wanted[name] = clip.module(inputs)
    heads = [(named(name, kind), lambda features: features) for name in "abcd"]
    for _ in range(2):
        forward.fill("mine", model, blocks)
        found: dict[int, list[Tensor]] = {}
        for part in forward.outputs(inputs, heads):
            found.setdefault(part.place, []).append(part.values)
        for place, name in enumerate("abad"):
            torch.testing.assert_close(torch.cat(found[place]), wanted[name])
        assert same(state(clip), visual(0))
    assert told[-1][0] == 2 * 3 * 7
    several = [forward.outputs(inputs, heads[:2]) for _ in range(2)]
    for parts in zip(*several, strict=True):
        name, start, count = "ab"[parts[0].place], parts[0].start, len(parts[0].values)
        for part in parts:
            torch.testing.assert_close(part.values, wanted[name][start : start + count])
    forward.fill("mine", model)
    part = next(forward.outputs(inputs, heads[1:2]))
    torch.testing.assert_close(part.values, wanted["a"][: len(part.values)])


def test_what_was_left_off_in_the_middle_leaves_nothing_behind(tmp_path: Path, clip: Backbone) -> None:
    model, inputs = opened(tmp_path / "model.safetensors", visual(0)), clip.prepare(pictures(7))
    blocks = {"b": opened(tmp_path / "b.safetensors", visual(1, LAYER))}
    forward, heads = Forward(clip, CPU, 4), [(named(name, "depth"), lambda features: features) for name in "ab"]
    wanted = {}
    for seed in (0, 2):
        for name, tensors in (("a", {}), ("b", visual(1, LAYER))):
            fill(clip, opened(tmp_path / "whole.safetensors", {**visual(seed), **tensors}))
            wanted[seed, name] = clip.module(inputs)[:4]
    models = {0: model, 2: opened(tmp_path / "other.safetensors", visual(2))}
    for seed in (0, 2, 0):
        for name, head in (("b", heads[1:]), ("a", heads[:1]), ("b", heads[1:])):
            forward.fill("mine", models[seed], blocks)
            torch.testing.assert_close(next(forward.outputs(inputs, head)).values, wanted[seed, name])


def test_a_damaged_block_is_to_blame_for_its_outputs(tmp_path: Path, clip: Backbone) -> None:
    model = opened(tmp_path / "model.safetensors", visual(0))
    block = opened(tmp_path / "block.safetensors", {LAYER + "mlp.c_fc.bias": torch.full((128,), float("nan"))})
    forward = Forward(clip, CPU, 4)
    forward.fill("mine", model, {"b": block})
    inputs = clip.prepare(pictures(3))
    assert len(list(forward.outputs(inputs, [(named("a"), lambda features: features)]))) == 1
    with pytest.raises(BadFile, match="holds NaN or infinity") as caught:
        list(forward.outputs(inputs, [(named("b"), lambda features: features)]))
    assert caught.value.where == f"{block.path}: `{LAYER}mlp.c_fc.bias`"
