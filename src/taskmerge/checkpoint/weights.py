"""Which files hold the weights of a model: a file, an index, or a folder in Hugging Face layout."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from taskmerge.checkpoint.ahead import Stamp, stamp
from taskmerge.checkpoint.training import candidates, state_in, state_of
from taskmerge.documents import read_json
from taskmerge.errors import BadFile, listed

MAX_INDEX = 100_000_000
"""Bytes of an index: a line a tensor, as a header has an entry a tensor."""
SAFE_ENDING = ".safetensors"
SAFE_INDEX_ENDING = ".safetensors.index.json"
PICKLE_ENDINGS = (".bin", ".pt", ".pth", ".ckpt")
PICKLE_INDEX_ENDING = ".bin.index.json"
GENERATION = 8
"""Hex digits that tell one generation of shards from another."""
SHARD = rf"(-g[0-9a-f]{{{GENERATION}}})?-\d{{5}}-of-\d{{5}}"
"""What stands between a shard's stem and its ending: shards that taskmerge writes carry a generation."""
MODEL_STEMS = ("model", "open_clip_model", "pytorch_model", "open_clip_pytorch_model", "adapter_model")
"""File stems that say nothing about the model: its folder's name does."""

_PREFERRED = (
    "model.safetensors",
    "model.safetensors.index.json",
    "open_clip_model.safetensors",
    f"*{SAFE_INDEX_ENDING}",
    f"*{SAFE_ENDING}",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_pytorch_model.bin",
    *(f"*{ending}" for ending in PICKLE_ENDINGS),
)


@dataclass(frozen=True)
class WeightFiles:
    """The files of one model.

    `folder` is where config and tokenizer live, if a folder or an index was given. `weight_map` is the index's
    tensor -> file, None without an index; `index_stamp` its version, taken before it was read. `strays` are weight
    files of the folder that are not part of the model.
    """

    files: tuple[Path, ...]
    pickled: bool
    folder: Path | None = None
    index: Path | None = None
    weight_map: Mapping[str, Path] | None = None
    strays: tuple[Path, ...] = ()
    index_stamp: Stamp | None = None

    @property
    def home(self) -> Path | None:
        """The folder, or that of a lone file, which may be one of a folder's shards; None of what is in memory."""
        return self.folder or (self.files[0].parent if self.files else None)


def find_weights(path: Path) -> WeightFiles:
    """The weight files that `path` stands for; a folder without weights or a bad index is a `BadFile`."""
    if os.path.isdir(path):  # unlike Path.is_dir, false for whatever cannot be looked at
        return _in_folder(path)
    if path.name.endswith((SAFE_INDEX_ENDING, PICKLE_INDEX_ENDING)):
        return _by_index(path)
    if (state := state_of(path)) is not None and os.path.lexists(path):
        raise state.at(path)
    return WeightFiles((path,), pickled=path.name.endswith(PICKLE_ENDINGS))


def index_at(path: Path) -> dict[Path, Stamp | None]:
    """The indexes of the model that `path` stands for, each in its version."""
    if not os.path.isdir(path):
        return {path: stamp(path)} if path.name.endswith((SAFE_INDEX_ENDING, PICKLE_INDEX_ENDING)) else {}
    return {path / name: stamp(path / name) for name in _visible(path) if name.endswith(".index.json")}


def default_name(path: Path) -> str:
    """The task's name when none is given: the file's stem, or the folder's name for folders and `model.*`."""
    absolute = path.absolute()
    if os.path.isdir(path):
        return absolute.resolve().name or "model"
    stem = _stem(path.name)
    return (absolute.parent.resolve().name or stem) if stem in MODEL_STEMS else stem


def _stem(name: str) -> str:
    for ending in (SAFE_INDEX_ENDING, PICKLE_INDEX_ENDING):
        if name.endswith(ending):
            return name.removesuffix(ending)
    return PurePosixPath(name).stem


def _in_folder(folder: Path) -> WeightFiles:
    """The first of the usual files of a model folder; a pattern counts only if one file alone matches it."""
    names = candidates(_visible(folder))
    for pattern in _PREFERRED:
        found = [folder / name for name in names if fnmatchcase(name, pattern)]
        if found and state_of(found[0]) is not None:
            break
        if len(found) > 1 and not pattern.endswith(".index.json"):
            shown = listed((file.name for file in found), 5, plain=True)
            what = f"holds {len(found)} weight files and no index that joins them: {shown}"
            raise BadFile(what, where=str(folder), hint="name one of them, or download the index too")
        if len(found) == 1 and found[0].name.endswith(".index.json"):
            return _by_index(found[0])
        if len(found) == 1:
            _refuse_lone_shard(found[0])
            pickled = found[0].name.endswith(PICKLE_ENDINGS)
            return WeightFiles((found[0],), pickled, folder, strays=_strays(folder, {found[0]}, pickled))
    if (state := state_in(folder)) is not None:
        raise state.at(folder)
    raise BadFile(
        f"folder without weights (looked for {', '.join(_PREFERRED)})",
        where=str(folder),
        hint="name the weight file itself, or download the weights too",
    )


def _refuse_lone_shard(file: Path) -> None:
    shard = re.search(r"-(\d{5})-of-(\d{5})\.", file.name)
    if shard and int(shard[2]) > 1:
        what = f"is one of {int(shard[2])} shards, and the folder has no index"
        raise BadFile(what, where=str(file), hint="download the index and the other shards")


def _by_index(index: Path) -> WeightFiles:
    folder, version = index.parent, stamp(index)
    named = _weight_map(index)
    paths = {shard: folder / shard for shard in set(named.values())}
    weight_map, files = {name: paths[shard] for name, shard in named.items()}, tuple(sorted(set(paths.values())))
    missing = [file.name for file in files if not os.path.isfile(file)]
    if missing:
        what = f"names {len(missing)} of {len(files)} shards that do not exist: {listed(missing, 5, plain=True)}"
        raise BadFile(what, where=str(index), hint="download the missing shards")
    pickled = index.name.endswith(PICKLE_INDEX_ENDING)
    return WeightFiles(files, pickled, folder, index, weight_map, _strays(folder, set(files), pickled), version)


def _strays(folder: Path, used: set[Path], pickled: bool) -> tuple[Path, ...]:
    endings = PICKLE_ENDINGS if pickled else (SAFE_ENDING,)
    return tuple(folder / name for name in _visible(folder) if name.endswith(endings) and folder / name not in used)


def _visible(folder: Path) -> list[str]:
    """The names in a folder, sorted, without hidden ones."""
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        reason = f"cannot be listed: {error.strerror}"
        raise BadFile(reason, where=str(folder), hint="check its permissions") from error


def _weight_map(index: Path) -> dict[str, str]:
    """The index's tensor -> shard name, each a relative path that stays in the folder."""
    document = read_json(index, hint="download the index again", largest=MAX_INDEX)
    weight_map = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise BadFile("has no `weight_map` from tensor to file", where=str(index), hint="download the index again")
    odd = {shard for shard in set(weight_map.values()) if escapes(shard)}
    for name, shard in weight_map.items() if odd else ():
        if shard in odd:
            what = f"shard {shard!r} is not a file inside the index's folder"
            raise BadFile(what, where=f"{index}: `{name}`", hint="don't use this index: get it from its publisher")
    return weight_map


def escapes(shard: str) -> bool:
    """Whether a name is none of a file inside a folder."""
    # Lexical on purpose: the cache of the hub keeps shards as links out of the folder.
    path = PurePosixPath(shard)
    return path.is_absolute() or not path.parts or ".." in path.parts or "\\" in shard or "\0" in shard
