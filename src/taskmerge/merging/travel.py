"""What goes into an output folder beside the weights, and whose: what all experts share is theirs, else one decides."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from taskmerge.checkpoint.ahead import Stamp
from taskmerge.checkpoint.configs import clashes, differing, entries, shared, with_dtype, with_values
from taskmerge.checkpoint.identity import stamps_of
from taskmerge.checkpoint.quantised import without_quantisation
from taskmerge.checkpoint.sidecars import CONFIG, Contents, contents, digests_of, is_tokenizer, tokenizer_differences
from taskmerge.documents import object_at, object_in, read_object, read_regular
from taskmerge.errors import BadFile, Mismatch, UsageError, listed, unknown_name
from taskmerge.experts.inputs import Inputs
from taskmerge.experts.sources import Source
from taskmerge.specs.merge import MergeSpec

BASE = "base"
COMBINED = (CONFIG, "generation_config.json")
"""Files that are compared, and put together, key by key."""


@dataclass
class Travelling:
    """What travels, name -> path or content; the versions of all files that were looked at; what is to be said;
    whose tokenizer is taken where those of the experts differ."""

    files: dict[str, bytes | Path] = field(default_factory=dict)
    versions: Mapping[Path, Stamp | None] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    tokenizer_of: str | None = None


@dataclass(frozen=True)
class Folders:
    """The folders of the inputs by name, the experts' and the base's, and what lies in them."""

    experts: Mapping[str, Contents]
    base: Contents | None

    def holders(self) -> dict[str, Contents]:
        """All of them; the base, by whatever an expert is called, is `base`."""
        return {**self.experts, **({} if self.base is None else {BASE: self.base})}

    def of(self, name: str) -> Contents:
        """One of them."""
        return self.base if name == BASE and self.base is not None else self.experts[name]

    def experts_with(self, file: str) -> list[str]:
        return [name for name, found in self.experts.items() if file in found.travels]


DIFFERS = f"{CONFIG} of the inputs differs in what changes the meaning of weights"


def check_configs(inputs: Inputs, spec: MergeSpec) -> list[str]:
    """Refuses inputs whose configurations make different functions of the same weights: `Mismatch`.

    Who names a configuration (`--config-from`) has decided, and gets a warning. `UsageError` for names of no input.
    """
    tasks = [one.task for one in inputs.experts]
    for flag, name in _said(spec).items():
        if name not in (None, BASE, *tasks):
            raise unknown_name("input", str(name), [*tasks, BASE], where=flag)
    configs = _configs(inputs, needed=spec.config_from is None)
    lines = clashes(configs)
    if lines and spec.config_from is None:
        raise Mismatch(
            f"{DIFFERS}\n" + "\n".join(lines),
            hint="merge fine-tunings of one model; where one of these is wrong, `--config-from NAME` takes another's",
            ways=({"config_from": BASE if BASE in configs else next(iter(configs))},),
        )  # fmt: skip
    return [f"{CONFIG} is {spec.config_from}'s (--config-from), though inputs differ: {line}" for line in lines]


def clashing(inputs: Inputs) -> list[str]:
    """What changes the meaning of weights in the configurations of the inputs' folders, a line for each key.

    `BadFile` where one cannot be read.
    """
    return clashes(_configs(inputs, needed=True))


def _configs(inputs: Inputs, *, needed: bool) -> dict[str, dict[str, Any]]:
    """The configurations of the inputs that have one, by name."""
    found = {name: _config(folder / CONFIG, needed=needed) for name, folder in _places(inputs).items()}
    return {name: config for name, config in found.items() if config is not None}


def _config(file: Path, *, needed: bool) -> dict[str, Any] | None:
    """A folder's config.json; None where there is none. `BadFile` for one that is `needed` and cannot be read."""
    if not needed or not os.path.lexists(file):
        return object_at(file)
    hint = "download it again; `--config-from NAME` takes another input's, the file of the weights as input takes none"
    return read_object(file, hint=hint, constants=True)


def _said(spec: MergeSpec) -> dict[str, str | None]:
    """The options that name somebody."""
    return {"--config-from": spec.config_from, "--tokenizer-from": spec.tokenizer_from}


def _places(inputs: Inputs) -> dict[str, Path]:
    """The folders of the inputs, by name; the base is `base`, whatever an expert is called."""
    places = {one.task: one.folder for one in inputs.experts if one.folder}
    return places | ({BASE: inputs.base.folder} if inputs.base and inputs.base.folder else {})


def travel(inputs: Inputs, spec: MergeSpec, *, code: bool, written: str) -> Travelling:
    """The files of the inputs' folders that go into an output folder, whose weights are of the type `written`.

    Raises `BadFile` where a file cannot be read, `UsageError` where somebody without a folder is to give one's files.
    """
    places = _places(inputs)
    for flag, name in _said(spec).items():
        if name is not None and name not in places:
            hint = f"one of {', '.join(places)}" if places else "name folders as inputs"
            raise UsageError(f"`{name}` was not given as a model's folder", where=flag, hint=hint)
    folders = Folders(
        {one.task: contents(one.folder) for one in inputs.experts if one.folder},
        contents(inputs.base.folder) if inputs.base and inputs.base.folder else None,
    )
    every = [path for found in folders.holders().values() for path in (*found.travels.values(), *found.code.values())]
    result = Travelling(versions=stamps_of(every))
    try:
        _tokenizer(folders, spec.tokenizer_from, result, places)
        _others(folders, spec.config_from, result, code=code)
    except OSError as error:
        where = str(error.filename or "")
        raise BadFile(f"cannot be read: {error.strerror}", where=where, hint="check the disk") from error
    _plain(result, written)
    _say_left(folders, result, code=code)
    return result


def describes_base(base: Source, travels: Travelling) -> bool:
    """Whether the configuration that travels is one of the base's kind of model: it needs all that the base has."""
    own = None if base.folder is None else object_at(base.folder / CONFIG)
    given = travels.files[CONFIG]
    written = object_in(given) if isinstance(given, bytes) else object_at(given)
    if own is None or written is None:
        return False
    return all(own.get(key) == written.get(key) for key in ("model_type", "architectures"))


def of_file(inputs: Inputs) -> Travelling:
    """What is to be said where the output is a file, beside which nothing goes: that tokenizers differ."""
    experts = {one.task: one.folder for one in inputs.experts if one.folder}
    return Travelling(warnings=list(tokenizer_differences(experts)))


# --- the tokenizer ---------------------------------------------------------------------------------------------


def _tokenizer(folders: Folders, chosen: str | None, result: Travelling, places: Mapping[str, Path]) -> None:
    """The files of one tokenizer: never some of one and some of another."""
    experts = {name: digests_of(found.tokenizer) for name, found in folders.experts.items() if found.tokenizer}
    base = digests_of(folders.base.tokenizer) if folders.base is not None else {}
    owner = chosen or _tokenizer_owner(experts, base)
    if owner is None:
        return
    result.files |= folders.of(owner).tokenizer
    own, versions = base if owner == BASE else experts.get(owner, {}), list(experts.values())
    if any(files != versions[0] for files in versions):
        decides = "--tokenizer-from" if chosen else "--tokenizer-from decides"
        result.warnings += [f"{text}; {_whose(owner)} is taken ({decides})" for text in _between(folders, places)]
        result.tokenizer_of = owner
    elif folders.base is not None and owner != BASE and own != base and chosen is None:
        odd = listed(sorted(file for file in {**base, **own} if base.get(file) != own.get(file)), 5)
        differs = f"the base's differs in {odd} (--tokenizer-from {BASE} takes that)" if base else "the base has none"
        result.notes.append(f"the tokenizer is the experts', who share it; {differs}")


def _between(folders: Folders, places: Mapping[str, Path]) -> tuple[str, ...]:
    """The sentences on how the experts' tokenizers differ."""
    return tokenizer_differences({name: places[name] for name in folders.experts})


def _tokenizer_owner(experts: Mapping[str, Mapping[str, str]], base: Mapping[str, str]) -> str | None:
    """Whose tokenizer it is: the base's where it has all that the experts share, else the first expert's."""
    first, *others = experts.values() or ({},)
    if not first:
        return BASE if base else None
    agreed = all(files == first for files in others)
    common = {file: digest for file, digest in first.items() if all(files.get(file) == digest for files in others)}
    fits = base == common if agreed else bool(base) and all(base.get(file) == common[file] for file in common)
    return BASE if fits else next(iter(experts))


def _whose(name: str) -> str:
    return "the base's" if name == BASE else f"{name}'s"


# --- configuration, licence, and whatever else -----------------------------------------------------------------


def _others(folders: Folders, chosen: str | None, result: Travelling, *, code: bool) -> None:
    """Every other file, each by itself; of `chosen` alone, if somebody is."""
    every = {name for found in folders.holders().values() for name in (*found.travels, *(found.code if code else ()))}
    for file in sorted(name for name in every if not is_tokenizer(name)):
        if chosen is not None:
            holder = folders.of(chosen)
            if file in (files := {**holder.travels, **holder.code}):
                result.files[file] = files[file]
        elif not (file in COMBINED and _combined(file, folders, result)):
            _one_file(file, folders, result)


def _one_file(file: str, folders: Folders, result: Travelling) -> None:
    """A file as it is: the experts' where they share it, else the base's, or the first expert's."""
    paths = {name: {**found.travels, **found.code}.get(file) for name, found in folders.holders().items()}
    digests = digests_of({name: path for name, path in paths.items() if path is not None})
    base = None if folders.base is None else digests.pop(BASE, None)
    versions = set(digests.values())
    if len(versions) > 1:
        owner = BASE if base is not None else next(iter(digests))
        differ = f"{file} differs between {listed(digests, 5, plain=True)}"
        result.warnings.append(f"{differ}; {_whose(owner)} is taken (--config-from decides)")
    else:
        owner = BASE if base is not None and versions <= {base} else next(iter(digests))
        if base is not None and owner != BASE:
            result.notes.append(
                f"{file} is the experts', who share it, not the base's (--config-from {BASE} takes that)"
            )
    path = paths[owner]
    assert path is not None  # whoever owns it has it
    result.files[file] = path


def _combined(file: str, folders: Folders, result: Travelling) -> bool:
    """A configuration key by key: what the experts share over what its owner says; False where one is no object."""
    paths = {name: found.travels[file] for name, found in folders.holders().items() if file in found.travels}
    configs = {name: object_at(path) for name, path in paths.items()}
    read = {name: config for name, config in configs.items() if config is not None}
    if len(read) < len(configs):
        return False
    base = read.pop(BASE, None) if folders.base is not None else None
    common = shared(list(read.values()))
    agreed = not (odd := differing(read))
    kin = base is not None and (
        "model_type" not in base or common.get(("model_type",), base["model_type"]) == base["model_type"]
    )
    newer = {} if base is None else {key: value for key, value in common.items() if _other(entries(base), key, value)}
    owner = BASE if kin and not (agreed and newer) else next(iter(read), BASE)
    own = configs[owner] or {}
    if newer:
        keys = listed((".".join(key) for key in sorted(newer)), 5)
        result.notes.append(f"{file}: {keys} as all experts have it, not as the base (--config-from {BASE} takes that)")
    if odd:
        text = f"{file} differs between the experts in {listed(odd, 8)}"
        result.warnings.append(f"{text}; {_whose(owner)} is taken (--config-from decides)")
    changed = own if agreed or owner != BASE else with_values(own, newer)
    result.files[file] = paths[owner] if changed == own else _written(changed)
    return True


def _other(said: Mapping[Any, Any], key: tuple[str, ...], value: object) -> bool:
    return key not in said or said[key] != value


def _written(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()


# --- what the output decides -----------------------------------------------------------------------------------


def _plain(result: Travelling, written: str) -> None:
    """config.json says the type that is written, and nothing of quantisation: merged weights are plain."""
    given = result.files.get(CONFIG)
    if given is None:
        return
    raw = given if isinstance(given, bytes) else read_regular(given)
    if (plain := without_quantisation(raw)) is not None:
        result.files[CONFIG] = raw = plain
        result.notes.append(f"{CONFIG} is written without what it says of quantisation")
    config = object_in(raw)
    if config is not None and (typed := with_dtype(config, written)) != config:
        result.files[CONFIG] = _written(typed)
        before = config.get("dtype", config.get("torch_dtype"))
        said = f", not {before}" if isinstance(before, str) and before != written else ""
        result.notes.append(f"{CONFIG} says {written}, which is written{said}")


def _say_left(folders: Folders, result: Travelling, *, code: bool) -> None:
    """Names what stays behind."""
    holders = folders.holders().values()
    own = {name for found in holders for name in found.code} - result.files.keys()
    if own and not code:
        result.warnings.append(f"code of the model's own stays behind: {listed(sorted(own), 20, plain=True)} "
                               "(--with-code takes it along, unread)")  # fmt: skip
    every = {name for found in holders for name in (*found.travels, *found.left)} - result.files.keys()
    if every:
        result.notes.append(f"not taken along: {listed(sorted(every), 20, plain=True)}")
