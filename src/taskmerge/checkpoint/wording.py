"""Several files in different dialects as one model: all are read in the words of the first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from taskmerge.checkpoint.conversions import Conversions, conversions_for
from taskmerge.checkpoint.dialects import keys_of, pieces_of, shows_vision
from taskmerge.checkpoint.header import TensorSpec
from taskmerge.checkpoint.translation import Translation, Wording, translated

Specs = Mapping[str, TensorSpec]
Config = Mapping[str, Any] | None


@dataclass(frozen=True)
class Reader:
    """How the names of all files of one run are understood: `vision` as in `dialects`, `tables` of transformers."""

    vision: bool = False
    tables: Conversions | None = None

    def wording(self, specs: Specs, config: Config) -> Wording:
        """The pieces of a file's tensors."""
        keys = keys_of(specs, vision=self.vision, further=self.tables.rename if self.tables else None)
        pieces = pieces_of(specs, keys, config)
        if self.tables is not None:
            for name, (first, *more) in pieces.items():
                pieces[name] = (not more and self.tables.apart(first.key, first.shape)) or pieces[name]
        return Wording(specs, pieces)


def translations(files: Sequence[tuple[Specs, Config]]) -> list[Translation | None]:
    """For every file but the first how it is read in the words of those before it; None for one that stays as it is.

    Files of which one has all names of the other need no translation. What no file before has is called as the first
    file that has it says. The tables of transformers are asked only where names on both sides are left.
    """
    (first, known), *others = files
    if all(covers(first, specs) for specs, _ in others):
        return [None] * len(others)
    known = known or next((config for _, config in others if config), None)
    others = [(specs, config or known) for specs, config in others]
    reader = _reader(first, known, others)
    words, found = reader.wording(first, known), list[Translation | None]()
    for specs, config in others:
        own = reader.wording(specs, config)
        translation = translated(own, words)
        found.append(translation if translation.changed else None)
        if translation.changed:
            own = reader.wording(translation.specs(specs), config)
        words = words.with_also(own.specs, own.pieces)
    return found


def covers(first: Specs, second: Specs) -> bool:
    """Whether one of two files has all names of the other."""
    return first.keys() <= second.keys() or second.keys() <= first.keys()


def _reader(first: Specs, known: Config, others: Sequence[tuple[Specs, Config]]) -> Reader:
    """With tables, if the files differ by more than the dialects known here, and the tables make that less."""
    reader = Reader(shows_vision(name for specs in (first, *(specs for specs, _ in others)) for name in specs))
    strangers = _strangers(reader, first, known, others)
    if not strangers:
        return reader
    tables = next(
        (found for config in (known, *(own for _, own in others)) if (found := conversions_for(config))), None
    )
    more = replace(reader, tables=tables)
    return more if tables is not None and _strangers(more, first, known, others) < strangers else reader


def _strangers(reader: Reader, first: Specs, known: Config, others: Sequence[tuple[Specs, Config]]) -> int:
    """How many pieces the first file or another lacks, of pairs in which both lack some."""
    words, count = _keys(reader.wording(first, known)), 0
    for specs, config in others:
        own = _keys(reader.wording(specs, config))
        count += len(words ^ own) if words - own and own - words else 0
    return count


def _keys(words: Wording) -> set[str]:
    return {piece.key for pieces in words.pieces.values() for piece in pieces}
