"""Strict YAML: one mapping with the place of every key, no repeated key, and values as they were written."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from taskmerge.documents import DEEPEST, DIGITS, LARGEST_NUMBER, check_text, cycles_left, read_regular
from taskmerge.errors import UsageError

Places = Mapping[str, str]
"""Where keys stand, as file:line:column; nested keys and items of lists as `options.rank`, `tasks.mnist.classes.3`."""

LARGEST = 16 << 20
"""Bytes of a file."""
MOST_REPEATED = 100_000
"""Values that aliases may stand for all in all: ten lines of them would make billions."""

_TEXT, _INTEGER = "tag:yaml.org,2002:str", "tag:yaml.org,2002:int"
_SCALARS = tuple(f"tag:yaml.org,2002:{name}" for name in ("int", "float", "bool", "null", "timestamp", "binary"))
_COLLECTIONS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")
_COMPOSER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's reads long lists ten times faster


@dataclass(frozen=True, slots=True)
class Document:
    """What a file says: plain values, the place of each, and the spelling of those that YAML reads as no text."""

    values: dict[str, Any]
    places: Places = field(default_factory=dict)
    spelled: Mapping[str, str] = field(default_factory=dict)


def read_document(path: Path, what: str, hint: str, verbatim: Collection[str] = ()) -> Document:
    """The one mapping that a file holds. `what` names the kind of file, `hint` how a good one begins.

    Under the top-level keys in `verbatim`, numbers stay as they were written (1.0 is not 1). Raises BadFile for a
    file that cannot be read, UsageError with file:line:column for what is no YAML, a repeated key, an unquoted
    boolean as a key, and values beyond all range, depth or number.
    """
    return parse_document(_text_of(path, what), str(path), what, hint, verbatim)


def parse_document(text: str, where: str, what: str, hint: str, verbatim: Collection[str] = ()) -> Document:
    """The one mapping that a text holds; as `read_document` of a file."""
    with cycles_left():
        node = _composed(text, where, hint)
        if not isinstance(node, yaml.MappingNode):
            raise UsageError(f"a {what} is a mapping of keys to values", where=where, hint=hint)
        reader = _Reader(where, {}, {}, frozenset(verbatim))
        return Document(reader.mapping(node, ""), reader.places, reader.spelled)


def read_value(text: str, where: str) -> Any:
    """The one value that a text of the command line means to YAML. Raises UsageError for a list, a map, or no YAML."""
    node = _composed(text, where, "write one plain value")
    if node is None:
        return None
    if not isinstance(node, yaml.ScalarNode):
        raise UsageError("this is no single value", where=where, hint="write one plain value")
    return _Reader(where, {}, {}, frozenset()).plain(node)


def _text_of(path: Path, what: str) -> str:
    try:
        return read_regular(path, LARGEST).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"this is no YAML: no UTF-8 at byte {error.start}", where=str(path), hint=f"is it a {what}?"
        ) from None


def _composed(text: str, where: str, hint: str) -> yaml.Node | None:
    """A text as nodes that know their places; None where it is empty."""
    try:
        check_text(text)
        return yaml.compose(text, Loader=_COMPOSER)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}:{mark.line + 1}:{mark.column + 1}" if mark else where
        why = "it is nested too deeply" if isinstance(error, RecursionError) else getattr(error, "problem", error)
        raise UsageError(f"this is no YAML: {why}", where=place, hint=hint) from None


@dataclass
class _Reader:
    """Turns nodes into plain values and notes on the way where they stand.

    `inside` are the lists and maps around the one that is read, `met` all so far, `repeated` counts what came again.
    """

    path: str
    places: dict[str, str]
    spelled: dict[str, str]
    verbatim: frozenset[str]
    inside: list[yaml.Node] = field(default_factory=list)
    met: set[int] = field(default_factory=set)
    repeated: int = 0
    loader: yaml.SafeLoader = field(default_factory=partial(yaml.SafeLoader, ""))

    def mapping(self, node: yaml.MappingNode, above: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        with self._entered(node):
            for key_node, value_node in node.value:
                key = self._key(key_node)
                if key in found:
                    raise UsageError(
                        f"the key `{key}` stands twice", where=self._place(key_node), hint="keep one of them"
                    )
                self.places[above + key] = self._place(key_node)
                found[key] = self._value(value_node, above + key)
        return found

    def _value(self, node: yaml.Node, name: str) -> Any:
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, f"{name}.")
        if isinstance(node, yaml.SequenceNode):
            with self._entered(node):
                return [self._item(item, f"{name}.{index}") for index, item in enumerate(node.value)]
        if "." in name and name.partition(".")[0] in self.verbatim and not node.tag.endswith(":null"):
            return self._text(node)
        value = self.plain(node)
        if not isinstance(value, str):
            self.spelled[name] = node.value
        return value

    def _item(self, node: yaml.Node, name: str) -> Any:
        self.places[name] = self._place(node)
        return self._value(node, name)

    def _key(self, node: yaml.Node) -> str:
        """A key as it was written; `no:` would be a boolean."""
        if not isinstance(node, yaml.ScalarNode):
            raise self._unreadable(node, "a key is a text, no list or map")
        if isinstance(self.plain(node), bool):
            raise UsageError(
                f"the key {node.value} is a truth value to YAML", where=self._place(node), hint=f"write '{node.value}'"
            )
        return self._text(node)

    def plain(self, node: yaml.Node) -> Any:
        """A node's value, as the safe loader builds it."""
        if node.tag == _TEXT:
            return self._text(node)
        if node.tag not in _SCALARS:
            raise self._unreadable(node, f"the tag {node.tag} is not known")
        if node.tag == _INTEGER and len(node.value) > DIGITS:
            raise self._unreadable(node, "the number is beyond all range")
        try:
            value = self.loader.construct_object(node)
        except (yaml.YAMLError, ValueError) as error:
            raise self._unreadable(node, getattr(error, "problem", error)) from None
        except (LookupError, TypeError, AttributeError, OverflowError):  # what a tag calls a number or a date is none
            raise self._unreadable(node, f"it is no {node.tag.rpartition(':')[2]}") from None
        if isinstance(value, int | float) and not abs(value) < LARGEST_NUMBER:  # NaN too
            raise self._unreadable(node, "the number is beyond all range")
        return value

    def _text(self, node: yaml.Node) -> str:
        """What is written. YAML can say half a character, which no file can hold."""
        text: str = node.value
        try:
            check_text(text)
        except ValueError as error:
            raise self._unreadable(node, error) from None
        return text

    @contextmanager
    def _entered(self, node: yaml.CollectionNode) -> Iterator[None]:
        """Refuses a tag of another kind of thing, an alias to what holds it, too many aliases, and too many levels."""
        if node.tag not in _COLLECTIONS:
            raise self._unreadable(node, f"the tag {node.tag} is not known")
        if any(node is outer for outer in self.inside):
            raise self._unreadable(node, "it holds itself")
        if len(self.inside) >= DEEPEST:
            raise self._unreadable(node, f"it is nested more than {DEEPEST} deep")
        if id(node) in self.met:
            self.repeated += 1 + len(node.value)
            if self.repeated > MOST_REPEATED:
                raise self._unreadable(node, f"aliases stand for more than {MOST_REPEATED:,} values")
        self.met.add(id(node))
        self.inside.append(node)
        yield
        self.inside.pop()

    def _unreadable(self, node: yaml.Node, why: object) -> UsageError:
        return UsageError(f"this value cannot be read: {why}", where=self._place(node), hint="write plain YAML")

    def _place(self, node: yaml.Node) -> str:
        return f"{self.path}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"
