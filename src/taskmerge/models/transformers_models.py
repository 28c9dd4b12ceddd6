"""Encoders of transformers, from a configuration's folder: texts, pictures, and CLIP's vision tower."""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from torch import Tensor, nn

from taskmerge.documents import read_object
from taskmerge.errors import BadFile, Mismatch, UsageError, listed
from taskmerge.models.config_values import check_fits, check_layers, check_sizes, square, triple, unbuildable
from taskmerge.models.contract import Backbone
from taskmerge.models.naming import Naming
from taskmerge.models.own_code import check_kernels, code_of, needs_code, use_own_implementations
from taskmerge.models.pictures import PicturePrepare, Triple, normalised
from taskmerge.models.quiet import quiet
from taskmerge.models.text import loaded, prompts_in_batches
from taskmerge.models.tokens import TextPrepare, load_tokenizer
from taskmerge.specs.suite import BackboneSpec, Location, Pooling
from taskmerge.types import Inputs

FULL_MODELS = (
    "AutoModel", "AutoModelForPreTraining", "AutoModelForMaskedLM", "AutoModelForCausalLM",
    "AutoModelForSequenceClassification", "AutoModelForImageClassification",
)  # fmt: skip
FORMER_BUFFERS = re.compile(r"(^|\.)(position_ids|token_type_ids|attn\.bias|attn\.masked_bias)$")
"""Constants that older versions saved among the weights."""


@dataclass(frozen=True)
class Reading:
    """Turns a batch of inputs into a model's own arguments: before `forward`."""

    mean: Triple = (0.0, 0.0, 0.0)
    std: Triple = (1.0, 1.0, 1.0)

    def __call__(self, module: nn.Module, args: tuple[Inputs], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        inputs = args[0]
        if "pixels" in inputs:
            return (), {"pixel_values": normalised(inputs["pixels"], self.mean, self.std, module)}
        length = max(_length(inputs["attention_mask"]), 1)  # columns of padding alone cost time
        return (), {name: whole[:, :length].long() for name, whole in inputs.items()}


@dataclass(frozen=True)
class Pool:
    """Turns what a model returns into one vector an item: after `forward`."""

    pooling: Pooling | None

    def __call__(self, module: nn.Module, args: tuple[()], kwargs: dict[str, Any], output: Any) -> Tensor:
        if self.pooling is None:
            embedded: Tensor = output.image_embeds
            return embedded
        return pooled(output.last_hidden_state, kwargs.get("attention_mask"), self.pooling)


def pooled(hidden: Tensor, mask: Tensor | None, pooling: Pooling) -> Tensor:
    """[B, L, D] -> [B, D]: the first token, the last, or the mean, of those where `mask` [B, L] is not 0."""
    if mask is None:
        mask = torch.ones(hidden.shape[:2], dtype=torch.long, device=hidden.device)
    if pooling == "mean":
        weights = mask.to(hidden.dtype)[:, :, None]
        return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
    first, length = mask.ne(0).int().argmax(dim=1), hidden.shape[1]
    last = length - 1 - mask.flip(1).ne(0).int().argmax(dim=1)
    return hidden[torch.arange(len(hidden), device=hidden.device), first if pooling == "cls" else last]


def build(spec: BackboneSpec, resolve: Callable[[Location], Path]) -> Backbone:
    """The encoder that a folder's configuration describes; its kind follows from the model's input."""
    if isinstance(spec.model, str):
        what = f"`{spec.model}` is no folder with a configuration"
        raise UsageError(what, where=spec.place or None, hint="name a folder that has config.json, or `{hub: NAME}`")
    path = resolve(spec.model)
    with quiet():
        config = _config(path)
        if isinstance(config, transformers.CLIPConfig | transformers.CLIPVisionConfig):
            return _clip(spec, resolve, path, config)
        model = _encoder(config, path)
        if model.main_input_name == "pixel_values":
            return _vision(spec, path, model)
        if model.main_input_name == "input_ids" and not config.is_encoder_decoder:
            return _text(spec, resolve, path, model)
    what = f"`{config.model_type}` is neither an encoder of texts nor of pictures"
    raise UsageError(what, where=str(path), hint="BERT, RoBERTa, GPT-2, ViT, CLIP and their like are")


def _config(path: Path) -> Any:
    """The configuration of a folder, or in a file of its own."""
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise BadFile("no such file", where=str(file), hint="name a folder with config.json as `backbone: model`")
    check_kernels(file)
    code = code_of(file, "AutoConfig")
    if code is not None and str(read_object(file, constants=True).get("model_type")) not in transformers.CONFIG_MAPPING:
        raise needs_code(file, code)
    document = read_object(file, hint="check `backbone: model`", constants=True)
    check_sizes(document, str(file))
    check_layers(document, file.parent, str(file))
    try:
        config = transformers.AutoConfig.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever the library's parsers and checks of configurations raise
        raise unbuildable(error, "transformers", file) from error
    use_own_implementations(config)
    return config


def _constructed(make: Callable[[], Any], path: Path) -> Any:
    """The model that `make` builds, in float32. Raises `BadFile` where its configuration cannot be built, `NotEnough`
    where the machine has too little memory for it."""
    check_fits(make, str(path))
    try:
        return make().float()
    except Exception as error:  # whatever the library's modules raise
        raise unbuildable(error, "transformers", path) from error


def _encoder(config: Any, path: Path) -> Any:
    """The bare encoder in float32, without the pooler that only classifiers use."""
    if type(config) not in transformers.MODEL_MAPPING:
        what = f"`{config.model_type}` has no encoder in transformers {transformers.__version__}"
        raise UsageError(what, where=str(path), hint="BERT, RoBERTa, GPT-2, ViT and CLIP have")
    config.use_cache = False
    kinds: Any = transformers.MODEL_MAPPING[type(config)]
    kind = kinds[0] if isinstance(kinds, tuple) else kinds
    options = {"add_pooling_layer": False} if "add_pooling_layer" in inspect.signature(kind).parameters else {}
    return _constructed(partial(transformers.AutoModel.from_config, config, trust_remote_code=False, **options), path)


def _hooked(model: Any, reading: Reading, pool: Pool) -> nn.Module:
    """The library's own module, which now takes inputs and returns features; its tensors keep their names."""
    model.register_forward_pre_hook(reading, with_kwargs=True)
    model.register_forward_hook(pool, with_kwargs=True)
    module: nn.Module = model
    return module


def _text(spec: BackboneSpec, resolve: Callable[[Location], Path], path: Path, model: Any) -> Backbone:
    config = model.config
    folder = resolve(spec.tokenizer.folder) if spec.tokenizer and spec.tokenizer.folder is not None else path
    prepare = TextPrepare(
        load_tokenizer(folder, "tokenizer" if spec.tokenizer else "model"),
        _max_length(spec, config),
        config.vocab_size,
        spec.place,
    )
    pooling = spec.pooling or ("last" if _decodes_only(config) else "cls")
    return Backbone(
        _hooked(model, Reading(), Pool(pooling)), prepare, int(config.hidden_size), normalised=False,
        naming=_naming(model), label=_label(config), family=config.model_type, pooling=pooling,
    )  # fmt: skip


def _vision(spec: BackboneSpec, path: Path, model: Any) -> Backbone:
    pooling = spec.pooling or "cls"
    reading, prepare = _pictures(spec, path, model.config)
    return Backbone(
        _hooked(model, reading, Pool(pooling)), prepare, int(model.config.hidden_size), normalised=False,
        naming=_naming(model), label=_label(model.config), family=model.config.model_type, pooling=pooling,
    )  # fmt: skip


def _clip(spec: BackboneSpec, resolve: Callable[[Location], Path], path: Path, config: Any) -> Backbone:
    """CLIP's vision tower and projection; the text tower too where the configuration has one."""
    if spec.pooling is not None:
        what = f"`pooling: {spec.pooling}` has no meaning for CLIP, whose features are its projected embeddings"
        raise UsageError(what, where=spec.place or None, hint="leave it out")
    full = config if isinstance(config, transformers.CLIPConfig) else None
    vision = config.vision_config if full else config
    vision.projection_dim = config.projection_dim
    model = _constructed(partial(transformers.CLIPVisionModelWithProjection, vision), path)
    reading, prepare = _pictures(spec, path, vision)
    folder = resolve(spec.tokenizer.folder) if spec.tokenizer and spec.tokenizer.folder is not None else path
    return Backbone(
        _hooked(model, reading, Pool(None)), prepare, int(vision.projection_dim), normalised=True,
        text=PromptEncoder(full, folder) if full else None, naming=_clip_naming(),
        label=_label(config), family="clip",
    )  # fmt: skip


class _TextTower(nn.Module):
    """CLIP's text tower under the names of the full model."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        config.text_config.projection_dim = config.projection_dim
        tower: Any = transformers.CLIPTextModelWithProjection(config.text_config)
        self.logit_scale = nn.Parameter(torch.zeros(()))
        self.text_model, self.text_projection = tower.text_model, tower.text_projection
        self._tower = [tower]  # in a list, not to be a second owner of its tensors

    def forward(self, tokens: Tensor) -> Tensor:
        """[P, 2, L], token numbers and mask -> [P, D]."""
        embedded: Tensor = self._tower[0](input_ids=tokens[:, 0], attention_mask=tokens[:, 1]).text_embeds
        return embedded


@dataclass(frozen=True)
class PromptEncoder:
    """Embeds prompts with the text tower of a full CLIP of transformers; built at its first use."""

    config: Any
    folder: Path
    _built: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __call__(self, state: Mapping[str, Tensor], prompts: Sequence[str]) -> tuple[Tensor, float]:
        """Embeddings [P, D], not normalised, and exp(logit_scale). Raises `Mismatch` where the state has no text."""
        if "model" not in self._built:
            with quiet(), torch.random.fork_rng(devices=[]):
                self._built["tokenizer"] = load_tokenizer(self.folder, "tokenizer")
                tower = _constructed(partial(_TextTower, self.config), self.folder)
                self._built["model"] = tower.eval().requires_grad_(False)
        model, text = self._built["model"], self.config.text_config
        prepare = TextPrepare(self._built["tokenizer"], text.max_position_embeddings, text.vocab_size, str(self.folder))
        inputs = prepare(prompts)
        loaded(model, state, ignored="vision_model.", label="the text tower of CLIP")
        tokens = torch.stack([inputs["input_ids"], inputs["attention_mask"]], dim=1).long()
        return prompts_in_batches(model, tokens), float(model.logit_scale.exp())


def _pictures(spec: BackboneSpec, path: Path, config: Any) -> tuple[Reading, PicturePrepare]:
    """Preprocessing: the folder's preprocessor_config.json, and over it the suite's."""
    from torchvision import transforms

    height, width = square(getattr(config, "image_size", None), str(path))
    file = (path if path.is_dir() else path.parent) / "preprocessor_config.json"
    known = read_object(file, constants=True) if file.is_file() else {}
    given = spec.preprocess
    if given is not None and (height, width) != (given.image_size,) * 2:
        what = f"pictures of {given.image_size} pixels for a model that takes {height}x{width}"
        raise Mismatch(what, where=spec.place or str(path), hint="change `preprocess: {image_size: …}`")
    code = code_of(file, "AutoImageProcessor")
    if given is None and code is not None and not hasattr(transformers, str(known.get("image_processor_type"))):
        raise needs_code(file, code)
    if given is None and not {"image_mean", "image_std"} <= set(known):
        hint = "add `preprocess: {image_size: …, mean: …, std: …}`, or the model's preprocessor_config.json"
        raise UsageError("how pictures are normalised is not known", where=spec.place or str(path), hint=hint)
    where = str(file)
    mean, std = (given.mean, given.std) if given else [triple(known, key, where) for key in ("image_mean", "image_std")]
    squash = bool(known) and not known.get("do_center_crop", False)
    if known.get("resample") not in (None, *_FILTERS):
        hint = f"it is one of {listed(map(str, _FILTERS), plain=True)}"
        raise BadFile(f"`resample` is {known['resample']}", where=where, hint=hint)
    filter_ = _FILTERS[3 if known.get("resample") is None else known["resample"]]
    steps = [
        transforms.Resize((height, width) if squash else min(height, width), transforms.InterpolationMode(filter_))
    ]
    steps += [] if squash else [transforms.CenterCrop((height, width))]
    key = f"pixels {(height, width)} {'squash' if squash else 'shortest'} {filter_}"
    geometry = partial(_applied, tuple(steps))
    return Reading(mean, std), PicturePrepare(key, (height, width), geometry, where=spec.place)


_FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
"""PIL's numbers, which preprocessor_config.json uses."""


def _applied(steps: Sequence[Callable[[Any], Any]], picture: Image.Image) -> Image.Image:
    picture = picture.convert("RGB")
    for step in steps:
        picture = step(picture)
    return picture


def _max_length(spec: BackboneSpec, config: Any) -> int | None:
    """The longest input in tokens: the suite's, at most what the positions allow; None: the tokenizer decides."""
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and config.model_type in _OFFSET_POSITIONS:
        positions -= (config.pad_token_id or 0) + 1
    if spec.max_length is not None and positions is not None and spec.max_length > positions:
        what = f"`max_length: {spec.max_length}`, and the model has {positions} positions"
        raise UsageError(what, where=spec.place or None, hint=f"at most {positions}")
    return spec.max_length or positions


_OFFSET_POSITIONS = ("roberta", "xlm-roberta", "camembert", "xlm-roberta-xl", "longformer")
"""Models that count positions from the padding token's number + 1."""


def _decodes_only(config: Any) -> bool:
    kinds = (transformers.MODEL_FOR_CAUSAL_LM_MAPPING, transformers.MODEL_FOR_MASKED_LM_MAPPING)
    causal, masked = (type(config) in kind for kind in kinds)
    return causal and not masked


def _label(config: Any) -> str:
    return f"transformers {config.model_type}"


def _length(mask: Tensor) -> int:
    """Columns up to the last that is not padding in every row."""
    used = mask.ne(0).any(dim=0).nonzero()
    return int(used[-1]) + 1 if len(used) else 0


def _naming(model: Any) -> Naming:
    """Bare encoders and task models, whose encoder stands under `base_model_prefix`."""
    prefix = f"{model.base_model_prefix}."
    renamed = _former_names(model)
    config = model.config

    @cache
    def others() -> frozenset[str]:
        return _names_of_full_models(config)

    def elsewhere(name: str) -> bool:
        outside = FORMER_BUFFERS.search(name) or name in others() or name.removeprefix(prefix) in others()
        return bool(outside) or renamed(name) in others()

    return Naming(("module.",), (("", ""), (prefix, "")), renamed, elsewhere)


_CLIP_TEXT = ("text_model.", "text_projection.")


def _clip_naming() -> Naming:
    """Full models, and vision towers with or without `vision_model.` and the projection."""

    def elsewhere(name: str) -> bool:
        return name.startswith(_CLIP_TEXT) or name == "logit_scale" or bool(FORMER_BUFFERS.search(name))

    return Naming(("module.", "clip."), (("", ""), ("", "vision_model.")), elsewhere=elsewhere)


def _names_of_full_models(config: Any) -> frozenset[str]:
    """Every tensor's name in the library's models of this type, from models without storage."""
    names: set[str] = set()
    for kind in FULL_MODELS:
        auto = getattr(transformers, kind)
        if type(config) in auto._model_mapping:
            with quiet(), torch.device("meta"):
                names |= set(auto.from_config(config, trust_remote_code=False).state_dict())
    return frozenset(names)


def _former_names(model: Any) -> Callable[[str], str]:
    """The library's renaming of former tensor names (`LayerNorm.gamma`; ViT's layers); none in versions before 5."""
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming
    except ImportError:
        return str

    @cache
    def steps() -> list[Any]:
        return [mapping for mapping in get_model_conversion_mapping(model) if type(mapping) is WeightRenaming]

    def renamed(name: str) -> str:
        for step in steps():
            name = step.rename_source_key(name)[0]
        return name

    return renamed
