"""Puts a checkpoint into a backbone by name, tensor by tensor, or says everything that does not fit."""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from taskmerge.checkpoint.checkpoint import Checkpoint
from taskmerge.checkpoint.dtypes import CODES, DTYPES, is_float
from taskmerge.checkpoint.header import TensorSpec
from taskmerge.checkpoint.quantised import read_config
from taskmerge.checkpoint.translation import Joined
from taskmerge.checkpoint.wording import translations
from taskmerge.errors import Mismatch, listed
from taskmerge.models.contract import Backbone
from taskmerge.models.naming import Naming

SHOWN = 10
NO_FLOATS = "not of a floating-point type"
LENT = re.compile(r"embed|(^|\.)(wte|wpe|conv1|visual_projection)\.")
"""Names of what experts are published without, as it is the base's: embeddings (CLIP's of patches is `conv1`), and the
projection that transformers' CLIP keeps outside its vision tower."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a module's tensor comes from: a checkpoint, and the name that it has there, or (`joined`) the pieces that
    it has there, of which `name` is the first."""

    checkpoint: Checkpoint
    name: str
    joined: Joined | None = None

    @property
    def spec(self) -> TensorSpec:
        """The tensor as the file has it."""
        return self.checkpoint.specs[self.name] if self.joined is None else self.joined.spec

    def read(self) -> Tensor:
        """The tensor as it is stored."""
        if self.joined is None:
            return self.checkpoint.tensor(self.name)
        buffer = torch.empty(self.spec.nbytes, dtype=torch.uint8)
        self.joined.read_into(self.checkpoint, buffer)
        return buffer.view(DTYPES[self.spec.dtype]).reshape(self.spec.shape)

    def read_into(self, target: Tensor) -> None:
        """Fills `target`: straight from the file where types agree, else through one converted copy."""
        spec = self.spec
        if (
            self.joined is not None
            or DTYPES[spec.dtype] != target.dtype
            or target.device.type != "cpu"
            or not target.is_contiguous()
        ):
            target.copy_(self.read())
            return
        raw = target.reshape(-1).view(torch.uint8)
        self.checkpoint.read_into(self.name, raw)


@dataclass(frozen=True)
class Tensors(Mapping[str, Tensor]):
    """The tensors of a checkpoint as a mapping that reads each when it is asked for, by its plain name."""

    checkpoint: Checkpoint
    names: Mapping[str, str]

    def __getitem__(self, name: str) -> Tensor:
        return self.checkpoint.tensor(self.names[name])

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def stored(checkpoint: Checkpoint) -> Tensors:
    """A checkpoint's tensors by the names that they are stored under."""
    return Tensors(checkpoint, {name: name for name in checkpoint.specs})


def fill(backbone: Backbone, checkpoint: Checkpoint, base: Checkpoint | None = None) -> None:
    """Puts the checkpoint's tensors into the backbone's module, in place and in the module's dtype.

    Embeddings (`LENT`) that the checkpoint lacks come from `base`. Nothing of an earlier checkpoint stays: every tensor
    is written, the counters in `backbone.optional` with zeros where no file has them. Raises `Mismatch`, before
    anything is written, that lists every missing, unexpected and differently shaped tensor.
    """
    origins = state_for(backbone, checkpoint, base)
    for name, target in _tensors(backbone.module).items():
        if name in origins:
            origins[name].read_into(target)
        else:
            target.zero_()


def completed(
    backbone: Backbone, names: Collection[str], base: Checkpoint | None
) -> tuple[dict[str, Origin], list[str]]:
    """(what the base lends a checkpoint that has tensors of these names, what of the module nobody has then)."""
    targets = _tensors(backbone.module)
    own = backbone.naming.found(targets, names)
    lent = {} if base is None else _lent(targets, backbone.naming, base, backbone.optional)
    lent = {name: origin for name, origin in lent.items() if name not in own}
    return lent, [name for name in targets if name not in own and name not in lent and name not in backbone.optional]


def lend(backbone: Backbone, names: Collection[str], base: Checkpoint) -> None:
    """Puts what the base lends a checkpoint with tensors of these names into the backbone, as `fill` does with it."""
    lent, _ = completed(backbone, names, base)
    targets = _tensors(backbone.module)
    for name, origin in lent.items():
        origin.read_into(targets[name])


def _lent(targets: Collection[str], naming: Naming, base: Checkpoint, optional: frozenset[str]) -> dict[str, Origin]:
    lent = [name for name in targets if name in optional or LENT.search(name)]
    return {name: Origin(base, own) for name, own in naming.found(lent, base.specs).items()}


def exchange(backbone: Backbone, checkpoint: Checkpoint, before: Checkpoint | None, block: Checkpoint | None) -> None:
    """In a backbone that `checkpoint` fills, with the block `before` over it, puts `block` over it instead.

    A block is a part of the encoder: tensors under their names in the checkpoint, whose place they take. Raises
    `Mismatch` as `block_for`, before anything is written.
    """
    back = {} if before is None else block_for(backbone, checkpoint, before)
    over = {} if block is None else block_for(backbone, checkpoint, block)
    origins = {name: Origin(checkpoint, origin.name) for name, origin in back.items()} | over
    targets = _tensors(backbone.module)
    for name, origin in origins.items():
        origin.read_into(targets[name])


def block_for(backbone: Backbone, checkpoint: Checkpoint, block: Checkpoint) -> dict[str, Origin]:
    """The module's name of every tensor of a block -> the block's tensor, from headers alone.

    Raises `Mismatch` that lists every tensor that the checkpoint does not have or the features do not need, and those
    of another shape.
    """
    targets = _tensors(backbone.module)
    found = {own: name for name, own in backbone.naming.found(targets, checkpoint.specs).items()}
    origins = {found[own]: Origin(block, own) for own in block.specs if own in found}
    wrong = {"unexpected": [own for own in block.specs if own not in found], **_ill_formed(targets, origins)}
    if any(wrong.values()) or not origins:
        raise Mismatch(
            f"does not fit the encoder in {checkpoint.path.name}: {_lists(wrong)}", where=str(block.path),
            hint="a block has some of its encoder's tensors, under the same names: is it a part of another one?",
        )  # fmt: skip
    return origins


def check_fits(
    backbone: Backbone,
    checkpoints: Iterable[Checkpoint],
    base: Checkpoint | None,
    blocks: Iterable[tuple[Checkpoint, Checkpoint]] = (),
) -> None:
    """Raises Mismatch, from headers alone, for every checkpoint that does not fill the backbone, and for every block
    that is no part of its encoder: `blocks` are pairs of both, the encoder first."""
    checks: list[Callable[[], object]] = [partial(state_for, backbone, one, base) for one in checkpoints]
    checks += [partial(block_for, backbone, encoder, block) for encoder, block in blocks]
    misfits: list[Mismatch] = []
    for check in checks:
        try:
            check()
        except Mismatch as error:
            misfits.append(error)
    if len(misfits) > 1:
        lines = "\n".join(f"  {error.where}: {error.what}" for error in misfits)
        raise Mismatch(f"{len(misfits)} checkpoints do not fit\n{lines}", hint=misfits[0].hint)
    if misfits:
        raise misfits[0]


def state_for(backbone: Backbone, checkpoint: Checkpoint, base: Checkpoint | None = None) -> dict[str, Origin]:
    """The module's name of every tensor -> where it comes from, from headers alone. Raises `Mismatch` as `fill`."""
    targets = _tensors(backbone.module)
    return origins_of(targets, backbone.naming, checkpoint, base, backbone.optional, backbone.label)


def fill_module(module: nn.Module, naming: Naming, checkpoint: Checkpoint, label: str) -> None:
    """Puts the checkpoint's tensors into any module, all of them from this one file. Raises `Mismatch` as `fill`."""
    targets = _tensors(module)
    for name, origin in origins_of(targets, naming, checkpoint, None, frozenset(), label).items():
        origin.read_into(targets[name])


def origins_of(
    targets: Mapping[str, Tensor],
    naming: Naming,
    checkpoint: Checkpoint,
    base: Checkpoint | None,
    optional: frozenset[str],
    label: str,
) -> dict[str, Origin]:
    """The origin of each target: the checkpoint, for embeddings else the base. Optional ones may have none.

    Floating-point types are converted into each other. Integers are no weights: quantised ones mean something else.
    """
    names = naming.found(targets, checkpoint.specs)
    origins = {name: Origin(checkpoint, own) for name, own in names.items()}
    used = list(names.values())
    if len(names) < len(targets) and len(names) < len(checkpoint.specs):
        more = {name: one for name, one in _translated(targets, naming, checkpoint).items() if name not in origins}
        used += [stored for one in more.values() for stored in (one.joined.stored if one.joined else (one.name,))]
        names, origins = names | {name: one.name for name, one in more.items()}, origins | more
    unexpected = naming.strangers(used, checkpoint.specs)
    if base is not None and len(names) < len(targets):
        origins = _lent(targets, naming, base, optional) | origins
    missing = [name for name in targets if name not in origins and name not in optional]
    wrong = {"missing": missing, "unexpected": unexpected, **_ill_formed(targets, origins)}
    if any(wrong.values()) or not names:
        raise _mismatch(checkpoint, base, label, wrong)
    return {name: origins[name] for name in targets if name in origins}


def _translated(targets: Mapping[str, Tensor], naming: Naming, checkpoint: Checkpoint) -> dict[str, Origin]:
    """The origin of every target that the file has in another dialect, or in other pieces than the module."""
    own = naming.in_module(targets, checkpoint.specs)
    wanted = {
        name: TensorSpec(name, CODES[tensor.dtype], tuple(tensor.shape), checkpoint.path, 0, tensor.nbytes)
        for name, tensor in targets.items()
    }
    config = read_config(checkpoint.home)
    (found,) = translations(
        [(wanted, None), ({name: checkpoint.specs[stored] for name, stored in own.items()}, config)]
    )
    if found is None:
        return {}
    whole = {name: Origin(checkpoint, own[stored]) for name, stored in found.names.items() if name in targets}
    joined = {name: one.stored_as(own) for name, one in found.joined.items()}
    return whole | {name: Origin(checkpoint, one.stored[0], one) for name, one in joined.items()}


def _ill_formed(targets: Mapping[str, Tensor], origins: Mapping[str, Origin]) -> dict[str, list[str]]:
    """The tensors that cannot be put into their targets, by what is wrong with them."""
    misshapen = [
        f"{origin.name} {_shape(origin)}, expected {list(targets[name].shape)}"
        for name, origin in origins.items()
        if _shape(origin) != list(targets[name].shape)
    ]
    mistyped = [
        f"{origin.name} {_dtype(origin)}"
        for name, origin in origins.items()
        if targets[name].is_floating_point() and not is_float(origin.spec.dtype)
    ]
    return {"of another shape": misshapen, NO_FLOATS: mistyped}


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """The live parameters and persistent buffers of a module, by its own names."""
    return {name: tensor.detach() for name, tensor in module.state_dict(keep_vars=True).items()}


def _shape(origin: Origin) -> list[int]:
    return list(origin.spec.shape)


def _dtype(origin: Origin) -> str:
    return str(DTYPES[origin.spec.dtype]).removeprefix("torch.")


def _mismatch(
    checkpoint: Checkpoint, base: Checkpoint | None, label: str, wrong: Mapping[str, Sequence[str]]
) -> Mismatch:
    """The one error that lists all: names by what is wrong with them."""
    lists = [kind for kind, names in wrong.items() if names]
    what = f"does not fit {label}: {_lists(wrong)}"
    hint = "is it of another architecture? `taskmerge inspect` lists its tensors, `--map 'FROM* = TO*'` renames them"
    if lists == ["missing"] and base is None and all(map(LENT.search, wrong["missing"])):
        hint = "a base that has them would complete it: name it in the suite (`base:`)"
    elif lists == ["missing"]:
        hint = "`taskmerge merge FILE --base BASE --method average --on-missing base` completes it, if that is meant"
    if lists == [NO_FLOATS]:
        hint = "is it quantised? convert it to floating point first"
    return Mismatch(what, where=str(checkpoint.path), hint=hint)


def _lists(wrong: Mapping[str, Sequence[str]]) -> str:
    """What is wrong, kind by kind."""
    parts = [f"{len(names)} {kind}: {listed(names, SHOWN, plain=True)}" for kind, names in wrong.items() if names]
    return "; ".join(parts) or "it has no tensor"
