"""The files of a model folder that travel with its weights, and whether the experts' tokenizers are the same."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from taskmerge.documents import read_json
from taskmerge.errors import BadFile

CONFIG = "config.json"
TEMPLATES = "additional_chat_templates"
MODULES = "modules.json"
"""Which modules a model of sentence-transformers has, and in which folders."""
CARD = "readme.md"

_TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*.json",
    "vocab*.txt",
    "vocab.bpe",
    "merges.txt",
    "bpe.codes",
    "tokenizer.model*",
    "*.model",
    "*.spm",
    "*.tiktoken",
    "tekken.json",
    "chat_template*.jinja",
    "chat_template.json",
    f"{TEMPLATES}/*.jinja",
)
_CONFIG = (CONFIG, "*config*.json", "processor*.json", "preprocessor*.json", MODULES, "params.json", "id2label.json")
_LICENCE = ("licen[cs]e*", "notice*", "copying*", "use_policy*")
_WEIGHTS = (
    "*.safetensors", "*.index.json", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.ot", "*.onnx",
    "*.gguf", "*.npz",
)  # fmt: skip
_STAY = ("adapter_config.json", "*quant*config*.json", "*compression_config*.json")
"""Configurations that are not true of plain, whole weights."""


@dataclass(frozen=True)
class Contents:
    """What lies in a model folder beside its weights, name -> path: what `travels`, the model's own `code`, and the
    names of what is `left`: folders end in a slash. A README and hidden files are none of these."""

    travels: Mapping[str, Path]
    code: Mapping[str, Path]
    left: tuple[str, ...]

    @property
    def tokenizer(self) -> dict[str, Path]:
        """The files of the tokenizer, its chat templates among them."""
        return {name: path for name, path in self.travels.items() if is_tokenizer(name)}


def contents(folder: Path) -> Contents:
    """The files of a model folder that are no weights, by what becomes of them; nothing where it cannot be listed."""
    travels: dict[str, Path] = {}
    code: dict[str, Path] = {}
    left: list[str] = []
    inner = {TEMPLATES, *_modules(folder)}
    for name in _names(folder):
        path = folder / name
        if path.is_dir():
            found = dict(_inside(folder, name)) if name in inner else {}
            travels |= found
            left += [] if found else [f"{name}/"]
        elif not path.is_file() or _like(name, _STAY):
            left.append(name)
        elif name.endswith(".py"):
            code[name] = path
        elif is_tokenizer(name) or (_like(name, (*_CONFIG, *_LICENCE)) and not _like(name, _WEIGHTS)):
            travels[name] = path
        elif not _like(name, _WEIGHTS) and name.lower() != CARD:
            left.append(name)
    return Contents(travels, code, tuple(left))


def travelling(folder: Path) -> dict[str, Path]:
    """Configuration, tokenizer and licence of a model folder, by name; what lies deeper has slashes in its name."""
    return dict(contents(folder).travels)


def belongs(name: str) -> bool:
    """Whether a file of this name beside weights is one of the model's, by which loaders go: of its tokenizer, or a
    configuration."""
    return is_tokenizer(name) or _like(name, _CONFIG)


def is_tokenizer(name: str) -> bool:
    """Whether a file belongs to a tokenizer."""
    return _like(name, _TOKENIZER)


def _like(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name.lower(), pattern) for pattern in patterns)


def _names(folder: Path) -> list[str]:
    """What a folder holds, sorted, without what is hidden; nothing where it cannot be listed."""
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError:
        return []


def _modules(folder: Path) -> set[str]:
    """The folders that modules.json names; what points elsewhere is none of them."""
    try:
        listed = read_json(folder / MODULES)
    except BadFile:
        return set()
    named = [entry.get("path") for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
    return {name for name in named if isinstance(name, str) and len(PurePosixPath(name).parts) == 1 and name != ".."}


def _inside(folder: Path, name: str) -> Iterator[tuple[str, Path]]:
    """The files of a module's folder, its weights too: they are not merged, and without them there is no module."""
    for file in _names(folder / name):
        path = folder / name / file
        if path.is_file() and (file.endswith(".safetensors") or not _like(file, (*_WEIGHTS, "*.py"))):
            yield f"{name}/{file}", path


# --- tokenizers ------------------------------------------------------------------------------------------------


def tokenizer_differences(folders: Mapping[str, Path]) -> tuple[str, ...]:
    """One sentence for each tokenizer file whose bytes differ between models (name -> folder), or that some lack.

    Models without any tokenizer file are left out: their tokenizer is elsewhere.
    """
    digests = {name: digests_of(contents(folder).tokenizer) for name, folder in sorted(folders.items())}
    digests = {name: files for name, files in digests.items() if files}
    differences = []
    every = {file for files in digests.values() for file in files}
    for file in sorted(every, key=lambda name: (name != _TOKENIZER[0], name)):
        versions: dict[str | None, list[str]] = {}
        for name, files in digests.items():
            versions.setdefault(files.get(file), []).append(name)
        if len(versions) > 1:
            absent = versions.pop(None, [])
            parts = [", ".join(names) for names in versions.values()]
            text = f"{file} differs: {' | '.join(parts)}" if len(parts) > 1 else f"{file} is only in {parts[0]}"
            differences.append(f"{text}; absent in {', '.join(absent)}" if absent and len(parts) > 1 else text)
    return tuple(differences)


def digests_of(files: Mapping[str, Path]) -> dict[str, str]:
    """The SHA-256 of files, by name."""
    digests = {}
    for name, path in files.items():
        with path.open("rb") as file:
            digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests
