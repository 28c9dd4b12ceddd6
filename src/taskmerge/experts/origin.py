"""What the experts are differences from: which input is the base, and whether task vectors belong to it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from taskmerge.checkpoint.checkpoint import open_checkpoint
from taskmerge.checkpoint.digest import digest_of
from taskmerge.checkpoint.held import Held, Place
from taskmerge.checkpoint.provenance import provenance_of
from taskmerge.checkpoint.weights import default_name
from taskmerge.errors import BadFile, Mismatch, UsageError
from taskmerge.experts.sources import CheckpointSource, Source

BASE_NAMES = ("base", "pretrained", "zeroshot")


def named_base(given: Sequence[tuple[str, Place]], *, several: bool = False) -> tuple[Place | None, str]:
    """The one input (task, place) that calls itself the base, and by what name; `several`: the first of them."""
    called = {_key(place): (task, place) for task, place in given if is_base(task, place)}
    if len(called) > 1 and not several:
        places = " and ".join(str(place) for _, place in called.values())
        raise UsageError(
            f"several inputs call themselves the base: {places}", where="--base", hint="`--base FILE` says which it is"
        )
    for task, place in called.values():
        return place, f"its name is `{task}`"
    return None, ""


def _key(place: Place) -> object:
    """What tells one input from another."""
    return id(place.tensors) if isinstance(place, Held) else place.resolve()


def is_base(task: str, path: Place) -> bool:
    """Whether an input calls itself the base, or is the centre that `vectors` wrote beside centred task vectors."""
    if isinstance(path, Held):
        return task.lower() in BASE_NAMES
    names = {task.lower(), default_name(path).lower()}
    if "centre" in names and path.is_file() and not names & set(BASE_NAMES):
        with open_checkpoint(path) as checkpoint:
            return (provenance_of(checkpoint) or {}).get("kind") == "centre"
    return bool(names & set(BASE_NAMES))


def needed_base(
    base: CheckpointSource | None, place: Place, what: str = "holds differences from a base", said: str | None = None
) -> CheckpointSource:
    """The base, which the differences at `place` mean nothing without; `said` is what they themselves call it."""
    if base is None:
        hint = "name that base: `--base FILE`" + (f" (it says that it was trained on `{said}`)" if said else "")
        raise UsageError(f"{place} {what}", where="--base", hint=hint)
    return base


def check_origin(
    record: Mapping[str, object], base: CheckpointSource, path: Path, digests: dict[tuple[str, ...], str]
) -> None:
    """Task vectors belong to one origin, by content: refuse another base or centre. `digests` are of the base."""
    digest, tensors = record.get("origin_digest"), record.get("tensors")
    if not isinstance(tensors, list) or not isinstance(digest, str):
        reason = "it does not say which origin its task vectors have"
        raise BadFile(reason, where=str(path), hint="make the vectors again")
    names = tuple(str(name) for name in tensors)
    if names not in digests:
        absent = [name for name in names if name not in base.stored]
        digests[names] = f"lacks `{absent[0]}`" if absent else digest_of(base.checkpoint, names)
    if digests[names] != digest:
        origin = "the average of the experts" if record.get("origin") == "centre" else "a base"
        raise Mismatch(
            f"these task vectors were taken from {origin} ({digest}) that is not {base.where} ({digests[names]})",
            where=str(path), hint="name the checkpoint they were taken from as --base, or make the vectors again",
        )  # fmt: skip


def one_origin(experts: Sequence[Source]) -> list[str]:
    """Refuses centred task vectors beside others; a note where some of a centre's experts are not there."""
    centred = [expert for expert in experts if expert.kind == "centred"]
    if centred and len(centred) < len(experts):
        other = next(expert for expert in experts if expert.kind != "centred")
        raise Mismatch(
            f"task vectors about the experts' average ({centred[0].where}) cannot be merged together with others",
            where=other.where, hint="make all task vectors about one origin, or give the experts themselves",
        )  # fmt: skip
    made_of = {name for expert in centred for name in expert.record.get("experts", {})}
    if len(made_of) <= len(centred):
        return []
    few = f"of which {len(centred)} {'is' if len(centred) == 1 else 'are'} merged here"
    return [f"the centre is the average of {len(made_of)} experts, {few}; it stays as it is"]
