"""A PEFT LoRA folder as it lies on disk: factors by module with their scalings; what is not plain LoRA is refused."""

import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from taskmerge.checkpoint.ahead import Stamp
from taskmerge.checkpoint.checkpoint import Checkpoint, open_checkpoint
from taskmerge.checkpoint.dtypes import is_float
from taskmerge.checkpoint.header import TensorSpec
from taskmerge.checkpoint.identity import stamps_of
from taskmerge.documents import read_regular
from taskmerge.errors import BadFile, listed
from taskmerge.experts.lora_names import CONFIG, WEIGHTS
from taskmerge.experts.sources import Tally

WRAPPER = "base_model.model."
FOLD = "fold it into its base with peft (`merge_and_unload`) and merge that checkpoint instead"

# Entries of the configuration that say nothing about the weights, and those that are read below.
KNOWN = frozenset({
    "peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "fan_in_fan_out",
    "init_lora_weights", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision",
    "inference_mode", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "lora_dropout",
    "runtime_config", "megatron_core", "qalora_group_size", "loftq_config", "eva_config", "corda_config",
    "lora_ga_config",
})  # fmt: skip
UNTOUCHED = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
"""Initialisations that leave the base's weights as they are; PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA change them."""

PATTERNS = (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha"))
FACTOR = re.compile(r"^(?P<module>.+)\.lora_(?P<side>[AB])(\.[^.]+)?\.weight$")
TABLE = re.compile(r"^(?P<module>.+)\.lora_embedding_(?P<side>[AB])(\.[^.]+)?$")
SAVED = re.compile(r"^(?P<module>.+)\.base_layer\.(?P<parameter>weight|bias)$")


@dataclass(frozen=True, slots=True)
class Pair:
    """The factors of one module's update scaling · B A, as the file holds them: A [r, in, ...], B [out, r, 1, ...]."""

    module: str
    a: TensorSpec
    b: TensorSpec
    scaling: float
    table: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """The update's shape; an embedding's table lies transposed."""
        return (self.a.shape[1], self.b.shape[0]) if self.table else (self.b.shape[0], *self.a.shape[1:])

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether the update has a tensor's shape, as it is or (GPT-2's Conv1D) transposed."""
        return shape == self.shape or (len(shape) == 2 and not self.table and shape == self.shape[::-1])


@dataclass(frozen=True)
class Adapter:
    """An opened adapter, known from its configuration and header, without a base.

    `place` is peft's folder, or a file of its own. `saved` are weights that peft stored whole beside their factors
    (embeddings): tensor name -> name in the file. `versions` are those in which the configuration's file was read.
    `trained_on` and `task_type` are what the configuration says of the model.
    """

    place: Path
    checkpoint: Checkpoint
    pairs: tuple[Pair, ...]
    saved: Mapping[str, str]
    fan_in_fan_out: bool
    versions: Mapping[Path, Stamp | None]
    trained_on: str | None
    task_type: str | None

    @cached_property
    def stored(self) -> Mapping[str, TensorSpec]:
        """The file's tensors, and what its configuration makes of them as one more entry."""
        config = TensorSpec(CONFIG, "U8", (len(self._meaning),), self.place / CONFIG, 0, len(self._meaning))
        return {**self.checkpoint.stored, CONFIG: config}

    @cached_property
    def _meaning(self) -> bytes:
        meaning = {"fan_in_fan_out": self.fan_in_fan_out, "scaling": {pair.module: pair.scaling for pair in self.pairs}}
        return json.dumps(meaning, sort_keys=True).encode()

    @cached_property
    def digest(self) -> str:
        """The content digest by which a provenance names an adapter: its tensors and their scalings."""
        tally = Tally()
        self.account(tally)
        return tally.finish(self.stored)[0]

    def account(self, tally: Tally) -> None:
        """Adds the whole adapter to a digest: its tensors, and what its configuration makes of them."""
        tally.update(CONFIG, torch.frombuffer(bytearray(self._meaning), dtype=torch.uint8))
        for name in self.checkpoint.stored:
            for piece in self.checkpoint.pieces(name):
                tally.update(name, piece)


# --- opening ---------------------------------------------------------------------------------------------------


def peft_adapter(place: Path, folder: Path, weights: Sequence[Path], allow_pickle: bool) -> Adapter:
    """An adapter whose configuration lies in `folder`."""
    versions = stamps_of([folder / CONFIG])
    config = _configuration(folder / CONFIG)
    if not weights:
        raise BadFile(f"there is no {WEIGHTS[0]}", where=str(folder), hint="download the adapter's weights too")
    checkpoint = open_checkpoint(weights[0], allow_pickle=allow_pickle)
    checkpoint.folder = folder  # the tokenizer lies beside the weights
    sides, saved, unknown = _sorted(checkpoint)
    unknown += [spec.name for factors in sides.values() for spec in factors.values() if len(factors) < 2]
    check_whole(checkpoint.specs.values())
    if unknown:
        reason = f"it holds tensors that are not pairs of LoRA factors: {listed(unknown)}"
        raise BadFile(reason, where=str(weights[0]), hint=FOLD)
    if not sides:
        raise BadFile("it holds no LoRA factors", where=str(weights[0]), hint="save the adapter again")
    nested = sorted({module.split(".base_layer.")[0] for module, _ in sides if ".base_layer." in module})
    if nested:
        reason = f"it adapts torch's own attention, whose output projection peft counts twice: {listed(nested)}"
        raise BadFile(reason, where=str(weights[0]), hint=FOLD)
    pairs = tuple(
        _pair(module, table, factors["A"], factors["B"], config) for (module, table), factors in sorted(sides.items())
    )
    told = (config.get("base_model_name_or_path"), config.get("task_type"))
    trained_on, task_type = (value if isinstance(value, str) and value else None for value in told)
    fan = bool(config.get("fan_in_fan_out"))
    return Adapter(place, checkpoint, pairs, saved, fan, versions, trained_on, task_type)


def check_whole(specs: Iterable[TensorSpec]) -> None:
    """Refuses factors without elements."""
    empty = [spec for spec in specs if not spec.numel]
    if empty:
        names = listed(spec.name for spec in empty)
        what = f"{len(empty)} of its tensors are empty (shape {list(empty[0].shape)}): {names}"
        hint = "DeepSpeed's ZeRO-3 leaves such placeholders: save the adapter again with its weights gathered"
        raise BadFile(what, where=str(empty[0].file), hint=hint)


def _configuration(file: Path) -> dict[str, Any]:
    """adapter_config.json; every entry that would change the weights in a way unknown here is refused by name."""
    try:
        if not os.path.lexists(file):
            hint = "download it too: it holds the scaling"
            raise BadFile(f"there is no {CONFIG}", where=str(file.parent), hint=hint)
        config = json.loads(read_regular(file))
    except (ValueError, RecursionError) as error:
        raise BadFile(f"is not JSON: {error}", where=str(file), hint="download it again") from None
    if not isinstance(config, dict):
        raise BadFile("is no JSON object", where=str(file), hint="download it again")
    if config.get("peft_type") != "LORA":
        reason = f"is an adapter of type {config.get('peft_type')}, only LORA is supported"
        raise BadFile(reason, where=str(file), hint=FOLD)
    active = [f"{key}={value}" for key, value in sorted(config.items()) if key not in KNOWN and _is_on(value)]
    if config.get("init_lora_weights", True) not in UNTOUCHED:
        active.append(f"init_lora_weights={config['init_lora_weights']} (it changes the base's weights)")
    if active:
        raise BadFile(f"is not plain LoRA: {', '.join(active)}", where=str(file), hint=FOLD)
    return config


def _is_on(value: object) -> bool:
    return value not in (None, False, "none", 0, "") and value != [] and value != {}


def _sorted(
    checkpoint: Checkpoint,
) -> tuple[dict[tuple[str, bool], dict[str, TensorSpec]], dict[str, str], list[str]]:
    """The file's tensors: factors by (module, table or not) and side, weights saved whole, and the rest."""
    sides: dict[tuple[str, bool], dict[str, TensorSpec]] = {}
    saved, unknown = {}, []
    for name, spec in checkpoint.specs.items():
        plain = name.removeprefix(WRAPPER)
        factor, table, whole = FACTOR.match(plain), TABLE.match(plain), SAVED.match(plain)
        match = factor or table
        if match and is_float(spec.dtype) and (len(spec.shape) >= 2 or not spec.numel):
            sides.setdefault((match["module"], match is table), {})
            twin = sides[match["module"], match is table].setdefault(match["side"], spec)
            unknown += [] if twin is spec else [name]
        elif whole and is_float(spec.dtype):
            saved[f"{whole['module']}.{whole['parameter']}"] = name
        else:
            unknown.append(name)
    return sides, saved, unknown


def _pair(module: str, table: bool, a: TensorSpec, b: TensorSpec, config: Mapping[str, Any]) -> Pair:
    """Two factors with peft's scaling: alpha / r, or alpha / √r, where patterns may give a module its own of both."""
    where = str(a.file)
    rank, alpha = (_number(config, pattern, plain, module, where) for pattern, plain in PATTERNS)
    check_product(module, a, b)
    if rank != a.shape[0]:
        raise BadFile(
            f"`{module}` has rank {a.shape[0]}, {CONFIG} says {rank:g}", where=where,
            hint="configuration and weights are not from one adapter: download both again",
        )  # fmt: skip
    return Pair(module, a, b, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank), table)


def check_product(module: str, a: TensorSpec, b: TensorSpec) -> None:
    """Refuses factors that do not multiply."""
    if min(len(a.shape), len(b.shape)) < 2 or b.shape[1] != a.shape[0] or math.prod(b.shape[2:]) != 1:
        reason = f"B {list(b.shape)} and A {list(a.shape)} of `{module}` do not multiply"
        raise BadFile(f"{reason} (grouped convolutions are not supported)", where=str(a.file), hint=FOLD)


def _number(config: Mapping[str, Any], pattern: str, plain: str, module: str, where: str) -> float:
    """A module's own number: of the first pattern that matches its name or a dotted end of it, else the common one."""
    given = config.get(pattern) or {}
    try:
        own = next((key for key in given if re.match(rf"(.*\.)?({key})$", module)), module)
        value = given.get(own, config.get(plain, 8))
    except (re.error, AttributeError, TypeError):
        reason = f"its `{pattern}` is no map from patterns to numbers"
        raise BadFile(reason, where=where, hint=f"mend {CONFIG}") from None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadFile(f"`{plain}` of `{module}` is {value!r}, not a number", where=where, hint=f"mend {CONFIG}")
    return float(value)
