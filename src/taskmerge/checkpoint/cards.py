"""What the model card of a folder says of itself: its licence, the models that it comes from; and its name on a hub.
The cards of merges say in their last line what they hold, for `verify`."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskmerge.documents import open_regular
from taskmerge.errors import TaskmergeError
from taskmerge.specs.document import parse_document

CARD = "README.md"
LARGEST = 1 << 16  # bytes of a card that are looked at: what is said of the model stands at its start
ID = re.compile(r"[\w.-]+/[\w.-]+")
LICENCE = ("license", "license_name", "license_link")


@dataclass(frozen=True)
class Card:
    """`licence` are the keys of a licence and their values, empty where none is said; `models` the ids of the models
    that this one comes from; `id` is its own, where the folder lies in the cache of a hub."""

    licence: dict[str, str]
    models: tuple[str, ...]
    id: str | None


def read_card(folder: Path) -> Card:
    """The card of a model's folder; an empty one where there is none that can be read."""
    front = _front(folder / CARD)
    licence = {key: value for key in LICENCE if isinstance(value := front.get(key), str)}
    given = front.get("base_model")
    models = [given] if isinstance(given, str) else given if isinstance(given, list) else []
    ids = tuple(one for one in models if isinstance(one, str) and ID.fullmatch(one))
    return Card(licence if "license" in licence else {}, ids, _cached(folder))


def sealed_card(text: str) -> bytes:
    """A card, and in its last line the digest of all lines above."""
    above = text.encode()
    return above + f"<!-- taskmerge: sha256:{hashlib.sha256(above).hexdigest()} of all lines above -->\n".encode()


def is_sealed(card: bytes) -> bool:
    """Whether a card is, byte for byte, one that `sealed_card` made."""
    above = card[: card.rfind(b"\n", 0, -1) + 1]
    return sealed_card(above.decode("utf-8", "replace")) == card


def _front(path: Path) -> dict[str, Any]:
    """The keys between the first two lines of dashes."""
    try:
        with open(open_regular(path), "rb") as file:
            text = file.read(LARGEST).decode("utf-8", "replace")
        found = re.match(r"\ufeff?---\r?\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
        return parse_document(found[1], str(path), "model card", "`license: apache-2.0`").values if found else {}
    except (OSError, TaskmergeError):
        return {}


def _cached(folder: Path) -> str | None:
    """The id of a folder in the hub's cache: `models--ORG--NAME/snapshots/COMMIT`."""
    name = folder.absolute().parent.parent.name
    parts = name.removeprefix("models--").split("--")
    return "/".join(parts) if name.startswith("models--") and len(parts) == 2 else None
