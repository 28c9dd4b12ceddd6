"""Reads the mappings of a strict document key by key and collects every complaint before one is raised."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from taskmerge.errors import UsageError, nearest
from taskmerge.specs.document import Document

MOST_STRANGERS = 10
"""Unknown keys of one mapping that are named one by one."""
EXAMPLE = "`taskmerge suites clip-vit-b-32-8 --yaml` shows a whole one"


@dataclass(frozen=True)
class Problems:
    """What is wrong with one file, in the order found."""

    path: str
    found: list[UsageError] = field(default_factory=list)

    def add(self, what: str, where: str, hint: str) -> None:
        self.found.append(UsageError(what, where=where, hint=hint))

    def settle(self) -> None:
        """Raises the one problem as it is, or all of them in one message; nothing if there is none."""
        if len(self.found) == 1:
            raise self.found[0]
        if self.found:
            lines = [f"  {one.where}: {one.what} ({one.hint})" for one in self.found]
            what = f"{len(lines)} things are wrong:\n" + "\n".join(lines)
            raise UsageError(what, where=self.path, hint=EXAMPLE)


@dataclass(frozen=True)
class Section:
    """One mapping of a document; `above` is the dotted name under which its keys stand ("" at the top).

    Every getter gives None (or nothing) for a key that is not there, and for a bad value after noting the problem.
    """

    document: Document
    problems: Problems
    values: dict[str, Any]
    above: str = ""

    def place(self, key: str | None = None) -> str:
        """Where a key stands, or the section itself."""
        name = self.above.removesuffix(".") if key is None else self.above + key
        return self.document.places.get(name, self.problems.path)

    def bad(self, key: str | None, what: str, hint: str) -> None:
        self.problems.add(what, self.place(key), hint)

    def only(self, known: Collection[str]) -> Self:
        """Notes keys that are not known, with the nearest one."""
        strangers = [key for key in self.values if key not in known]
        for key in strangers[:MOST_STRANGERS]:
            close = nearest(key, known)
            hint = f"did you mean `{close}`?" if close else f"known keys: {', '.join(sorted(known))}"
            self.bad(key, f"unknown key `{key}`", hint)
        if len(strangers) > MOST_STRANGERS:
            self.bad(None, f"{len(strangers) - MOST_STRANGERS:,} more keys are not known", EXAMPLE)
        return self

    def text(self, key: str) -> str | None:
        """A text that is not empty."""
        return self._text(key, self.values.get(key)) if key in self.values else None

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts; a lone text is a list of one."""
        value = self.values.get(key, [])
        if not isinstance(value, list):
            one = self._text(key, value)
            return () if one is None else (one,)
        found = [self._text(f"{key}.{index}", item) for index, item in enumerate(value)]
        return tuple(one for one in found if one is not None)

    def choice(self, key: str, allowed: Sequence[str], default: str) -> str:
        """One of the allowed texts; the default where there is none or another."""
        said = self.text(key)
        if said is None or said in allowed:
            return said or default
        close = nearest(said, allowed)
        what = f"`{said}` is no value of `{key}`"
        self.bad(key, what, f"did you mean `{close}`?" if close else f"one of {', '.join(allowed)}")
        return default

    def count(self, key: str) -> int | None:
        """A whole number of at least 1."""
        value = self.values.get(key)
        if key not in self.values or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
            return value
        self.bad(key, f"`{key}` is a whole number from 1 on, not `{value}`", f"such as `{key}: 32`")
        return None

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self.values.get(key, default)
        if isinstance(value, bool):
            return value
        self.bad(key, f"`{key}` is true or false, not `{value}`", f"write `{key}: {str(not default).lower()}`")
        return default

    def numbers(self, key: str, length: int) -> tuple[float, ...] | None:
        """A list of finite numbers of the given length."""
        value = self.values.get(key)
        items = value if isinstance(value, list) else []
        if len(items) == length and all(_is_number(item) for item in items):
            return tuple(float(item) for item in items)
        self.bad(key, f"`{key}` is a list of {length} numbers, not `{value}`", f"such as `{key}: [0.5, 0.5, 0.5]`")
        return None

    def section(self, key: str, hint: str) -> "Section | None":
        """A mapping of its own with something in it."""
        if key not in self.values:
            return None
        value = self.values[key]
        if isinstance(value, dict) and value:
            return Section(self.document, self.problems, value, f"{self.above}{key}.")
        empty = value is None or value == {}
        self.bad(key, f"`{key}` is empty" if empty else f"`{key}` is a mapping, not `{value}`", hint)
        return None

    def _text(self, key: str, value: Any) -> str | None:
        name = key.partition(".")[0]
        if isinstance(value, str) and value:
            return value
        spelled = self.document.spelled.get(self.above + key, "")
        if isinstance(value, bool):
            self.bad(key, f"{spelled} is a truth value to YAML; `{name}` takes a text", f"write '{spelled}'")
        elif spelled and value is not None:
            self.bad(key, f"{spelled} is no text to YAML; `{name}` takes a text", f"write '{spelled}'")
        elif value in (None, ""):
            self.bad(key, f"`{name}` has an empty text", "write a text, in quotes if it is a word of YAML such as null")
        else:
            self.bad(key, f"`{name}` is a text, not `{value}`", EXAMPLE)
        return None


def _is_number(value: object) -> bool:
    """Whether this is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")
