"""Turns arguments into experts and a base: names, globs, which input is the base, which is an earlier result."""

import fnmatch
import glob
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from taskmerge.checkpoint.checkpoint import Checkpoint, default_name, open_checkpoint
from taskmerge.checkpoint.digest import digest_of
from taskmerge.errors import BadFile, Mismatch, TaskmergeError, UsageError, nearest
from taskmerge.merging.adapters import AdapterSource, is_adapter
from taskmerge.merging.factors import VectorSource, stored_names
from taskmerge.merging.sources import CheckpointSource, Source

BASE_NAMES = ("base", "pretrained", "zeroshot")
KEY = "taskmerge"  # of the provenance in a file's metadata


@dataclass(frozen=True, slots=True, kw_only=True)
class InputOptions:
    """How arguments are understood. `outputs` is what this run writes; `earlier` are the kinds of files that it may
    replace although they are among the inputs: what the same command wrote before."""

    base: Path | None = None
    keep_base: bool = False
    skip_input: tuple[str, ...] = ()
    allow_merged: bool = False
    allow_pickle: bool = False
    strip_prefix: str = ""
    outputs: tuple[Path, ...] = ()
    earlier: tuple[str, ...] = ("merge",)


@dataclass(frozen=True, slots=True)
class Inputs:
    """The experts in canonical order of their names, the base, and what was left out and why."""

    experts: tuple[Source, ...]
    base: Source | None
    notes: tuple[str, ...]
    warnings: tuple[str, ...]

    def close(self) -> None:
        """Closes the files of all inputs."""
        for source in (*self.experts, *([self.base] if self.base else [])):
            checkpoint = getattr(source, "checkpoint", None)
            if isinstance(checkpoint, Checkpoint):
                checkpoint.close()


@dataclass
class _Found:
    """Inputs while they are being sorted out."""

    paths: dict[str, Path] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def resolve(arguments: Sequence[str | Path] | Mapping[str, str | Path], options: InputOptions) -> Inputs:
    """Opens all inputs (headers only) and finds the base; `UsageError`, `BadFile` or `Mismatch` where that fails."""
    found = _Found()
    given = [(task, path) for task, path in named(arguments) if not _left_out(path, options, found)]
    base, rule = _find_base(given, options)
    if base is not None:
        _own_output(base, options)
    for task, path in given:
        if base is not None and _same(path, base) and not options.keep_base:
            found.notes.append(f"{path} is the base ({rule}) and is not merged as an expert (--keep-base does)")
            continue
        if _is_base(task, path) and not options.keep_base:
            found.warnings.append(
                f"{path} is merged as an expert, though it is named like a base (--skip-input leaves it out)"
            )
        if task in found.paths:
            raise UsageError(
                f"two inputs are named `{task}`: {found.paths[task]} and {path}", where=str(path),
                hint=f"name one of them, such as `other={path}`",
            )  # fmt: skip
        found.paths[task] = path
    return _opened(found, base, options)


def named(arguments: Sequence[str | Path] | Mapping[str, str | Path]) -> list[tuple[str, Path]]:
    """(task, path) for every argument; an argument that exists is a path even with `=` in it."""
    if isinstance(arguments, str | Path):
        arguments = [arguments]
    if isinstance(arguments, Mapping):
        return [(_task(task, str(path)), _existing(Path(path))) for task, path in arguments.items()]
    named = []
    for argument in arguments:
        text = str(argument)
        if Path(text).exists():
            named.append((default_name(Path(text)), Path(text)))
        elif "=" in text:
            task, _, path = text.partition("=")
            named.append((_task(task, text), _existing(Path(path))))
        elif glob.has_magic(text):
            paths = sorted(glob.glob(text))
            if not paths:
                raise BadFile("no file matches", where=text, hint="check the pattern and the working directory")
            named += [(default_name(Path(path)), Path(path)) for path in paths]
        else:
            named.append((default_name(Path(text)), _existing(Path(text))))
    return named


def _task(name: str, where: str) -> str:
    """A task's name, which is part of the names of files and of folders."""
    if not name or name.startswith(".") or any(one in "/\\\0" for one in name):
        raise UsageError(f"`{name}` is no name of a task", where=where, hint="use letters and digits: `mnist=PATH`")
    return name


def _existing(path: Path) -> Path:
    """The path if there is something; the nearest name in its folder is the hint."""
    if path.exists():
        return path
    beside = [one.name for one in path.parent.iterdir()] if path.parent.is_dir() else []
    close = nearest(path.name, beside)
    raise BadFile(
        "there is no such file",
        where=str(path),
        hint=f"did you mean `{path.with_name(close)}`?" if close else "check the path",
    )


def _same(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.samefile(other)


def _left_out(path: Path, options: InputOptions, found: _Found) -> bool:
    """Whether an input is skipped: by --skip-input, or because this run will overwrite it."""
    if any(fnmatch.fnmatch(str(path), one) or fnmatch.fnmatch(path.name, one) for one in options.skip_input):
        found.notes.append(f"left out {path} (--skip-input)")
        return True
    if _own_output(path, options):
        found.warnings.append(f"left out {path}: it is this run's own output")
        return True
    return False


def _own_output(path: Path, options: InputOptions) -> bool:
    """Whether this run will replace an input. Only what an earlier merge wrote may be replaced so."""
    if not any(_written_by(path, output) for output in options.outputs):
        return False
    try:
        with open_checkpoint(path) as checkpoint:
            replaceable = (provenance_of(checkpoint) or {}).get("kind") in options.earlier
    except TaskmergeError:  # what cannot be read cannot be merged either
        replaceable = True
    if not replaceable:
        raise UsageError(
            "it is an input and the output: it would be lost", where=str(path), hint="choose another output with -o"
        )
    return True


def _written_by(path: Path, output: Path) -> bool:
    """Whether a path is an output, or the weight file, a shard or the index of one."""
    folder = output.is_dir()
    stem, home = ("model", output) if folder else (output.stem, output.absolute().parent)
    parts = re.escape(stem) + r"(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?"
    return _same(path, output) or (_same(path.absolute().parent, home) and re.fullmatch(parts, path.name) is not None)


def _find_base(given: Sequence[tuple[str, Path]], options: InputOptions) -> tuple[Path | None, str]:
    """The base and the rule by which it is the base: --base, or the one input that calls itself so."""
    if options.base is not None:
        return _existing(options.base), "--base"
    called = {path.resolve(): (task, path) for task, path in given if _is_base(task, path)}
    if len(called) > 1 and not options.keep_base:
        paths = " and ".join(str(path) for _, path in called.values())
        raise UsageError(
            f"several inputs call themselves the base: {paths}", where="--base", hint="`--base FILE` says which it is"
        )
    for task, path in called.values():
        return path, f"its name is `{task}`"
    return None, ""


def _is_base(task: str, path: Path) -> bool:
    """Whether an input calls itself the base, or is the centre that `vectors` wrote beside centred task vectors."""
    names = {task.lower(), default_name(path).lower()}
    if "centre" in names and path.is_file() and not names & set(BASE_NAMES):
        with open_checkpoint(path) as checkpoint:
            return (provenance_of(checkpoint) or {}).get("kind") == "centre"
    return bool(names & set(BASE_NAMES))


# --- opening ---------------------------------------------------------------------------------------------------


def _opened(found: _Found, base_path: Path | None, options: InputOptions) -> Inputs:
    """Opens what is left, in canonical order, and sets earlier results aside."""
    base = None
    if base_path is not None:
        checkpoint = open_checkpoint(base_path, allow_pickle=options.allow_pickle)
        base = CheckpointSource("base", checkpoint, prefix=options.strip_prefix)
    experts: dict[str, Source] = {}
    earlier: dict[str, dict[str, object]] = {}
    origins: dict[tuple[str, ...], str] = {}
    for task, path in sorted(found.paths.items()):
        source, record = _open(task, path, base, options, origins)
        found.warnings += getattr(getattr(source, "checkpoint", None), "warnings", ())
        if record and record.get("kind") == "merge" and not options.allow_merged:
            earlier[task] = record
        if source.task in experts:
            raise UsageError(
                f"two inputs are named `{source.task}`", where=str(path), hint="name one of them: `other=PATH`"
            )
        experts[source.task] = source
    for task, record in earlier.items():
        _set_aside(task, record, experts, found)
    _check_prefix(options.strip_prefix, [*experts.values(), *([base] if base else [])])
    if not experts:
        raise UsageError("there is no expert to merge", hint="give the fine-tuned checkpoints as arguments")
    kept = tuple(experts[task] for task in sorted(experts))
    found.notes += _one_origin(kept)
    return Inputs(kept, base, tuple(found.notes), tuple(found.warnings))


def _open(
    task: str, path: Path, base: Source | None, options: InputOptions, origins: dict[tuple[str, ...], str]
) -> tuple[Source, dict[str, object] | None]:  # fmt: skip
    """One expert as a source, and the provenance in its metadata; `origins` keeps digests of the base."""
    if is_adapter(path):
        return AdapterSource(task, path, _needed_base(base, path), allow_pickle=options.allow_pickle), None
    checkpoint = open_checkpoint(path, allow_pickle=options.allow_pickle)
    record = provenance_of(checkpoint)
    kind = record.get("kind") if record else None
    if kind in ("vector", "factors") and record is not None:
        task = str(record.get("task", task)) if task == default_name(path) else task
        _check_origin(record, _needed_base(base, path), path, origins)
        return VectorSource(task, checkpoint, record, _needed_base(base, path)), record
    return CheckpointSource(task, checkpoint, prefix=options.strip_prefix), record


def _check_prefix(prefix: str, sources: Sequence[Source]) -> None:
    """Refuses a prefix that no name has, or without which two tensors would have one name."""
    plain = [source for source in sources if type(source) is CheckpointSource]
    if prefix and not any(name.startswith(prefix) for source in plain for name in source.stored):
        known = sorted({name.split(".")[0] + "." for source in plain for name in source.stored if "." in name})
        raise UsageError(
            f"no tensor's name starts with `{prefix}`",
            where="--strip-prefix",
            hint=f"names start with {', '.join(known[:12])}",
        )
    for source in plain:
        if len(source.specs) < len(source.stored):
            raise Mismatch(
                f"without the prefix `{prefix}` two tensors have one name", where=source.where,
                hint="leave one of them out of the file, or strip another prefix",
            )  # fmt: skip


def provenance_of(checkpoint: Checkpoint) -> dict[str, object] | None:
    """The provenance that taskmerge wrote into a file's metadata."""
    text = checkpoint.metadata.get(KEY)
    if text is None:
        return None
    try:
        record = json.loads(text)
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise BadFile(
            "its metadata `taskmerge` is no JSON object", where=str(checkpoint.path), hint="write the file again"
        )
    return record


def _needed_base(base: Source | None, path: Path) -> Source:
    if base is None:
        raise UsageError(f"{path} holds differences from a base", where="--base", hint="name that base: `--base FILE`")
    return base


def _check_origin(record: Mapping[str, object], base: Source, path: Path, digests: dict[tuple[str, ...], str]) -> None:
    """Task vectors belong to one origin, by content: refuse another base or centre."""
    said, listed = record.get("origin_digest"), record.get("tensors")
    if not isinstance(listed, list) or not isinstance(said, str) or not isinstance(base, CheckpointSource):
        what = "it does not say which origin its task vectors have"
        raise BadFile(what, where=str(path), hint="make the vectors again")
    names = tuple(str(name) for name in listed)
    if names not in digests:
        absent = [name for name in names if name not in base.checkpoint.specs]
        digests[names] = f"lacks `{absent[0]}`" if absent else digest_of(base.checkpoint, names)
    if digests[names] != said:
        what = "the average of the experts" if record.get("origin") == "centre" else "a base"
        raise Mismatch(
            f"these task vectors were taken from {what} ({said}) that is not {base.where} ({digests[names]})",
            where=str(path), hint="name the checkpoint they were taken from as --base, or make the vectors again",
        )  # fmt: skip


def _one_origin(experts: Sequence[Source]) -> list[str]:
    """Refuses centred task vectors beside others; a note where some of a centre's experts are not there."""
    centred = [one for one in experts if one.kind == "centred"]
    if centred and len(centred) < len(experts):
        other = next(one for one in experts if one.kind != "centred")
        raise Mismatch(
            f"task vectors about the experts' average ({centred[0].where}) cannot be merged together with others",
            where=other.where, hint="make all task vectors about one origin, or give the experts themselves",
        )  # fmt: skip
    made_of = {name for one in centred if isinstance(one, VectorSource) for name in one.record.get("experts", {})}
    if len(made_of) <= len(centred):
        return []
    few = f"of which {len(centred)} {'is' if len(centred) == 1 else 'are'} merged here"
    return [f"the centre is the average of {len(made_of)} experts, {few}; it stays as it is"]


def _set_aside(task: str, record: Mapping[str, object], experts: dict[str, Source], found: _Found) -> None:
    """Leaves an earlier result of experts that are all here out with a warning; any other merged output is refused."""
    merged = experts[task]
    listed = record.get("tasks")
    made_of = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    names = ", ".join(str(one.get("name")) for one in made_of)
    tensors = _all_tensors(Path(merged.where), merged.specs)
    others = {name: one for name, one in experts.items() if one is not merged}
    if made_of and all(_is_here(one, others, tensors) for one in made_of):
        del experts[task]
        found.warnings.append(f"left out {merged.where}: it is an earlier merge of {names}")
        return
    raise Mismatch(
        f"it is the result of an earlier merge ({names}), not a fine-tuned expert", where=merged.where,
        hint=f"`--skip-input '{Path(merged.where).name}'` leaves it out, `--allow-merged` merges it like any expert",
    )  # fmt: skip


def _all_tensors(path: Path, tensors: Collection[str]) -> Collection[str]:
    """The names of the whole merged model of which a file may be one shard."""
    index = path.with_name(re.sub(r"-\d{5}-of-\d{5}\.safetensors$", ".safetensors.index.json", path.name))
    if index == path or not index.exists():
        return tensors
    with open_checkpoint(index) as whole:
        return set(whole.specs)


def _is_here(one: Mapping[str, object], experts: Mapping[str, Source], merged: Collection[str]) -> bool:
    """Whether an entry of a provenance is among the experts, by content; the one of its name is tried first."""
    tried = sorted(experts, key=lambda task: (task != one.get("name"), task))
    return any(_matches(one, experts[task], merged) for task in tried)


def _matches(one: Mapping[str, object], other: Source, merged: Collection[str]) -> bool:
    """Whether an input is the expert that a provenance entry names, by content."""
    if not isinstance(other, CheckpointSource):
        return False
    record = other.record if isinstance(other, VectorSource) else None
    names = stored_names(other.checkpoint, record, merged, other.prefix)
    return len(names) == one.get("tensors") and digest_of(other.checkpoint, names) == one.get("digest")
