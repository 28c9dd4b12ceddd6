"""`FROM* = TO*`: how a user says that tensors go by other names."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from taskmerge.errors import UsageError

SOME = 256  # names that stand for all of them where renamings are tried out
EXAMPLE = "such as --map 'model.encoder.* = encoder.*'"


@dataclass(frozen=True)
class Renaming:
    """Whole names that match `source` become `target`; each `*` stands for any text, the same in both."""

    source: str
    target: str

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile("(.*)".join(map(re.escape, self.source.split("*"))), re.DOTALL)

    def apply(self, name: str) -> str | None:
        """The new name, or None for a name that does not match."""
        match = self._pattern.fullmatch(name)
        if match is None:
            return None
        first, *rest = self.target.split("*")
        return first + "".join(held + text for held, text in zip(match.groups(), rest, strict=True))


def parse_renaming(text: str, where: str = "--map") -> Renaming:
    """The renaming that a text says; `UsageError` where it says none."""
    source, equals, target = (part.strip() for part in text.partition("="))
    if not equals or not source or not target or "=" in target:
        raise UsageError(f"`{text}` is no FROM = TO", where=where, hint=EXAMPLE)
    if source.count("*") != target.count("*"):
        what = f"`{text}` has {source.count('*')} `*` on the left and {target.count('*')} on the right"
        raise UsageError(what, where=where, hint=f"each `*` of FROM stands for the same text in TO, {EXAMPLE}")
    return Renaming(source, target)


def renamed(name: str, renamings: Iterable[Renaming]) -> str:
    """A name as the renamings say, one after the other; itself where none matches it."""
    for one in renamings:
        new = one.apply(name)
        name = name if new is None else new
    return name


Shapes = Mapping[str, tuple[int, ...]]


def helpful(lacking: Sequence[str], there: Sequence[str], shapes: Shapes, most: int = 4) -> list[str]:
    """Renamings, as `--map` takes them, that turn names which others lack into those that they have instead, each into
    one of the same shape.

    Found from the text of the names alone: two names that end (and begin) alike show what differs between them. Those
    that mend most names come first; nothing where none mends more than one in ten.
    """
    found: list[str] = []
    wanted, left = set(there), list(lacking)
    while left and len(found) < most:
        some = _spread(left)
        mends = {text: len(_mended(text, some, wanted, shapes)) for text in sorted(_candidates(some, sorted(wanted)))}
        best = max(mends, key=lambda text: mends[text], default="")
        mended = _mended(best, left, wanted, shapes) if best else {}
        if not mended or 10 * len(mended) < len(lacking):
            break
        found.append(best)
        wanted -= set(mended.values())
        left = [name for name in left if name not in mended]
    return found


def _spread(names: Sequence[str]) -> list[str]:
    """A few hundred of the names, from front to back."""
    return list(names[:: max(1, len(names) // SOME)])


def _mended(text: str, names: Iterable[str], wanted: set[str], shapes: Shapes) -> dict[str, str]:
    """name -> new name, of those that a renaming turns into wanted ones; nothing where some get another shape."""
    renaming = parse_renaming(text)
    found = {name: new for name in names if (new := renaming.apply(name)) is not None and new in wanted}
    return found if all(shapes[name] == shapes[new] for name, new in found.items()) else {}


def _candidates(lacking: Sequence[str], there: Sequence[str]) -> set[str]:
    """What may turn some of the names into one that ends, or begins, like it, as long alike as there is."""
    alike: dict[tuple[bool, tuple[str, ...]], list[list[str]]] = {}
    for name in there:
        segments = name.split(".")
        for count in range(1, len(segments) + 1):
            for side, part in ((True, segments[-count:]), (False, segments[:count])):
                alike.setdefault((side, tuple(part)), []).append(segments)
    found = set()
    for name in lacking[:: max(1, len(lacking) // 32)]:
        segments = name.split(".")
        for side in (True, False):
            parts = (segments[-count:] if side else segments[:count] for count in range(len(segments), 0, -1))
            nearest = next((alike[side, tuple(part)] for part in parts if (side, tuple(part)) in alike), [])
            found |= {_difference(segments, other) for other in nearest[:4]}
    return {text for text in found if not text.startswith("* = ") and not re.search(r"(^|[.\s])\d+([.\s]|$)", text)}


def _difference(segments: list[str], other: list[str]) -> str:
    """The renaming between two names: what they share at both ends is `*`, numbers among it."""
    end = _shared(segments[::-1], other[::-1])
    start = _shared(segments[: len(segments) - end], other[: len(other) - end])
    if end and (start + end == len(segments) or (start and start + end == len(other))):
        end -= 1  # something is put in, or taken out in between: the segment after it says where
    front, back = ["*"] if start else [], ["*"] if end else []
    sides = (".".join([*front, *side[start : len(side) - end], *back]) for side in (segments, other))
    return " = ".join(sides)


def _shared(first: Sequence[str], second: Sequence[str]) -> int:
    """How many segments two names begin with alike."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((count for count, (one, other) in pairs if one != other), min(len(first), len(second)))
