"""The files of a model folder that travel with its weights, and whether the experts' tokenizers are the same."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

_TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tiktoken.model",
    "chat_template.jinja",
    "chat_template.json",
)
_CONFIG = (
    "config.json",
    "generation_config.json",
    "open_clip_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "image_processor_config.json",
    "video_preprocessor_config.json",
)


def travelling(folder: Path) -> dict[str, Path]:
    """Configuration and tokenizer files of a model folder, by name; they are copied byte for byte."""
    return {name: folder / name for name in sorted((*_CONFIG, *_TOKENIZER)) if (folder / name).is_file()}


def tokenizer_differences(folders: Mapping[str, Path]) -> tuple[str, ...]:
    """One sentence for each tokenizer file whose bytes differ between models (name -> folder), or that some lack.

    Models without any tokenizer file are left out: their tokenizer is elsewhere.
    """
    digests = {name: _tokenizer_digests(folder) for name, folder in sorted(folders.items())}
    digests = {name: files for name, files in digests.items() if files}
    differences = []
    for file in _TOKENIZER:
        versions: dict[str | None, list[str]] = {}
        for name, files in digests.items():
            versions.setdefault(files.get(file), []).append(name)
        if len(versions) > 1:
            absent = versions.pop(None, [])
            parts = [", ".join(names) for names in versions.values()]
            text = f"{file} differs: {' | '.join(parts)}" if len(parts) > 1 else f"{file} is only in {parts[0]}"
            differences.append(f"{text}; absent in {', '.join(absent)}" if absent and len(parts) > 1 else text)
    return tuple(differences)


def _tokenizer_digests(folder: Path) -> dict[str, str]:
    present = (folder / name for name in _TOKENIZER)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in present if path.is_file()}
