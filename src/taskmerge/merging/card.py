"""What travels with a merged folder: configuration and tokenizer of the base or first expert, and a model card."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from taskmerge.checkpoint.sidecars import tokenizer_differences, travelling
from taskmerge.experts.sources import Source

LIBRARIES = {"open_clip_config.json": "open_clip", "config.json": "transformers"}  # by the file that their models carry


def sidecars(experts: Sequence[Source], base: Source | None, recipe: Mapping[str, object]) -> dict[str, bytes | Path]:
    """Files for an output folder: byte for byte from the base (or the first expert that is a folder), and README.md."""
    folders = [source.folder for source in (*([base] if base else []), *experts) if source.folder]
    files: dict[str, bytes | Path] = dict(travelling(folders[0])) if folders else {}
    library = next((name for file, name in LIBRARIES.items() if file in files), None)
    return {**files, "README.md": card(experts, base, recipe, library).encode()}


def tokenizer_warnings(experts: Sequence[Source]) -> tuple[str, ...]:
    """A sentence for every tokenizer file in which the experts differ."""
    return tokenizer_differences({expert.task: expert.folder for expert in experts if expert.folder})


def card(experts: Sequence[Source], base: Source | None, recipe: Mapping[str, object], library: str | None) -> str:
    """The model card, with the keys that model hubs read (`base_model`, `library_name` where it is known, `tags`)."""
    names = [Path(source.where).name for source in experts]
    front: dict[str, object] = {"base_model": names, "tags": ["merge", "taskmerge"]}
    front |= {"library_name": library} if library else {}
    lines = ["---", yaml.safe_dump(front, sort_keys=True).strip(), "---", "", "# Merged model", ""]
    lines += [f"Merged by taskmerge with `{recipe['method']}` from {len(names)} fine-tunings of one base model:", ""]
    lines += [f"- {source.task}: `{name}`" for source, name in zip(experts, names, strict=True)]
    lines += [""] + ([f"Base: `{Path(base.where).name}`", ""] if base else [])
    return "\n".join(
        [*lines, "Recipe:", "", "```yaml", yaml.safe_dump(dict(recipe), sort_keys=True).strip(), "```", ""]
    )
