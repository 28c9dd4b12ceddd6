"""Which tensor of the base an adapter's target is: by its whole name, in whatever dialect, never by what fits."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from taskmerge.checkpoint.dialects import key_of, keys_of, shows_vision
from taskmerge.checkpoint.dtypes import is_float
from taskmerge.errors import Mismatch, listed
from taskmerge.experts.lora import FOLD, Adapter, Pair
from taskmerge.experts.sources import Source
from taskmerge.specs.renaming import Renaming, helpful, renamed

TOWER = re.compile(
    r"text|vision|visual|audio|speech|image|video|language|tower|encoder|decoder|unet|draft|teacher|student|generator|"
    r"discriminator|qformer|^\d+$", re.IGNORECASE
)  # fmt: skip
"""Segments that say which part of a model is meant: one is never put in place of another, or of none."""

LATENT = ("", "unet.", "transformer.", "model.diffusion_model.", "diffusion_model.")
COMPONENTS = {
    "unet.": LATENT, "transformer.": LATENT, "diffusion_model.": LATENT, "lora_unet_": LATENT,
    "lora_transformer_": LATENT,
    "text_encoder.": ("", "text_encoder.", "cond_stage_model.transformer."),
    "lora_te_": ("", "text_encoder.", "cond_stage_model.transformer."),
    "lora_te1_": ("", "text_encoder."), "lora_te2_": ("", "text_encoder_2."),
    "text_encoder_2.": ("", "text_encoder_2."),
}  # fmt: skip
"""What tools for diffusion models put before the names of a part's modules, and what checkpoints have before them."""


class Places(NamedTuple):
    """Tensor of the base -> the pair that updates it, and -> the file's own copy of the whole weight."""

    pairs: dict[str, Pair]
    saved: dict[str, str]


class Lookup(NamedTuple):
    """The base's tensors by their keys in all dialects, and how a tensor's key is made."""

    tensors: Mapping[str, str]
    key: Callable[[str], str]


def place(adapter: Adapter, base: Source, renamings: Sequence[Renaming] = ()) -> Places:
    """The places of all that an adapter holds.

    A target's whole name counts, in any dialect of the base's model. Beside that the names may differ by one front
    that says no part of a model (`model.`, `bert.`), on one side; those of diffusion models by their component's.
    `Mismatch` lists what has no place, is of another shape, or has several places, and where two share one.
    """
    names = {pair.module: renamed(f"{pair.module}.weight", renamings) for pair in adapter.pairs}
    foreign = not adapter.versions and adapter.pairs[0].module.startswith(tuple(COMPONENTS))
    found = _by_component(adapter, base) if foreign else None
    rename: Callable[[str], str | None] = lambda name: None  # noqa: E731  # components hold no weights whole
    if found is None:
        lookup = _lookup(base, names.values())
        keys = {module: lookup.key(name) for module, name in names.items()}
        dropped, put = _front(list(keys.values()), lookup, adapter, base)
        found = {module: lookup.tensors.get(put + key.removeprefix(dropped)) for module, key in keys.items()}
        rename = lambda name: lookup.tensors.get(put + lookup.key(renamed(name, renamings)).removeprefix(dropped))  # noqa: E731
    lost = [pair for pair in adapter.pairs if not _fits(pair, found[pair.module], base)]
    if lost:
        raise _homeless(adapter, base, lost, names, found)
    pairs = {name: pair for pair in adapter.pairs if (name := found[pair.module]) is not None}
    if len(pairs) < len(adapter.pairs):
        kept = set(map(id, pairs.values()))
        twice = [pair.module for pair in adapter.pairs if id(pair) not in kept]
        what = f"several of its pairs change one tensor of {base.where}: {listed(twice)}"
        raise Mismatch(what, where=str(adapter.place), hint=FOLD)
    return Places(pairs, _saved(adapter, base, rename))


# --- whole names -----------------------------------------------------------------------------------------------


def _lookup(base: Source, names: Collection[str]) -> Lookup:
    """The base's tensors by key; an adapter of the text tower alone may say nothing of the other one."""
    vision = shows_vision([*base.specs, *names])
    keys = keys_of(base.specs, vision=vision)
    return Lookup({key: name for name, key in keys.items()}, lambda name: key_of(name, vision=vision))


def _front(keys: Sequence[str], lookup: Lookup, adapter: Adapter, base: Source) -> tuple[str, str]:
    """(what is dropped from the adapter's keys, what is put before them) so that all are in the base; nothing, if no
    change makes it so. Raises `Mismatch` where several parts of the base fit."""
    if all(key in lookup.tensors for key in keys):
        return "", ""
    end = f".{keys[0]}"
    fronts = [key[: len(key) - len(end) + 1] for key in lookup.tensors if key.endswith(end)]
    fitting = [front for front in fronts if all(front + key in lookup.tensors for key in keys)]
    if len(fitting) > 1:
        said = ", ".join(f"`{front}`" for front in fitting)
        hint = f"say which is meant: --map '{_start(keys)}* = {fitting[0]}{_start(keys)}*'"
        what = f"its targets have several places in {base.where}: under {said}"
        raise Mismatch(what, where=str(adapter.place), hint=hint)
    if fitting and _says_no_part(fitting[0]):
        return "", fitting[0]
    for dropped in _leading(keys):
        if all(key.removeprefix(dropped) in lookup.tensors for key in keys):
            return dropped, ""
    return "", ""


def _start(keys: Sequence[str]) -> str:
    """The first segment, if all keys have it."""
    first = keys[0].partition(".")[0] + "."
    return first if all(key.startswith(first) for key in keys) else ""


def _says_no_part(front: str) -> bool:
    return not any(TOWER.search(segment) for segment in front.removesuffix(".").split("."))


def _keeps_parts(text: str) -> bool:
    """Whether a renaming leaves the words that say which part of a model is meant."""
    before, after = ({segment for segment in side.split(".") if TOWER.search(segment)} for side in text.split(" = "))
    return before <= after


def _leading(keys: Sequence[str]) -> Iterator[str]:
    """What all keys begin with and may be dropped: one segment, two, ... as long as they say no part of a model."""
    segments = keys[0].split(".")
    for count in range(1, len(segments) - 1):
        front = ".".join(segments[:count]) + "."
        if not _says_no_part(front) or not all(key.startswith(front) for key in keys):
            return
        yield front


# --- diffusion models ------------------------------------------------------------------------------------------


def _by_component(adapter: Adapter, base: Source) -> dict[str, str | None]:
    """Module -> tensor of the base, for files that name a component before its modules (`unet.`, `lora_te_`)."""
    found: dict[str, str | None] = {}
    for start, fronts in COMPONENTS.items():
        own = (pair.module for pair in adapter.pairs if pair.module.startswith(start) and pair.module not in found)
        inner = {module: module.removeprefix(start) for module in own}
        if not inner:
            continue
        places = [_under(front, base, flat=start.endswith("_")) for front in fronts]
        whole = [one for one in places if all(rest in one for rest in inner.values())]
        chosen = whole[0] if whole else max(places, key=lambda one: sum(rest in one for rest in inner.values()))
        found |= {module: chosen.get(rest) for module, rest in inner.items()}
    return {pair.module: found.get(pair.module) for pair in adapter.pairs}


def _under(front: str, base: Source, *, flat: bool) -> dict[str, str]:
    """Module below `front` -> its weight; `flat`: with `_` for `.`, where that leaves no doubt."""
    found: dict[str, str] = {}
    twice = set()
    for name in base.specs:
        if name.startswith(front) and name.endswith(".weight"):
            module = name.removeprefix(front).removesuffix(".weight")
            module = module.replace(".", "_") if flat else module
            twice |= {module} & found.keys()
            found[module] = name
    return {module: name for module, name in found.items() if module not in twice}


# --- what does not fit -----------------------------------------------------------------------------------------


def _fits(pair: Pair, name: str | None, base: Source) -> bool:
    spec = None if name is None else base.specs[name]
    return spec is not None and is_float(spec.dtype) and pair.fits(spec.shape)


def _saved(adapter: Adapter, base: Source, rename: Callable[[str], str | None]) -> dict[str, str]:
    """The weights that the file holds whole, by their names in the base."""
    whole = {}
    for said, stored in adapter.saved.items():
        name, own = rename(said), adapter.checkpoint.specs[stored]
        spec = None if name is None else base.specs[name]
        if name is None or spec is None or spec.shape != own.shape or not is_float(spec.dtype):
            there = f"has it as {spec.dtype} {list(spec.shape)}" if spec else "lacks it"
            reason = f"it holds a weight of its own, {list(own.shape)}; {base.where} {there}"
            raise Mismatch(reason, where=f"{own.file}: `{stored}`", hint=FOLD)
        whole[name] = stored
    return whole


def _homeless(
    adapter: Adapter, base: Source, lost: Sequence[Pair], names: Mapping[str, str], found: Mapping[str, str | None]
) -> Mismatch:
    """The error that lists the targets without a tensor in the base, and the renaming that would give them one."""
    said = []
    for pair in lost:
        spec = base.specs.get(found[pair.module] or "")
        there = f" (update {list(pair.shape)}, the base's tensor {spec.dtype} {list(spec.shape)})" if spec else ""
        said.append(f"`{names[pair.module]}`{there}")
    reason = f"{len(lost)} of its {len(adapter.pairs)} targets have no tensor in the base {base.where}"
    hint = "name the base that the adapter was trained on: `--base FILE`"
    if adapter.trained_on:
        hint += f" (it says `{adapter.trained_on}`)"
    absent = [names[pair.module] for pair in lost if found[pair.module] is None]
    shapes = {names[pair.module]: pair.shape for pair in lost} | {name: spec.shape for name, spec in base.specs.items()}
    renamings = helpful(absent, [name for name in base.specs if name not in found.values()], shapes) if absent else []
    renamings = [text for text in renamings if _keeps_parts(text)]
    if renamings:
        options = " ".join(f"--map '{text}'" for text in renamings)
        hint += f"; if these are its tensors under other names, `{options}` says so"
    what = f"{reason}: {listed(said, between='; ', plain=True)}"
    ways = [{"map": tuple(renamings)}] if renamings else []
    return Mismatch(what, where=str(adapter.place), hint=hint, ways=ways)
