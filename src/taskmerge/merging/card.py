"""What travels with a merged folder: configuration and tokenizer of the base or first expert, and a model card."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from taskmerge.checkpoint.quantised import without_quantisation
from taskmerge.checkpoint.sidecars import tokenizer_differences, travelling
from taskmerge.errors import BadFile
from taskmerge.experts.inputs import Inputs
from taskmerge.experts.sources import Source

CONFIG = "config.json"
LIBRARIES = {"open_clip_config.json": "open_clip", CONFIG: "transformers"}  # by the file that their models carry


def companions_of(inputs: Inputs) -> dict[str, Path]:
    """Configuration and tokenizer of the base, or of the first expert that came from a model's folder."""
    sources = (*([inputs.base] if inputs.base else []), *inputs.experts)
    folder = next((source.folder for source in sources if source.folder), None)
    return travelling(folder) if folder else {}


def sidecars(inputs: Inputs, recipe: Mapping[str, object]) -> dict[str, bytes | Path]:
    """Files for an output folder: what travels, byte for byte, and README.md."""
    files = companions_of(inputs)
    library = next((name for file, name in LIBRARIES.items() if file in files), None)
    plain = plain_config(files)
    written: dict[str, bytes | Path] = {**files, **({} if plain is None else {CONFIG: plain})}
    return {**written, "README.md": card(inputs.experts, inputs.base, recipe, library).encode()}


def plain_config(files: Mapping[str, Path]) -> bytes | None:
    """The configuration that travels, where it calls the weights quantised, without that: merged weights are plain."""
    try:
        return without_quantisation(files[CONFIG].read_bytes()) if CONFIG in files else None
    except OSError as error:
        raise BadFile(f"cannot be read: {error.strerror}", where=str(files[CONFIG]), hint="check the disk") from error


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
