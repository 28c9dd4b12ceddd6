"""Filling by name: what is accepted, what is listed, and that nothing of the checkpoint before stays."""

from pathlib import Path

import pytest
import torch
import transformers
from model_cases import clip_model, clip_spec, config_of, local, pictures, randomised, saved, text_backbone
from torch import Tensor, nn

from taskmerge.checkpoint.checkpoint import open_checkpoint
from taskmerge.errors import Mismatch
from taskmerge.models.backbones import build
from taskmerge.models.contract import Backbone
from taskmerge.models.fill import fill, state_for


@pytest.fixture
def clip(tmp_path: Path) -> Backbone:
    return build(clip_spec(tmp_path / "suite"), resolve=local)


def visual(seed: int = 0) -> dict[str, Tensor]:
    return {name: one for name, one in clip_model(seed).state_dict().items() if name.startswith("visual.")}


def same(backbone: Backbone, expected: dict[str, Tensor]) -> bool:
    found = backbone.module.state_dict()
    return all(torch.equal(found[name], expected[name].float()) for name in found)


def renamed(tensors: dict[str, Tensor], before: str, after: str) -> dict[str, Tensor]:
    return {after + name.removeprefix(before): one for name, one in tensors.items()}


@pytest.mark.parametrize(
    "form",
    ["full", "visual", "bare", "module.full", "model.full", "module.visual", "half", "bfloat16", "pickled"],
)
def test_every_form_of_an_open_clip_checkpoint_fills_the_tower(tmp_path: Path, clip: Backbone, form: str) -> None:
    full, tower = clip_model().state_dict(), visual()
    tensors = {
        "full": full, "visual": tower, "bare": renamed(tower, "visual.", ""),
        "module.full": renamed(full, "", "module."), "model.full": renamed(full, "", "model."),
        "module.visual": renamed(tower, "", "module."),
        "half": {name: one.half() for name, one in full.items()},
        "bfloat16": {name: one.bfloat16() for name, one in tower.items()},
        "pickled": tower,
    }[form]  # fmt: skip
    path = tmp_path / ("x.pt" if form == "pickled" else "x.safetensors")
    torch.save(tensors, path) if form == "pickled" else saved(path, tensors)
    fill(clip, open_checkpoint(path, allow_pickle=True))
    dtype = {"half": torch.float16, "bfloat16": torch.bfloat16}.get(form, torch.float32)
    assert same(clip, {name: one.to(dtype) for name, one in tower.items()})
    assert {one.dtype for one in clip.module.state_dict().values()} == {torch.float32}


def test_nothing_of_the_checkpoint_before_stays(tmp_path: Path, clip: Backbone) -> None:
    first, second = visual(1), visual(2)
    partial = {name: one for name, one in second.items() if "embed" not in name and "conv1" not in name}
    assert len(partial) == len(second) - 3
    base, half = visual(3), {name: one.half() for name, one in second.items()}
    files = {name: saved(tmp_path / f"{name}.safetensors", one) for name, one in
             {"first": first, "partial": partial, "base": base, "half": half}.items()}  # fmt: skip
    opened = {name: open_checkpoint(path) for name, path in files.items()}
    fill(clip, opened["first"])
    fill(clip, opened["partial"], opened["base"])
    assert same(clip, {**base, **partial})
    fill(clip, opened["half"], opened["base"])
    assert same(clip, half)


def test_a_refused_checkpoint_leaves_the_backbone_as_it_was(tmp_path: Path, clip: Backbone) -> None:
    fill(clip, open_checkpoint(saved(tmp_path / "good.safetensors", visual(1))))
    lacking = {name: one for name, one in visual(2).items() if "ln_post" not in name}
    with pytest.raises(Mismatch):
        fill(clip, open_checkpoint(saved(tmp_path / "bad.safetensors", lacking)))
    assert same(clip, visual(1))


def test_all_that_is_missing_unexpected_or_misshapen_is_listed(tmp_path: Path, clip: Backbone) -> None:
    tensors = visual()
    del tensors["visual.proj"], tensors["visual.ln_post.bias"]
    tensors["visual.conv1.weight"] = torch.zeros(32, 3, 4, 4)
    tensors["visual.colour"] = torch.zeros(1)
    path = saved(tmp_path / "odd.safetensors", tensors)
    with pytest.raises(Mismatch) as caught:
        fill(clip, open_checkpoint(path))
    assert "2 missing: visual.proj, visual.ln_post.bias" in caught.value.what
    assert "1 unexpected: visual.colour" in caught.value.what
    assert "1 of another shape: visual.conv1.weight [32, 3, 4, 4], expected [32, 3, 8, 8]" in caught.value.what
    assert "open_clip model.json" in caught.value.what
    assert caught.value.where == str(path)


def test_a_long_list_ends_with_a_count(tmp_path: Path, clip: Backbone) -> None:
    other = {f"layers.{place}.weight": torch.zeros(1) for place in range(14)}
    with pytest.raises(Mismatch) as caught:
        fill(clip, open_checkpoint(saved(tmp_path / "other.safetensors", other)))
    assert "14 unexpected: layers.0.weight" in caught.value.what
    assert "layers.5.weight and 4 more" in caught.value.what
    assert f"{len(visual())} missing" in caught.value.what
    assert "another architecture" in str(caught.value.hint)


def test_an_incomplete_checkpoint_without_base_says_so(tmp_path: Path, clip: Backbone) -> None:
    tensors = dict(list(visual().items())[2:])
    with pytest.raises(Mismatch, match="2 missing") as caught:
        fill(clip, open_checkpoint(saved(tmp_path / "some.safetensors", tensors)))
    assert "base" in str(caught.value.hint)


def test_a_text_tower_with_a_stranger_in_it_is_listed(tmp_path: Path, clip: Backbone) -> None:
    tensors = {**clip_model().state_dict(), "transformer.resblocks.7.ln_1.weight": torch.zeros(16)}
    with pytest.raises(Mismatch, match=r"1 unexpected: transformer\.resblocks\.7\.ln_1\.weight"):
        fill(clip, open_checkpoint(saved(tmp_path / "deep.safetensors", tensors)))


HEADED = {
    "bert": ["AutoModel", "AutoModelForSequenceClassification", "AutoModelForMaskedLM", "AutoModelForPreTraining"],
    "roberta": ["AutoModel", "AutoModelForSequenceClassification", "AutoModelForMaskedLM"],
    "gpt2": ["AutoModel", "AutoModelForSequenceClassification", "AutoModelForCausalLM"],
}


@pytest.mark.parametrize(("family", "kind"), [(family, kind) for family, kinds in HEADED.items() for kind in kinds])
def test_task_models_of_transformers_fill_the_encoder(tmp_path: Path, family: str, kind: str) -> None:
    backbone = text_backbone(tmp_path, family)
    model = randomised(getattr(transformers, kind).from_config(config_of(family)))
    model.save_pretrained(tmp_path / "model")
    fill(backbone, open_checkpoint(tmp_path / "model"))
    body = getattr(model, model.base_model_prefix, model)
    assert same(backbone, body.state_dict())


def test_a_language_model_with_a_pooler_of_old_fills_the_encoder(tmp_path: Path) -> None:
    """roberta-base: a masked language model's file that has the pooler and the constant positions too."""
    backbone = text_backbone(tmp_path, "roberta")
    model = randomised(transformers.AutoModelForMaskedLM.from_config(config_of("roberta")))
    pooler = transformers.AutoModel.from_config(config_of("roberta")).pooler.state_dict()
    tensors = {name: one for name, one in model.state_dict().items() if name != "lm_head.decoder.weight"}
    tensors |= {f"roberta.pooler.{name}": one for name, one in pooler.items()}
    tensors["roberta.embeddings.position_ids"] = torch.arange(20)[None]
    fill(backbone, open_checkpoint(saved(tmp_path / "old.safetensors", tensors)))
    assert same(backbone, model.roberta.state_dict())


def test_gpt2_files_with_their_constant_masks_fill_the_encoder(tmp_path: Path) -> None:
    backbone = text_backbone(tmp_path, "gpt2")
    state = randomised(transformers.AutoModel.from_config(config_of("gpt2"))).state_dict()
    masks = {f"h.{layer}.attn.bias": torch.ones(1, 1, 20, 20) for layer in range(2)}
    fill(backbone, open_checkpoint(saved(tmp_path / "old.safetensors", state | masks)))
    assert same(backbone, state)


@pytest.mark.parametrize("form", ["encoder only", "former names", "former buffers", "wrapped"])
def test_former_and_partial_files_of_bert_fill_the_encoder(tmp_path: Path, form: str) -> None:
    backbone = text_backbone(tmp_path, "bert")
    base = randomised(transformers.AutoModel.from_config(config_of("bert")), 1).state_dict()
    expert = randomised(transformers.AutoModel.from_config(config_of("bert")), 2).state_dict()
    norm = {".LayerNorm.weight": ".LayerNorm.gamma", ".LayerNorm.bias": ".LayerNorm.beta"}
    old = {name: next((name.replace(a, b) for a, b in norm.items() if name.endswith(a)), name) for name in expert}
    tensors = {
        "encoder only": {name: one for name, one in expert.items() if name.startswith("encoder.")},
        "former names": {"bert." + old[name]: one for name, one in expert.items()},
        "former buffers": {**expert, "embeddings.position_ids": torch.arange(20)[None]},
        "wrapped": {"module.bert." + name: one for name, one in expert.items()},
    }[form]
    opened = open_checkpoint(saved(tmp_path / "base.safetensors", base))
    fill(backbone, open_checkpoint(saved(tmp_path / "expert.safetensors", tensors)), opened)
    whole = form != "encoder only"
    assert same(backbone, {name: expert[name] if whole or name.startswith("encoder.") else base[name] for name in base})


def test_another_family_does_not_fit(tmp_path: Path) -> None:
    backbone = text_backbone(tmp_path, "bert")
    other = transformers.AutoModel.from_config(config_of("gpt2")).state_dict()
    base = transformers.AutoModel.from_config(config_of("bert")).state_dict()
    with pytest.raises(Mismatch, match=r"unexpected: h\.0\.attn\.c_attn\.bias"):
        fill(
            backbone,
            open_checkpoint(saved(tmp_path / "gpt2.safetensors", other)),
            open_checkpoint(saved(tmp_path / "base.safetensors", base)),
        )


def test_where_each_tensor_comes_from_is_known_from_headers(tmp_path: Path, clip: Backbone) -> None:
    tower = visual()
    base = open_checkpoint(saved(tmp_path / "base.safetensors", clip_model().state_dict()))
    part = {name: one for name, one in renamed(tower, "visual.", "").items() if "conv1" not in name}
    expert = open_checkpoint(saved(tmp_path / "expert.safetensors", part))
    origins = state_for(clip, expert, base)
    assert list(origins) == list(clip.module.state_dict())
    assert (origins["visual.proj"].checkpoint, origins["visual.proj"].name) == (expert, "proj")
    assert origins["visual.conv1.weight"].checkpoint is base


def test_a_base_lends_no_blocks(tmp_path: Path, clip: Backbone) -> None:
    """An interrupted download of shards, or a wrong --exclude, would else be scored as a mixture with the base."""
    base = open_checkpoint(saved(tmp_path / "base.safetensors", visual(1)))
    lacking = {name: one for name, one in visual(2).items() if "resblocks.1." not in name and "conv1" not in name}
    with pytest.raises(Mismatch, match=r"12 missing: visual\.transformer\.resblocks\.1\.") as caught:
        state_for(clip, open_checkpoint(saved(tmp_path / "x.safetensors", lacking)), base)
    assert "--on-missing base" in str(caught.value)
    assert "conv1" not in str(caught.value)


def test_a_plain_backbone_takes_its_own_names_alone(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    backbone = Backbone(module, prepare=None, width=2, normalised=False, optional=frozenset({"1.num_batches_tracked"}))  # type: ignore[arg-type]
    tensors = {name: torch.rand_like(one) for name, one in module.state_dict().items() if one.is_floating_point()}
    module[1].num_batches_tracked.fill_(7)
    fill(backbone, open_checkpoint(saved(tmp_path / "x.safetensors", tensors)))
    assert same(backbone, {**tensors, "1.num_batches_tracked": torch.zeros(())})


@pytest.mark.parametrize("dtype", [torch.int32, torch.int8, torch.bool, torch.complex64], ids=str)
def test_integers_are_refused_as_weights(tmp_path: Path, dtype: torch.dtype) -> None:
    """Of the right shape, and int32 of the right number of bytes too: their bits are no float32."""
    backbone = Backbone(nn.Linear(2, 2), prepare=None, width=2, normalised=False)  # type: ignore[arg-type]
    before = backbone.module.weight.clone()
    tensors = {"weight": torch.tensor([[1, 2], [3, 4]]).to(dtype), "bias": torch.zeros(2)}
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(Mismatch, match=rf"1 not of a floating-point type: weight {name}\nhint: is it quantised"):
        fill(backbone, open_checkpoint(saved(tmp_path / "x.safetensors", tensors)))
    assert torch.equal(backbone.module.weight, before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn], ids=str)
def test_other_floating_point_types_are_converted(tmp_path: Path, dtype: torch.dtype) -> None:
    backbone = Backbone(nn.Linear(2, 2), prepare=None, width=2, normalised=False)  # type: ignore[arg-type]
    tensors = {"weight": torch.tensor([[1.0, -2.0], [0.5, 4.0]], dtype=dtype), "bias": torch.zeros(2)}
    fill(backbone, open_checkpoint(saved(tmp_path / "x.safetensors", tensors)))
    assert backbone.module.weight.tolist() == [[1, -2], [0.5, 4]]


def test_filling_copies_no_float32_tensor(tmp_path: Path, clip: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_checkpoint(saved(tmp_path / "x.safetensors", visual()))
    monkeypatch.setattr(checkpoint, "tensor", lambda name: pytest.fail(f"{name} was copied"))
    fill(clip, checkpoint)
    assert same(clip, visual())


@pytest.mark.cuda
@pytest.mark.parametrize("family", ["clip", "gpt2"])
def test_a_backbone_on_a_gpu_is_filled_and_agrees(tmp_path: Path, family: str) -> None:
    if family == "clip":
        backbone, raw = build(clip_spec(tmp_path / "suite"), resolve=local), list(pictures(3))
        tensors = clip_model().state_dict()
    else:
        backbone, raw = text_backbone(tmp_path / "suite", family), ["a film", "", "the dog is bad"]
        tensors = randomised(transformers.AutoModel.from_config(config_of(family))).state_dict()
    checkpoint = open_checkpoint(saved(tmp_path / "x.safetensors", tensors))
    inputs = backbone.prepare(raw)
    with torch.inference_mode():
        fill(backbone, checkpoint)
        expected = backbone.module(inputs)
        randomised(backbone.module, seed=5).cuda()
        fill(backbone, checkpoint)
        found = backbone.module({name: one.cuda() for name, one in inputs.items()})
    torch.testing.assert_close(found.cpu(), expected, atol=1e-4, rtol=1e-4)
