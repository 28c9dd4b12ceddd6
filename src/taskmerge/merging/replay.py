"""Finds the experts of a merged file again by content, so that its recipe can be replayed."""

import os
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskmerge.checkpoint.adapted import PLACES, is_adapted
from taskmerge.checkpoint.checkpoint import Checkpoint, open_checkpoint
from taskmerge.checkpoint.digest import digest_of
from taskmerge.checkpoint.dtypes import is_float
from taskmerge.checkpoint.held import Held, Place, open_place
from taskmerge.checkpoint.learned import learned_of
from taskmerge.checkpoint.provenance import provenance_of
from taskmerge.errors import BadFile, Mismatch, TaskmergeError, UsageError, listed
from taskmerge.experts.arguments import Arguments, named
from taskmerge.experts.compare import BASE as KEPT_BASE
from taskmerge.experts.factors import dense_names
from taskmerge.experts.lora_files import open_adapter
from taskmerge.experts.lora_names import is_adapter
from taskmerge.experts.sources import CheckpointSource
from taskmerge.experts.wording import read_like
from taskmerge.specs.load import LEARNED, load_recipe, parse_recipe
from taskmerge.specs.merge import MergeSpec
from taskmerge.specs.renaming import parse_renaming

BASE = "\0base"  # among the tasks that are looked for; no task is called so
ENDINGS = (".safetensors", ".bin", ".pt", ".index.json")
"""Of files that may hold experts, in the order in which they are looked at."""


def replayed(path: Path, inputs: Arguments, *, allow_pickle: bool = False) -> tuple[dict[str, Place], dict[str, Any]]:
    """(task -> where it is, keywords of `merge`) that make the merged file at `path` again.

    Looks among `inputs` (files, folders, globs, state dicts), in the folder of `path` and in the working directory; for
    what adaptation has learnt in that folder, whose experts may also be where its recipe says, and beside it. `BadFile`
    lists what is not there; `UsageError` when the file carries no recipe, or one without digests.
    """
    with open_checkpoint(path) as merged:
        record: Mapping[str, Any] = provenance_of(merged) or {}
        if record.get("kind") != "merge":
            hint = "only files that taskmerge merged can be replayed"
            raise UsageError("it carries no recipe", where=str(path), hint=hint)
        wanted = {str(task["name"]): task for task in record["tasks"]}
        if any("digest" not in task for task in wanted.values()):
            raise UsageError("its inputs were not digested", where=str(path), hint="merge without --no-digest")
        base = record.get("base")
        keywords = _keywords(record["recipe"], path)
        prefix, renamed = keywords.get("strip_prefix", ""), keywords.get("map", ())
        search = _Search(merged, prefix, renamed, allow_pickle, _kept(keywords, merged))
        candidates = _candidates(path, inputs, adapted=LEARNED in keywords or is_adapted(_home(path)))
        experts = search.find(wanted, candidates, search.of_expert)
        held = search.held(experts.values())
        origin = search.find({BASE: base} if base else {}, candidates, lambda file: search.of_base(file, held))
    lacking = [f"`{name}` ({task['digest']})" for name, task in wanted.items() if name not in experts]
    lacking += [f"the base ({base['digest']})"] if base and not origin else []
    if lacking:
        raise BadFile(
            f"cannot find again, by content: {listed(lacking, plain=True)}", where=str(path),
            hint="name the experts' files or folder as arguments, or put them beside the merged file",
        )  # fmt: skip
    if base:
        keywords["base"] = origin[BASE]
    # What was decided once is not decided again: names like `base`, and experts that were merges themselves.
    keywords |= {"keep_base": True, "allow_merged": True, "allow_pickle": allow_pickle, "like": path}
    return {name: experts[name] for name in wanted}, keywords


def _keywords(recipe: Any, path: Path) -> dict[str, Any]:
    """The recipe that a file carries as keywords of `merge`."""
    parsed = parse_recipe(recipe, str(path))
    keywords: dict[str, Any] = {**parsed.shape, **{k: v for k, v in parsed.options.items() if v is not None}}
    if parsed.weights:
        keywords["weights"] = dict(parsed.weights)
    return with_learned(keywords, _home(path))


def _kept(keywords: Mapping[str, Any], merged: Checkpoint) -> dict[str, str]:
    """The tensors of a merged file that were copied unmerged, and from whom."""
    spec = MergeSpec(keep_from=keywords.get("keep_from", ()))
    return {name: who for name in merged.specs if (who := spec.keeper(name)) is not None}


def with_learned(keywords: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The keywords of a recipe in `folder`: what adaptation has learnt in place of its digest."""
    if LEARNED not in keywords:
        return dict(keywords)
    return {**keywords, LEARNED: learned_of(folder, keywords[LEARNED])}


def _home(path: Path) -> Path:
    """The folder that a merged file is in, or that it is."""
    return path if os.path.isdir(path) else path.parent


def _candidates(path: Path, inputs: Arguments, *, adapted: bool) -> list[Place]:
    """Where experts may lie: the arguments given, the merged file's folder, the working directory; if that folder is
    an adapted one, also where its recipe says, and beside it."""
    home, beside = _home(path).absolute(), path.absolute().parent
    near = [*_listed(home), home, home.parent] if adapted else [beside]
    given = [place for _, place in named(inputs)]
    places = [*(place for place in given if isinstance(place, Path)), *near, Path.cwd()]
    unique: dict[str, Path] = {}
    for file in (file for place in places for file in ([place] if not place.is_dir() else _in_folder(place))):
        unique.setdefault(os.path.realpath(file), file)  # unlike Path.resolve, an answer for links in a loop
    unique.pop(os.path.realpath(path), None)
    return [*(place for place in given if isinstance(place, Held)), *unique.values()]


def _listed(folder: Path) -> list[Path]:
    """The experts and the base that the recipe in an adapted folder lists, as far as they are still there."""
    with suppress(TaskmergeError):  # it only says where to look: digests decide
        recipe = load_recipe(folder / PLACES["recipe"])
        texts = recipe.experts.values() if isinstance(recipe.experts, Mapping) else recipe.experts
        return [place for text in (*texts, recipe.base) if text and os.path.exists(place := folder / text)]
    return []


def _in_folder(folder: Path) -> list[Path]:
    """A model folder itself, the weight files in it, and the model folders directly below it."""
    below = [folder / name for name in _visible(folder) if os.path.isdir(folder / name)]
    holders = [place for place in below if any(map(_holds_weights, _visible(place)))]
    return [folder, *(folder / name for name in sorted(filter(_holds_weights, _visible(folder)), key=_kind)), *holders]


def _visible(folder: Path) -> list[str]:
    """The names in a folder, sorted, without hidden ones; none where nobody may look."""
    with suppress(OSError):
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    return []


def _holds_weights(name: str) -> bool:
    return name.endswith(ENDINGS)


def _kind(name: str) -> int:
    """Where files of its kind come in the search."""
    return next(place for place, ending in enumerate(ENDINGS) if name.endswith(ending))


Names = list[str]


@dataclass(frozen=True)
class _Search:
    """Looks for inputs of a merge by the digest of what it read of them."""

    merged: Checkpoint
    prefix: str
    map: Sequence[str]
    allow_pickle: bool
    kept: Mapping[str, str]
    """The tensors that were copied unmerged, and from whom."""

    def find(
        self,
        wanted: Mapping[str, Mapping[str, Any]],
        among: Iterable[Place],
        read: Callable[[Checkpoint], Iterable[Names]],
    ) -> dict[str, Place]:
        """Task -> the first place with the same content; `read` says which tensors the merge may have read of it."""
        places: dict[str, Place] = {}
        for place in among:
            lacking = {task: record for task, record in wanted.items() if task not in places}
            if not lacking:
                break
            with suppress(TaskmergeError):  # other files may lie beside the experts
                digests = set(self._digests(place, {record.get("tensors") for record in lacking.values()}, read))
                places |= {task: place for task, record in lacking.items() if record["digest"] in digests}
        return places

    def _digests(
        self, place: Place, sizes: Container[object], read: Callable[[Checkpoint], Iterable[Names]]
    ) -> Iterator[str]:
        """Content digests of an input; what has another number of tensors than any that is wanted is not read."""
        if is_adapter(place):
            yield open_adapter(place, allow_pickle=self.allow_pickle).digest
            return
        with open_place(place, allow_pickle=self.allow_pickle) as checkpoint:
            yield from (digest_of(checkpoint, names) for names in read(checkpoint) if len(names) in sizes)

    def of_expert(self, checkpoint: Checkpoint) -> Iterator[Names]:
        """An expert is read as far as the merged file goes, but for what is kept from another."""
        dense = self._dense(checkpoint)
        for who in (None, *sorted(set(self.kept.values()))):
            names = {name for name in self.merged.specs if self.kept.get(name) in (None, who)}
            read = {stored for name, parts in dense.items() if name in names for stored in parts}
            yield sorted(read) or list(checkpoint.stored)

    def of_base(self, checkpoint: Checkpoint, held: Container[str]) -> Iterator[Names]:
        """A base is read where no expert holds a tensor, or it was kept; and if task vectors were merged, all its
        numbers are."""
        source = self._like(checkpoint)
        read = [name for name in source.specs if name in self.merged.specs]
        read = [name for name in read if self.kept.get(name) in (None, KEPT_BASE)]
        alone = {name for name in read if name not in held or name in self.kept}
        numbers = [name for name in read if name in alone or is_float(source.specs[name].dtype)]
        for names in (numbers, alone):
            yield sorted({stored for name in names for stored in source.stored_names(name)})

    def held(self, experts: Iterable[Place]) -> frozenset[str]:
        """The tensors of the merged file that some expert holds; an adapter stands for all of them."""
        names: set[str] = set()
        for place in dict.fromkeys(experts):
            if is_adapter(place):
                return frozenset(self.merged.specs)
            with open_place(place, allow_pickle=self.allow_pickle) as checkpoint:
                names |= self._dense(checkpoint).keys()
        return frozenset(names)

    def _dense(self, checkpoint: Checkpoint) -> dict[str, list[str]]:
        """The tensors that a file stands for in the merged file's words, and what it reads each from."""
        record = provenance_of(checkpoint) or {}
        if record.get("kind") in ("vector", "factors"):
            return dense_names(checkpoint, record)
        source = self._like(checkpoint)
        return {name: source.stored_names(name) for name in source.specs}

    def _like(self, checkpoint: Checkpoint) -> CheckpointSource:
        """A whole checkpoint in the merged file's words. Raises `Mismatch` for one that has a tensor in another shape:
        it was not merged, and may be of any size."""
        source = read_like(checkpoint, self.merged, self.prefix, [parse_renaming(text) for text in self.map])
        for name, spec in self.merged.specs.items():
            own = source.specs.get(name)
            if own is not None and own.shape != spec.shape and is_float(spec.dtype) and name not in self.kept:
                raise Mismatch(f"has `{name}` in another shape", where=str(checkpoint.path))
        return source
