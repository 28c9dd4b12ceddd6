"""Turns arguments into experts and a base: paths, globs and names become open sources in canonical order."""

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from taskmerge.checkpoint.checkpoint import checked_plain, open_checkpoint
from taskmerge.checkpoint.held import Held, Place, open_place
from taskmerge.checkpoint.provenance import provenance_of
from taskmerge.checkpoint.weights import default_name
from taskmerge.errors import BadFile, Mismatch, TaskmergeError, UsageError, listed, nearest
from taskmerge.experts.adapters import AdapterSource
from taskmerge.experts.arguments import Arguments, existing, named
from taskmerge.experts.earlier import earlier_result, is_own_output, same_place
from taskmerge.experts.factors import VectorSource
from taskmerge.experts.lora_files import open_adapter
from taskmerge.experts.lora_names import beside, is_adapter, whole_files
from taskmerge.experts.origin import check_origin, is_base, named_base, needed_base, one_origin
from taskmerge.experts.sources import CheckpointSource, Source
from taskmerge.experts.wording import in_one_dialect
from taskmerge.specs.renaming import Renaming, parse_renaming

MERGED = ("merge", "task")
"""What taskmerge writes merged checkpoints as: whole ones, and those of one task."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InputOptions:
    """How arguments are understood. `base_rule` says who named `base`, `like` is a checkpoint whose names are taken in
    place of the first input's. `outputs` is what this run writes; `earlier`
    are the kinds of files that it may replace although they are among the inputs: what the same command wrote before.
    `told` are notes on where the inputs come from."""

    base: Place | None = None
    base_rule: str = "--base"
    keep_base: bool = False
    skip_input: tuple[str, ...] = ()
    allow_merged: bool = False
    allow_pickle: bool = False
    strip_prefix: str = ""
    map: tuple[str, ...] = ()
    like: Path | None = None
    outputs: tuple[Path, ...] = ()
    earlier: tuple[str, ...] = MERGED
    told: tuple[str, ...] = ()

    @property
    def renamings(self) -> tuple[Renaming, ...]:
        """What `map` says."""
        return tuple(map(parse_renaming, self.map))


@dataclass(frozen=True, slots=True)
class Inputs:
    """The experts in canonical order of their names, the base, and what was left out and why."""

    experts: tuple[Source, ...]
    base: CheckpointSource | None
    notes: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def sources(self) -> tuple[Source, ...]:
        """The experts, and the base behind them."""
        return (*self.experts, *([self.base] if self.base else []))

    def check_unchanged(self) -> None:
        """Raises `BadFile` where a file was rewritten since it was opened: what was read may be of two versions."""
        for source in self.sources:
            source.check_unchanged()

    def close(self) -> None:
        """Closes the files of all inputs."""
        for source in self.sources:
            source.close()


@dataclass(frozen=True, slots=True)
class SetAside:
    """An input that could not be opened, or is none, and why; the base has no `task`."""

    task: str | None
    path: Place
    error: TaskmergeError


@dataclass
class _Found:
    """Inputs while they are being sorted out. `aside` collects those that cannot be taken; without it they are
    errors."""

    places: dict[str, Place] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    aside: list[SetAside] | None = None

    @contextmanager
    def setting_aside(self, task: str | None, path: Place) -> Iterator[None]:
        """Errors from inside set this one input aside, if there is a place for it."""
        try:
            yield
        except (BadFile, Mismatch, UsageError) as error:
            if self.aside is None:
                raise
            self.aside.append(SetAside(task, path, error))


def resolve(arguments: Arguments, options: InputOptions, aside: list[SetAside] | None = None) -> Inputs:
    """Opens all inputs (headers only) and finds the base; `UsageError`, `BadFile` or `Mismatch` where that fails.

    Given a list `aside`, inputs that cannot be taken one by one are put there, and the others opened: there may be
    none. What concerns several at once, and names of what is not there, are errors all the same.
    """
    sorting = _Found(notes=list(options.told), aside=aside)
    given = [(task, place) for task, place in named(arguments) if not _left_out(place, options, sorting)]
    base, rule = named_base(given, several=options.keep_base) if options.base is None else (None, options.base_rule)
    if options.base is not None:
        base = existing(options.base)
    if isinstance(base, Path):
        is_own_output(base, options.outputs, (), allow_pickle=options.allow_pickle)
    for task, place in given:
        if base is not None and same_place(place, base) and not options.keep_base:
            sorting.notes.append(f"{place} is the base ({rule}) and is not merged as an expert (--keep-base does)")
            continue
        if is_base(task, place) and not options.keep_base:
            sorting.warnings.append(
                f"{place} is merged as an expert, though it is named like a base (--skip-input leaves it out)"
            )
        put(sorting.places, task, place)
    return _opened(sorting, base, options)


def put(places: dict[str, Place], task: str, place: Place) -> None:
    """Adds an input to others; `UsageError` where one of them has its name."""
    if task in places:
        raise UsageError(
            f"two inputs are named `{task}`: {places[task]} and {place}", where=str(place),
            hint=f"name one of them, such as `other={place}`",
        )  # fmt: skip
    places[task] = place


def _named(path: Path, glob: str) -> bool:
    """Whether a glob, or a name to the letter (it may hold brackets), is that of a path or of its last part."""
    return any(name == glob or fnmatch.fnmatch(name, glob) for name in (str(path), path.name))


def _left_out(path: Place, options: InputOptions, sorting: _Found) -> bool:
    """Whether an input is skipped: by --skip-input, or because this run will overwrite it."""
    if isinstance(path, Held):
        return False
    if any(_named(path, glob) for glob in options.skip_input):
        sorting.notes.append(f"left out {path} (--skip-input)")
        return True
    if is_own_output(path, options.outputs, options.earlier, allow_pickle=options.allow_pickle):
        sorting.warnings.append(f"left out {path}: it is this run's own output")
        return True
    return False


# --- opening ---------------------------------------------------------------------------------------------------


def _opened(sorting: _Found, base_place: Place | None, options: InputOptions) -> Inputs:
    """Opens what is left, in canonical order, and sets earlier results aside."""
    base: CheckpointSource | None = None
    if base_place is not None:
        with sorting.setting_aside(None, base_place):
            base = _open_base(base_place, options)
    if base_place is not None and base is not None:
        sorting.notes += base.notes
        sorting.warnings += [*base.warnings, *_odd(base_place, base)]
    experts: dict[str, Source] = {}
    earlier: list[str] = []
    origins: dict[tuple[str, ...], str] = {}
    for task, place in sorted(sorting.places.items()):
        source = None
        with sorting.setting_aside(task, place):
            source = _open(task, place, base, options, origins)
        if source is None:
            continue
        sorting.notes += source.notes
        sorting.warnings += [*source.warnings, *_odd(place, source)]
        if source.record.get("kind") in MERGED and not options.allow_merged:
            earlier.append(source.task)
        if source.task in experts:
            raise UsageError(
                f"two inputs are named `{source.task}`", where=str(place), hint="name one of them: `other=PATH`"
            )
        experts[source.task] = source
    _check_names(options, [*([base] if base else []), *experts.values()])
    sorting.notes += _in_one_dialect(base, experts, earlier, options)
    for task in earlier:
        merged = experts.pop(task)
        with sorting.setting_aside(task, Path(merged.where)):
            sorting.warnings.append(earlier_result(merged, experts))
    if not experts and not sorting.aside:
        raise UsageError("there is no expert to merge", hint="give the fine-tuned checkpoints as arguments")
    kept = tuple(experts[task] for task in sorted(experts))
    sorting.notes += one_origin(kept)
    return Inputs(kept, base, tuple(sorting.notes), tuple(sorting.warnings))


def _open_base(place: Place, options: InputOptions) -> CheckpointSource:
    """The base as a source."""
    if is_adapter(place) and not (isinstance(place, Path) and whole_files(place)):
        hint = "name the checkpoint that it was trained on"
        raise Mismatch("is an adapter, which changes a base and is none", where=str(place), hint=hint)
    checkpoint = checked_plain(open_place(place, allow_pickle=options.allow_pickle))
    return CheckpointSource("base", checkpoint, prefix=options.strip_prefix, renamings=options.renamings)


def _open(
    task: str, place: Place, base: CheckpointSource | None, options: InputOptions, origins: dict[tuple[str, ...], str]
) -> Source:
    """One expert as a source; `origins` keeps digests of the base."""
    if is_adapter(place):
        return _adapter(task, place, base, options)
    checkpoint = checked_plain(open_place(place, allow_pickle=options.allow_pickle))
    path = checkpoint.path
    record = provenance_of(checkpoint) or {}
    if record.get("kind") in ("vector", "factors"):
        task = str(record.get("task", task)) if task == default_name(path) else task
        check_origin(record, needed_base(base, path), path, origins)
        return VectorSource(task, checkpoint, record, needed_base(base, path))
    return CheckpointSource(task, checkpoint, prefix=options.strip_prefix, record=record, renamings=options.renamings)


def _odd(place: Place, source: Source) -> list[str]:
    """What a careful user would want to know about one input: files left aside, tensors without elements, an adapter
    that was trained on another base."""
    adapter = isinstance(source, AdapterSource)
    left = beside(place, adapter=adapter) if isinstance(place, Path) else None
    empty = [] if adapter else [name for name, spec in source.specs.items() if spec.shape == (0,) and "." in name]
    found = [left] if left else []
    if empty:
        found.append(
            f"{place}: {len(empty)} tensors have no elements (shape [0]), such as DeepSpeed's ZeRO-3 leaves in place "
            f"of weights: {listed(empty)}"
        )
    other = source.other_base() if isinstance(source, AdapterSource) else None
    return [*found, *([other] if other else [])]


def _adapter(task: str, place: Place, base: CheckpointSource | None, options: InputOptions) -> Source:
    """An adapter over the base; without one, the complaint says which it was trained on."""
    if base is None:
        adapter = open_adapter(place, allow_pickle=options.allow_pickle)
        adapter.checkpoint.close()
        base = needed_base(base, place, "is a LoRA adapter, and holds differences from a base", adapter.trained_on)
    return AdapterSource(task, place, base, allow_pickle=options.allow_pickle, renamings=options.renamings)


def _in_one_dialect(
    base: CheckpointSource | None, experts: Mapping[str, Source], earlier: Sequence[str], options: InputOptions
) -> list[str]:
    """Has all whole checkpoints read in the words of the base, else of the first expert; earlier results come last."""
    order = [*sorted(set(experts) - set(earlier)), *earlier]
    whole = [one for task in order if isinstance(one := experts[task], CheckpointSource) and one.kind == "weight"]
    sources = [*([base] if base else []), *whole]
    if options.like is None:
        return in_one_dialect(sources)
    with open_checkpoint(options.like) as like:
        return in_one_dialect(sources, like)


def _check_names(options: InputOptions, sources: Sequence[Source]) -> None:
    """Refuses a prefix or a renaming that no name has, or by which two tensors would have one name."""
    prefix = options.strip_prefix
    plain = [one for one in sources if isinstance(one, CheckpointSource) and one.kind == "weight"]
    names = [name for source in plain for name in source.checkpoint.specs]  # of others the base's names count
    if prefix and not any(name.startswith(prefix) for name in names):
        starts = sorted({name.split(".")[0] + "." for name in names if "." in name})
        raise UsageError(
            f"no tensor's name starts with `{prefix}`",
            where="--strip-prefix",
            hint=f"names start with {', '.join(starts[:12])}",
        )
    names += [
        f"{pair.module}.weight" for one in sources if isinstance(one, AdapterSource) for pair in one.adapter.pairs
    ]
    for text, renaming in zip(options.map, options.renamings, strict=True):
        if not any(renaming.apply(name.removeprefix(prefix)) is not None for name in names):
            close = nearest(renaming.source, {name.removeprefix(prefix) for name in names})
            hint = f"is it `{close}`?" if close else "`taskmerge inspect FILE` lists the names"
            raise UsageError(f"no tensor is called `{renaming.source}`, as `{text}` says", where="--map", hint=hint)
    for source in plain:
        if len(source.specs) < len(source.checkpoint.specs):
            by = f"without the prefix `{prefix}`" if prefix and not options.map else "as --map calls them"
            raise Mismatch(
                f"{by} two tensors have one name", where=source.where,
                hint="leave one of them out of the file, or choose other names",
            )  # fmt: skip
