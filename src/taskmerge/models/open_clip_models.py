"""open_clip's models: registered names and configuration files, the visual tower as backbone, the text tower for heads.

Everything is built from the configuration itself, so open_clip's registry of names stays as it is.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import open_clip
import torch
from PIL import Image
from torch import Tensor, nn

from taskmerge.documents import check_unpacked, read_object
from taskmerge.errors import BadFile, Mismatch, UsageError, unknown_name
from taskmerge.models.config_values import HINT, check_fits, check_layers, check_sizes, triple, unbuildable
from taskmerge.models.contract import Backbone
from taskmerge.models.naming import Naming
from taskmerge.models.pictures import PicturePrepare, Triple, normalised
from taskmerge.models.text import loaded, prompts_in_batches
from taskmerge.specs.suite import BackboneSpec, Location
from taskmerge.types import Inputs

CONFIG = "open_clip_config.json"
NEEDED = {"embed_dim": int, "vision_cfg": dict, "text_cfg": dict}
NO_TEXT = {"context_length": 1, "vocab_size": 1, "width": 8, "heads": 1, "layers": 1}
NO_VISION = {"image_size": 1, "patch_size": 1, "width": 8, "head_width": 8, "layers": 1}
"""The smallest towers, in place of one that is not needed."""


class ImageEncoder(nn.Module):
    """The visual tower, under the names of the full model: `visual.…`."""

    def __init__(self, visual: nn.Module, mean: Triple, std: Triple) -> None:
        super().__init__()
        self.visual, self.mean, self.std = visual, mean, std

    def forward(self, inputs: Inputs) -> Tensor:
        """`pixels` uint8 [N, 3, H, W] -> [N, D], as `encode_image` without normalisation."""
        output = self.visual(normalised(inputs["pixels"], self.mean, self.std, self))
        features: Tensor = output[0] if isinstance(output, tuple) else output  # CoCa's tower gives its tokens too
        return features


@dataclass(frozen=True)
class Model:
    """A model's configuration: towers, preprocessing, and how to name it."""

    name: str
    config: Mapping[str, Any]
    preprocess: Mapping[str, Any]
    where: str

    @property
    def text(self) -> Mapping[str, Any]:
        settings: Mapping[str, Any] = self.config["text_cfg"]
        return settings

    def built(self, **towers: Mapping[str, Any]) -> Any:
        """The full model with some towers replaced. Raises `BadFile` when the configuration is no model's."""
        config = {**deepcopy(dict(self.config)), **deepcopy(towers)}
        custom = config.pop("custom_text", False)
        kind = open_clip.CoCa if "multimodal_cfg" in config else open_clip.CustomTextCLIP if custom else open_clip.CLIP
        config["vision_cfg"]["timm_model_pretrained"] = False  # the towers of timm would download theirs
        check_fits(lambda: kind(**deepcopy(config)), self.where)
        try:
            return kind(**config)
        except Exception as error:  # whatever the library's towers raise
            raise unbuildable(error, "open_clip", self.where) from error


def build(spec: BackboneSpec, resolve: Callable[[Location], Path]) -> Backbone:
    """The visual tower, its preprocessing, and the text tower."""
    model = _model(spec, resolve)
    config = {key: model.config[key] for key in ("embed_dim", "vision_cfg", "quick_gelu") if key in model.config}
    visual = Model(model.name, config, {}, model.where).built(text_cfg=NO_TEXT).visual
    settings = _settings(model, spec, visual)
    transform = open_clip.image_transform(
        settings.size, is_train=False, resize_mode=settings.resize_mode, interpolation=settings.interpolation
    ).transforms[:-2]  # without the last two: to float, and mean and deviation
    key = f"pixels {settings.size} {settings.resize_mode} {settings.interpolation}"
    prepare = PicturePrepare(key, _pair(settings.size), partial(_applied, transform), where=spec.place)
    return Backbone(
        ImageEncoder(visual, settings.mean, settings.std), prepare, int(config["embed_dim"]), normalised=True,
        text=PromptEncoder(model, partial(_tokenizer, model, spec, resolve)), naming=_naming(model),
        label=f"open_clip {model.name}", family="clip",
    )  # fmt: skip


@dataclass(frozen=True)
class PromptEncoder:
    """Embeds prompts with the text tower of a full open_clip model; built at its first use."""

    model: Model
    tokenizer: Callable[[], Callable[[Sequence[str]], Tensor]]
    _built: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __call__(self, state: Mapping[str, Tensor], prompts: Sequence[str]) -> tuple[Tensor, float]:
        """Embeddings [P, D], not normalised, and exp(logit_scale). Raises `Mismatch` where the state has no text."""
        tokenizer = self.tokenizer()
        tokens = tokenizer(list(prompts))
        size = int(self.model.text.get("vocab_size", open_clip.CLIPTextCfg.vocab_size))
        own = getattr(tokenizer, "vocab_size", size)  # of a BPE file: its merges, and the ends of a text last
        if own != size:
            what = f"the tokenizer has {own} tokens, the text tower {size}"
            raise Mismatch(what, where=self.model.where, hint="name the tokenizer's file: `tokenizer: {bpe: …}`")
        if "model" not in self._built:
            with torch.random.fork_rng(devices=[]):
                self._built["model"] = self.model.built(vision_cfg=NO_VISION).eval().requires_grad_(False)
        model = self._built["model"]
        loaded(model, state, ignored="visual.", label=f"the text tower of open_clip {self.model.name}")
        return prompts_in_batches(model.encode_text, tokens), float(model.logit_scale.exp())


def _model(spec: BackboneSpec, resolve: Callable[[Location], Path]) -> Model:
    """The configuration that the suite names: a registered model's, a file's, or that of a folder."""
    if isinstance(spec.model, str):
        config = open_clip.get_model_config(spec.model) if spec.model in open_clip.list_models() else None
        if config is None:
            raise unknown_name("model of open_clip", spec.model, open_clip.list_models(), where=spec.place or None)
        return Model(spec.model, config, _published(spec.model), spec.place or spec.model)
    path = resolve(spec.model)
    path = path / CONFIG if path.is_dir() else path
    document = _json(path)
    config = document.get("model_cfg", document)
    missing = [key for key, kind in NEEDED.items() if not isinstance(config.get(key), kind)]
    if missing:
        hint = "a configuration of open_clip has embed_dim, vision_cfg and text_cfg"
        raise BadFile(f"lacks {', '.join(missing)}", where=str(path), hint=hint)
    check_sizes(config, str(path))
    check_layers(config, path.parent, str(path))
    preprocess = document.get("preprocess_cfg") or {}
    for key in ("mean", "std"):
        if key in preprocess:
            triple(preprocess, key, str(path))
    name = path.name if path.name != CONFIG else path.parent.name
    return Model(name, config, preprocess, str(path))


def _json(path: Path) -> dict[str, Any]:
    document = read_object(path, hint="check `backbone: model`", constants=True)
    for key in ("model_cfg", "preprocess_cfg"):
        if not isinstance(document.get(key) or {}, dict):
            raise BadFile(f"`{key}` is no JSON object", where=str(path), hint="check `backbone: model`")
    return document


def _published(name: str) -> dict[str, Any]:
    """The preprocessing settings on which all published weights of a registered model agree."""
    configs = [open_clip.get_pretrained_cfg(name, tag) or {} for tag in open_clip.list_pretrained_tags_by_model(name)]
    keys = ("mean", "std", "resize_mode", "interpolation")
    agreed = [key for key in keys if len({str(config.get(key)) for config in configs}) == 1]
    return {key: configs[0][key] for key in agreed if key in configs[0]}


def _settings(model: Model, spec: BackboneSpec, visual: nn.Module) -> Any:
    """open_clip's own defaults, over them the model's, over them the suite's."""
    size = getattr(visual, "image_size", None) or model.config["vision_cfg"].get("image_size", 224)
    settings = open_clip.transform.merge_preprocess_dict({}, {**model.preprocess, "size": size})
    if spec.preprocess is not None:
        if _pair(size) != _pair(spec.preprocess.image_size):
            what = f"pictures of {spec.preprocess.image_size} pixels for a model that takes {_pair(size)}"
            raise Mismatch(what, where=spec.place or model.where, hint="change `preprocess: {image_size: …}`")
        settings |= {"mean": spec.preprocess.mean, "std": spec.preprocess.std}
    try:
        return open_clip.transform.PreprocessCfg(**settings)
    except (TypeError, AssertionError) as error:
        raise BadFile(f"`preprocess_cfg` is malformed: {error}", where=model.where, hint=HINT) from None


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _applied(transform: Sequence[Callable[[Any], Any]], picture: Image.Image) -> Image.Image:
    for step in transform:
        picture = step(picture)
    return picture


def _tokenizer(
    model: Model, spec: BackboneSpec, resolve: Callable[[Location], Path]
) -> Callable[[Sequence[str]], Tensor]:
    """The suite's BPE file, else what open_clip.get_tokenizer gives, where that needs no network."""
    text, given = model.text, spec.tokenizer
    default = text.get("context_length", open_clip.CLIPTextCfg.context_length)
    options = {
        "context_length": (given.context_length if given else None) or default, **(text.get("tokenizer_kwargs") or {}),
    }  # fmt: skip
    name = text.get("hf_tokenizer_name") or text.get("hf_model_name")
    if text.get("hf_model_name") or (name and (given is None or given.bpe is None)):
        what = f"prompts of this model need the tokenizer {name}, which is not open_clip's own"
        hint = "name head files in place of `zero_shot`"
        raise UsageError(what, where=spec.place or model.where, hint=hint)
    if given is not None and given.bpe is not None:
        file = resolve(given.bpe)
        check_unpacked(file)
        options["bpe_path"] = str(file)
    try:
        tokenizer: Callable[[Sequence[str]], Tensor] = open_clip.SimpleTokenizer(**options)
    except Exception as error:  # whatever it stumbles over
        where = str(options.get("bpe_path", model.where))
        raise BadFile(f"is no BPE file: {error}", where=where, hint="check `tokenizer: {bpe: …}`") from error
    return tokenizer


def _naming(model: Model) -> Naming:
    """Full models (`visual.…` and the rest), bare towers, and either wrapped (`model.`: the task vectors' encoders)."""

    @cache
    def others() -> frozenset[str]:
        with torch.device("meta"):
            return frozenset(model.built(vision_cfg=NO_VISION).state_dict())

    def elsewhere(name: str) -> bool:
        if name.startswith("visual."):
            return False
        hugging_face = bool(model.text.get("hf_model_name"))  # building it would ask the hub for its configuration
        return name.startswith(("text.", "logit_")) if hugging_face else name in others()

    return Naming(("module.", "model."), (("visual.", "visual."), ("", "visual.")), elsewhere=elsewhere)
