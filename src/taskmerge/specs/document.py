"""Strict YAML: one mapping with the place of every key, no repeated key, and values as they were written."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from taskmerge.errors import BadFile, UsageError

Places = Mapping[str, str]
"""Where keys stand, as file:line:column; nested keys and items of lists as `options.rank`, `tasks.mnist.classes.3`."""

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
    file that cannot be read, UsageError with file:line:column for what is no YAML, a repeated key, or an unquoted
    boolean as a key.
    """
    node = _composed(path, what, hint)
    reader = _Reader(str(path), {}, {}, frozenset(verbatim))
    return Document(reader.mapping(node, ""), reader.places, reader.spelled)


def _composed(path: Path, what: str, hint: str) -> yaml.MappingNode:
    """The file as nodes that know their places."""
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=_COMPOSER)
    except OSError as error:
        raise BadFile(f"cannot read the {what}: {error.strerror}", where=str(path), hint="check the path") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise UsageError(f"this is no YAML: {getattr(error, 'problem', error)}", where=where, hint=hint) from None
    if not isinstance(node, yaml.MappingNode):
        raise UsageError(f"a {what} is a mapping of keys to values", where=str(path), hint=hint)
    return node


@dataclass(frozen=True)
class _Reader:
    """Turns nodes into plain values and notes on the way where they stand."""

    path: str
    places: dict[str, str]
    spelled: dict[str, str]
    verbatim: frozenset[str]
    inside: list[yaml.Node] = field(default_factory=list)

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
        if name.partition(".")[0] in self.verbatim and "." in name and not node.tag.endswith(":null"):
            return node.value
        value = self._plain(node)
        if not isinstance(value, str):
            self.spelled[name] = node.value
        return value

    def _item(self, node: yaml.Node, name: str) -> Any:
        self.places[name] = self._place(node)
        return self._value(node, name)

    def _key(self, node: yaml.Node) -> str:
        """A key as it was written; `no:` would be a boolean."""
        value = self._plain(node)
        if isinstance(value, bool):
            raise UsageError(
                f"the key {node.value} is a truth value to YAML", where=self._place(node), hint=f"write '{node.value}'"
            )
        return node.value if isinstance(node, yaml.ScalarNode) else str(value)

    def _plain(self, node: yaml.Node) -> Any:
        """A node's value, as the safe loader builds it."""
        loader = yaml.SafeLoader("")
        try:
            return loader.construct_object(node, deep=True)
        except (yaml.YAMLError, ValueError) as error:
            raise self._unreadable(node, getattr(error, "problem", error)) from None
        finally:
            loader.dispose()

    @contextmanager
    def _entered(self, node: yaml.Node) -> Iterator[None]:
        """Refuses an alias to something that holds it."""
        if any(node is outer for outer in self.inside):
            raise self._unreadable(node, "it holds itself")
        self.inside.append(node)
        yield
        self.inside.pop()

    def _unreadable(self, node: yaml.Node, why: object) -> UsageError:
        return UsageError(f"this value cannot be read: {why}", where=self._place(node), hint="write plain YAML")

    def _place(self, node: yaml.Node) -> str:
        return f"{self.path}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"
