"""The classes of tensors on the real names and shapes of real models (built without memory, on the meta device)."""

from collections import Counter
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import nn

from taskmerge.experts.classes import attention_groups, block_of, classify, depths, position

Shapes = dict[str, tuple[tuple[int, ...], bool]]


def built(make: Callable[[], nn.Module]) -> Shapes:
    """Name -> (shape, floating) of a model's state dict."""
    with torch.device("meta"):
        state = make().state_dict()
    return {name: (tuple(tensor.shape), tensor.is_floating_point()) for name, tensor in state.items()}


def counted(shapes: Shapes) -> dict[str, int]:
    return dict(Counter(classify(name, shape, floating) for name, (shape, floating) in shapes.items()))


def of_class(shapes: Shapes, kind: str) -> set[str]:
    return {name for name, (shape, floating) in shapes.items() if classify(name, shape, floating) == kind}


def plain(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    return {name: shape for name, (shape, _) in shapes.items()}


@pytest.fixture(scope="module")
def clip() -> Shapes:
    import open_clip

    return built(lambda: open_clip.model.CLIP(**open_clip.get_model_config("ViT-B-32")))


def hugging(name: str, **config: object) -> Shapes:
    import transformers

    kind = name.removesuffix("Model").removesuffix("ForCausalLM")
    return built(lambda: getattr(transformers, name)(getattr(transformers, f"{kind}Config")(**config)))


# --- open_clip -------------------------------------------------------------------------------------------------


def test_open_clip_vit_b_32(clip: Shapes) -> None:
    """Per block: fused in_proj, out_proj, c_fc, c_proj are matrices; 8 vectors. Two towers of 12 blocks."""
    assert counted(clip) == {
        "linear": 2 * 12 * 4, "projection": 2, "embedding": 3, "conv": 1, "scalar": 1, "vector": 2 * 12 * 8 + 3 * 2 + 1,
    }  # fmt: skip
    assert of_class(clip, "projection") == {"visual.proj", "text_projection"}
    assert of_class(clip, "embedding") == {
        "visual.positional_embedding",
        "positional_embedding",
        "token_embedding.weight",
    }
    assert of_class(clip, "conv") == {"visual.conv1.weight"}
    assert of_class(clip, "scalar") == {"logit_scale"}


@pytest.mark.parametrize("prefix", ["visual.", "", "module.visual."])
def test_the_visual_tower_alone_under_any_prefix(clip: Shapes, prefix: str) -> None:
    tower = {prefix + name.removeprefix("visual."): one for name, one in clip.items() if name.startswith("visual.")}
    assert counted(tower) == {"linear": 48, "projection": 1, "embedding": 1, "conv": 1, "vector": 101}
    assert depths(tower) == {f"{prefix}transformer.resblocks": 12}


def test_both_towers_have_depths_of_their_own(clip: Shapes) -> None:
    towers = depths(clip)
    assert towers == {"visual.transformer.resblocks": 12, "transformer.resblocks": 12}
    assert position("visual.transformer.resblocks.3.mlp.c_fc.weight", towers) == (3, 12)
    assert position("transformer.resblocks.11.ln_1.bias", towers) == (11, 12)
    assert position("visual.proj", towers) is None


def test_fused_attention_of_open_clip_is_cut_along_the_rows(clip: Shapes) -> None:
    groups = attention_groups(plain(clip))
    assert len(groups) == 2 * 12 * 2, "weight and bias of every block"
    name = "visual.transformer.resblocks.0.attn.in_proj_weight"
    assert (groups[name].parts, groups[name].axis) == ((name,), 0)


# --- transformers ----------------------------------------------------------------------------------------------


def test_transformers_vit() -> None:
    shapes = hugging("ViTModel")
    assert counted(shapes) == {"linear": 12 * 6, "projection": 1, "embedding": 1, "conv": 1, "vector": 200 - 75}
    assert any(name.endswith("cls_token") for name in of_class(shapes, "vector"))
    assert len(attention_groups(plain(shapes))) == 12 * 6
    assert set(depths(shapes).values()) == {12}


def test_transformers_clip() -> None:
    shapes = hugging("CLIPModel")
    vectors = 2 * 12 * 10 + 3 * 2 + 1
    assert counted(shapes) == {
        "linear": 2 * 12 * 6, "projection": 2, "embedding": 3, "conv": 1, "scalar": 1, "vector": vectors,
    }  # fmt: skip
    assert of_class(shapes, "projection") == {"visual_projection.weight", "text_projection.weight"}
    assert len(depths(shapes)) == 2


def test_bert() -> None:
    shapes = hugging("BertModel")
    assert counted(shapes) == {"linear": 12 * 6, "projection": 1, "embedding": 3, "vector": 12 * 10 + 3}
    assert of_class(shapes, "projection") == {"pooler.dense.weight"}
    trio = attention_groups(plain(shapes))["encoder.layer.4.attention.self.key.weight"]
    assert trio.parts == tuple(f"encoder.layer.4.attention.self.{part}.weight" for part in ("query", "key", "value"))


def test_roberta_whose_one_token_type_is_a_vector() -> None:
    shapes = hugging("RobertaModel", type_vocab_size=1)
    assert counted(shapes) == {"linear": 12 * 6, "projection": 1, "embedding": 2, "vector": 12 * 10 + 4}
    assert of_class(shapes, "embedding") == {
        "embeddings.word_embeddings.weight",
        "embeddings.position_embeddings.weight",
    }


def test_gpt2_with_its_transposed_matrices() -> None:
    shapes = hugging("GPT2Model")
    assert counted(shapes) == {"linear": 12 * 4, "embedding": 2, "vector": 12 * 8 + 2}
    assert of_class(shapes, "embedding") == {"wte.weight", "wpe.weight"}
    groups = attention_groups(plain(shapes))
    assert shapes["h.0.attn.c_attn.weight"][0] == (768, 3 * 768)
    assert groups["h.0.attn.c_attn.weight"].axis == 1
    assert groups["h.0.attn.c_attn.bias"].axis == 0
    assert "h.0.attn.c_proj.weight" not in groups


def test_llama_with_grouped_attention() -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
    shapes = hugging("LlamaForCausalLM", num_hidden_layers=4, **sizes)
    assert counted(shapes) == {"linear": 4 * 7, "projection": 1, "embedding": 1, "vector": 4 * 2 + 1}
    assert of_class(shapes, "projection") == {"lm_head.weight"}
    trio = attention_groups(plain(shapes))["model.layers.2.self_attn.q_proj.weight"]
    assert [shapes[part][0] for part in trio.parts] == [(64, 64), (32, 64), (32, 64)]


# --- torchvision -----------------------------------------------------------------------------------------------


def test_resnet_50() -> None:
    """53 convolutions (1, 16 x 3, 4 of the shortcuts), each with a BatchNorm of four vectors and a counter."""
    import torchvision

    shapes = built(torchvision.models.resnet50)
    assert counted(shapes) == {"conv": 53, "projection": 1, "vector": 53 * 4 + 1, "buffer": 53}
    assert of_class(shapes, "projection") == {"fc.weight"}
    assert depths(shapes) == {"layer1": 3, "layer2": 4, "layer3": 6, "layer4": 3}


# --- single names ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("encoder.layer.0.attention.self.pos_proj.weight", (8, 8), "linear"),
        ("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", (32, 8), "embedding"),
        ("layers.0.blocks.1.attn.relative_position_bias_table", (169, 3), "embedding"),
        ("encoder.layers.0.self_attn_layer_norm.weight", (8,), "vector"),
        ("pos_embed", (1, 197, 768), "embedding"),
        ("cls_token", (1, 1, 768), "vector"),
        ("class_embedding", (768,), "vector"),
        ("layers.3.fc.weight", (1, 8), "vector"),
        ("layers.3.fc.weight", (8, 1), "vector"),
        ("layers.3.fc.weight", (0, 8), "vector"),
        ("conv1.weight", (8, 3, 5), "conv"),
        ("layers.0.conv.weight", (8, 3, 1, 1), "conv"),
        ("patch_embed.proj.weight", (8, 3, 4, 4), "conv"),
        ("vision_model.embeddings.patch_embedding.weight", (8, 3, 4, 4), "conv"),
        ("classifier.0.weight", (8, 8), "projection"),
        ("classifier.weight", (8, 8), "projection"),
        ("logit_scale", (), "scalar"),
        ("logit_scale", (1,), "vector"),
    ],
)
def test_single_names(name: str, shape: tuple[int, ...], expected: str) -> None:
    assert classify(name, shape, True) == expected
    assert classify(name, shape, False) == "buffer"


@pytest.mark.parametrize(
    ("name", "tower", "index"),
    [
        ("encoder.block.3.layer.1.DenseReluDense.wi.weight", "encoder.block", 3),
        ("layers.7.mlp.0.weight", "layers", 7),
        ("visual.transformer.resblocks.10.attn.in_proj_weight", "visual.transformer.resblocks", 10),
        ("classifier.0.weight", None, None),
        ("0.1.weight", None, None),
        ("norm1.weight", None, None),
        ("weight", None, None),
    ],
)
def test_the_block_is_the_first_numbered_one(name: str, tower: str | None, index: int | None) -> None:
    """T5's inner `layer.1` and an MLP's `mlp.0` are no blocks, though a search for `.1.` finds them."""
    found = block_of(name)
    assert (found and found.tower, found and found.index) == (tower, index)


@pytest.mark.parametrize(
    "shapes",
    [
        {"b.0.q_proj.weight": (8, 8), "b.0.k_proj.weight": (8, 8)},
        {"b.0.q_proj.weight": (8, 8), "b.0.k_proj.weight": (8, 8), "b.0.v_proj.weight": (8, 4)},
        {"b.0.attn.in_proj_weight": (25, 8)},
        {"b.0.attn.in_proj_weights": (24, 8)},
        {"b.0.query_key_value.weight": (24, 8)},
    ],
)
def test_what_is_no_trio(shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Incomplete, of unequal width, not divisible by three, or interleaved head by head as in GPT-NeoX."""
    assert attention_groups(shapes) == {}
