"""Small random models of the libraries, their files, and the same weights in other layouts."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import transformers
from numpy.typing import NDArray
from safetensors.torch import save_file
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import models, pre_tokenizers, processors
from torch import Tensor, nn

from taskmerge.models.backbones import build
from taskmerge.models.contract import Backbone
from taskmerge.specs.suite import BackboneSpec, Location, Pooling, Preprocess, Tokenizer

CLIP = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 516, "width": 16, "heads": 2, "layers": 1},
}
PREPROCESS = Preprocess(16, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "film", "worth", "seeing", "bad", "dog", "is", "kind", "the"]
SMALL = {
    "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 20,
}  # fmt: skip


def local(location: Location) -> Path:
    assert isinstance(location, Path)
    return location


def pictures(count: int, height: int = 16, width: int = 16, seed: int = 0) -> NDArray[np.uint8]:
    """[N, H, W, 3], random."""
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """The same model with every weight drawn anew (constant starts, such as zero biases, would hide faults)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.2)
    return model.eval()


def saved(path: Path, tensors: dict[str, Tensor]) -> Path:
    save_file({name: one.detach().contiguous().clone() for name, one in tensors.items()}, path)
    return path


def clip_spec(folder: Path, **changes: Any) -> BackboneSpec:
    """A small open_clip model's file and tokenizer in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    file, bpe = folder / "model.json", folder / "bpe.txt.gz"
    file.write_text(json.dumps({**CLIP, **changes}))
    with gzip.open(bpe, "wt", encoding="utf-8") as stream:
        stream.write("#version\nd o\ndo g</w>")
    return BackboneSpec("open_clip", file, Tokenizer(bpe=bpe), PREPROCESS)


def clip_model(seed: int = 0) -> Any:
    return randomised(open_clip.CLIP(**CLIP), seed)


def text_folder(folder: Path, config: Any) -> Path:
    """A configuration and a tokenizer of whole words, with special tokens as the family has them."""
    config.save_pretrained(folder)
    gpt = config.model_type == "gpt2"
    words = [word for word in WORDS if word not in ("[PAD]", "[CLS]", "[SEP]")] + ["<end>"] if gpt else WORDS
    tokenizer = FastTokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if gpt:
        fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", unk_token="[UNK]")
    else:
        ends = [("[CLS]", words.index("[CLS]")), ("[SEP]", words.index("[SEP]"))]
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS]:0 $A:0 [SEP]:0", pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1", special_tokens=ends
        )
        fast = transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
            model_input_names=["input_ids", "attention_mask", *["token_type_ids"] * (config.model_type == "bert")],
        )  # fmt: skip
    fast.save_pretrained(folder)
    return folder


def config_of(family: str) -> Any:
    """A small configuration of a family."""
    special = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    made = {
        "bert": lambda: transformers.BertConfig(**SMALL, pad_token_id=0),
        "roberta": lambda: transformers.RobertaConfig(**SMALL, **special, type_vocab_size=1),
        "xlm-roberta": lambda: transformers.XLMRobertaConfig(**SMALL, **special, type_vocab_size=1),
        "camembert": lambda: transformers.CamembertConfig(**SMALL, **special, type_vocab_size=1),
        "electra": lambda: transformers.ElectraConfig(**SMALL, embedding_size=8, pad_token_id=0),
        "distilbert": lambda: transformers.DistilBertConfig(
            vocab_size=40, dim=16, n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=20, pad_token_id=0
        ),
        "gpt2": lambda: transformers.GPT2Config(
            vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=20, bos_token_id=10, eos_token_id=10,
            pad_token_id=10,
        ),
        "vit": lambda: transformers.ViTConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=16,
            patch_size=8,
        ),
    }  # fmt: skip
    return made[family]()


def text_backbone(folder: Path, family: str, pooling: Pooling | None = None, **spec: Any) -> Backbone:
    """A backbone of a text family whose folder is made here."""
    text_folder(folder, config_of(family))
    return build(BackboneSpec("transformers", folder, pooling=pooling, **spec), resolve=local)


def split_clip(state: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """open_clip's fused visual tower in the names and the layout of transformers' CLIP."""
    vision = "vision_model."
    found = {
        f"{vision}embeddings.class_embedding": state["visual.class_embedding"],
        f"{vision}embeddings.patch_embedding.weight": state["visual.conv1.weight"],
        f"{vision}embeddings.position_embedding.weight": state["visual.positional_embedding"],
        "visual_projection.weight": state["visual.proj"].T,
    }
    pairs = [("visual.ln_pre", f"{vision}pre_layrnorm"), ("visual.ln_post", f"{vision}post_layernorm")]
    for layer in range(layers):
        ours, theirs = f"visual.transformer.resblocks.{layer}.", f"{vision}encoder.layers.{layer}."
        pairs += [(ours + "ln_1", theirs + "layer_norm1"), (ours + "ln_2", theirs + "layer_norm2")]
        pairs += [(ours + "mlp.c_fc", theirs + "mlp.fc1"), (ours + "mlp.c_proj", theirs + "mlp.fc2")]
        pairs += [(ours + "attn.out_proj", theirs + "self_attn.out_proj")]
        for part in ("weight", "bias"):
            fused = state[f"{ours}attn.in_proj_{part}"].chunk(3)
            for name, matrix in zip("qkv", fused, strict=True):
                found[f"{theirs}self_attn.{name}_proj.{part}"] = matrix
    for ours, theirs in pairs:
        for part in ("weight", "bias"):
            found[f"{theirs}.{part}"] = state[f"{ours}.{part}"]
    return found
