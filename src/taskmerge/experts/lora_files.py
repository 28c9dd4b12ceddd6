"""Opens adapters: peft's folders, and files of other tools, which keep what scales B A in the file itself (`.alpha`) or
scale by one."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from taskmerge.checkpoint.checkpoint import Checkpoint, open_checkpoint
from taskmerge.checkpoint.dtypes import is_float
from taskmerge.checkpoint.header import TensorSpec
from taskmerge.checkpoint.held import Held, Place, open_held
from taskmerge.checkpoint.weights import SAFE_ENDING
from taskmerge.documents import parse_json
from taskmerge.errors import BadFile, Mismatch, listed
from taskmerge.experts.lora import WRAPPER, Adapter, Pair, check_product, check_whole, peft_adapter
from taskmerge.experts.lora_names import CONFIG, WEIGHTS, adapter_files, alpha_of, factor

UNSCALED = ("unet.", "transformer.", "text_encoder.", "text_encoder_2.", "prior.", "diffusion_model.", "lora_")
"""What names of diffusers', ComfyUI's and kohya's files begin with: without `.alpha`, B A counts as it is."""
METADATA = "lora_adapter_metadata"
"""Where diffusers says by which configuration an adapter was trained: `unet.lora_alpha` and the like."""
PLAIN = "bring it to the form of plain LoRA with the tool that wrote it, or fold it into its base there"


def open_adapter(place: Place, *, allow_pickle: bool = False) -> Adapter:
    """Opens an adapter (headers only): peft's folder, or a file of factors, whose configuration may lie beside it; or
    factors in memory.

    `BadFile` names whatever of peft's is not plain LoRA, `Mismatch` whatever of others.
    """
    if isinstance(place, Held):
        return lone_adapter(Path(str(place)), open_held(place))
    return _open_file(place, allow_pickle)


def _open_file(path: Path, allow_pickle: bool) -> Adapter:
    folder = path if os.path.isdir(path) else path.parent
    if os.path.isdir(path) and not adapter_files(path):
        (path,) = (file for file in path.iterdir() if file.name.endswith(SAFE_ENDING) and file.name[0] != ".")
    if os.path.isdir(path) or path.name in WEIGHTS:
        weights = [folder / name for name in WEIGHTS if (folder / name).is_file()]
        return peft_adapter(folder, folder, weights, allow_pickle)
    checkpoint = open_checkpoint(path, allow_pickle=allow_pickle)
    alone = any(alpha_of(name) for name in checkpoint.specs) or not os.path.isfile(folder / CONFIG)
    if not alone and not adapter_files(folder)[1:]:
        checkpoint.close()
        return peft_adapter(path, folder, [path], allow_pickle)
    return lone_adapter(path, checkpoint)


def lone_adapter(path: Path, checkpoint: Checkpoint) -> Adapter:
    """An adapter in a file of its own. `Mismatch` for what is no plain LoRA, or is scaled nobody knows how."""
    sides: dict[str, dict[str, TensorSpec]] = {}
    alphas: dict[str, str] = {}
    strange = []
    for name, spec in checkpoint.specs.items():
        found, module = factor(name), alpha_of(name)
        if found is not None and is_float(spec.dtype) and found.side not in sides.get(found.module, {}):
            sides.setdefault(found.module, {})[found.side] = spec
        elif module is not None and is_float(spec.dtype) and spec.numel == 1:
            alphas[module] = name
        else:
            strange.append(name)
    strange += [spec.name for factors in sides.values() if len(factors) < 2 for spec in factors.values()]
    strange += [name for module, name in alphas.items() if module not in sides]
    if strange:
        what = f"is a LoRA adapter of a kind that is not known here: {listed(strange)} are no pairs of plain factors"
        raise Mismatch(what, where=str(path), hint=PLAIN)
    check_whole(spec for factors in sides.values() for spec in factors.values())
    said = _configured(checkpoint)
    _check_scaled(path, [module for module in sides if module not in alphas], said)
    pairs = []
    for module, factors in sorted(sides.items()):
        check_product(module, factors["A"], factors["B"])
        rank = factors["A"].shape[0]
        alpha = _stored_alpha(checkpoint, alphas[module]) if module in alphas else _alpha(module, said, rank)
        pairs.append(Pair(module, factors["A"], factors["B"], alpha / rank, table=False))
    return Adapter(path, checkpoint, tuple(pairs), {}, False, {}, None, None)


def _check_scaled(path: Path, modules: list[str], said: Mapping[str, Any]) -> None:
    """Refuses factors of which neither file nor tool says how their product is scaled."""
    unknown = [module for module in modules if not module.startswith(UNSCALED)]
    if not unknown or said:
        return
    if unknown[0].startswith(WRAPPER):
        hint = f"it is peft's: put the {CONFIG} that belongs to it beside it"
    else:
        hint = f"put peft's {CONFIG} beside it, or save it with `.alpha` tensors"
    what = f"is a LoRA adapter that does not say how its products are scaled ({listed(unknown, 3)})"
    raise Mismatch(what, where=str(path), hint=hint)


def _configured(checkpoint: Checkpoint) -> dict[str, Any]:
    """What diffusers wrote about the training into the file's metadata."""
    text = checkpoint.metadata.get(METADATA)
    if text is None:
        return {}
    try:
        said = parse_json(text)
    except ValueError as error:
        raise BadFile(f"its `{METADATA}` is not JSON: {error}", where=str(checkpoint.path), hint=PLAIN) from None
    said = said if isinstance(said, dict) else {}
    odd = [key for key, value in said.items() if value and key.endswith(("alpha_pattern", "use_rslora", "use_dora"))]
    if odd:
        what = f"is a LoRA adapter with settings that are not known here: {listed(odd)} in `{METADATA}`"
        raise Mismatch(what, where=str(checkpoint.path), hint=PLAIN)
    return said


def _stored_alpha(checkpoint: Checkpoint, name: str) -> float:
    """A module's alpha, as a tensor of one number."""
    alpha = float(checkpoint.tensor(name).double())
    if not math.isfinite(alpha):
        raise BadFile(f"the scaling is {alpha}, no number", where=f"{checkpoint.path}: `{name}`", hint=PLAIN)
    return alpha


def _alpha(module: str, said: Mapping[str, Any], rank: int) -> float:
    """A module's alpha by the metadata; where that says nothing, B A counts as it is."""
    component = module.partition(".")[0]
    value = said.get(f"{component}.lora_alpha", said.get("lora_alpha", rank))
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else float(rank)
