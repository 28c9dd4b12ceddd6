"""The model card of a merged folder: what it was merged from and how, its licence, and the keys that hubs read."""

from collections.abc import Container, Mapping, Sequence
from pathlib import Path

import yaml

from taskmerge.checkpoint.cards import Card, read_card
from taskmerge.checkpoint.sidecars import CONFIG
from taskmerge.experts.inputs import Inputs
from taskmerge.experts.sources import Source

LIBRARIES = {"open_clip_config.json": "open_clip", CONFIG: "transformers"}  # by the file that their models carry


def card(inputs: Inputs, recipe: Mapping[str, object], files: Container[str]) -> str:
    """The model card, with the keys that model hubs read; `files` are the names of what lies beside it."""
    names = {source.task: _name(source) for source in inputs.experts}
    lines = ["---", yaml.safe_dump(_front(inputs, files), sort_keys=True).strip(), "---", "", "# Merged model", ""]
    lines += [f"Merged by taskmerge with `{recipe['method']}` from {len(names)} fine-tunings of one base model:", ""]
    lines += [f"- {task}: `{name}`" for task, name in names.items()]
    lines += [""] + ([f"Base: `{_name(inputs.base)}`", ""] if inputs.base else [])
    return "\n".join(
        [*lines, "Recipe:", "", "```yaml", yaml.safe_dump(dict(recipe), sort_keys=True).strip(), "```", ""]
    )


def _front(inputs: Inputs, files: Container[str]) -> dict[str, object]:
    """`base_model` (the experts, and the base where a hub's name of it is known), relation, licence, library, tags."""
    cards = [_card(source) for source in inputs.experts]
    own = None if inputs.base is None else _card(inputs.base)
    bases = [own.id] if own is not None and own.id else [model for card in cards for model in card.models]
    models = [*map(_name, inputs.experts), *bases]
    front: dict[str, object] = {"base_model": list(dict.fromkeys(models)), "base_model_relation": "merge"}
    front |= {"tags": ["merge", "taskmerge"]}
    library = next((name for file, name in LIBRARIES.items() if file in files), None)
    return front | common_licence(cards, own) | ({"library_name": library} if library else {})


def common_licence(experts: Sequence[Card], base: Card | None) -> dict[str, str]:
    """The licence that all experts state, and the base if it states one; nothing where they differ or one is silent."""
    stated = [card.licence for card in experts] + ([base.licence] if base is not None and base.licence else [])
    return stated[0] if all(licence == stated[0] for licence in stated) else {}


def licence_warnings(inputs: Inputs) -> list[str]:
    """A warning where inputs state several licences: the card then has none."""
    said = {source.task: _card(source).licence.get("license") for source in inputs.sources}
    stated = {task: licence for task, licence in said.items() if licence is not None}
    if len(set(stated.values())) < 2:
        return []
    each = ", ".join(f"{licence} of {task}" for task, licence in stated.items())
    return [f"licences differ, and the output's card names none: {each}"]


def _card(source: Source) -> Card:
    return Card({}, (), None) if source.home is None else read_card(source.home)


def _name(source: Source) -> str:
    """An input's id on a hub where it is known, else the name of its file or folder."""
    return (read_card(source.folder).id if source.folder else None) or Path(source.where).name
