"""Recipes, suites and --set with every wrong value in every place: read as what they say, or refused with the place."""

import copy
import datetime
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from taskmerge.errors import TaskmergeError, UsageError
from taskmerge.merging.from_recipe import from_recipe
from taskmerge.merging.options import split_options
from taskmerge.specs.load import SETTABLE, load_overrides, load_recipe, load_weights
from taskmerge.specs.suite_file import load_suite

WRONG: dict[str, object] = {
    "null": None, "true": True, "false": False, "0": 0, "1": 1, "-1": -1, "1.5": 1.5, "nan": float("nan"),
    "inf": float("inf"), "10^400": 10**400, "10^300": 10**300, "10^30": 10**30, "1e308": 1e308, "empty text": "",
    "space": " ", "x": "x", "..": "..", "/": "/", "long": "x" * 5000, "escape": "\x1b[31mred", "newline": "a\nb",
    "NUL": "a\0b", "surrogate": "\ud800", "glob": "[*", "empty list": [], "list": ["x"], "numbers": [1, 2, 3],
    "nested list": [[1], [2]], "list of null": [None], "empty map": {}, "map": {"x": 1}, "hub map": {"hub": "org/name"},
    "bad hub": {"hub": "../x"}, "number text": "1e400", "minus": "-", "date": datetime.date(2001, 1, 1), "bytes": b"x",
    "braces": "%s{}{0}", "long list": ["x"] * 2000,
}  # fmt: skip
RECIPE: dict[str, Any] = {
    "taskmerge": 1, "method": "ties", "lines": False, "seed": 0, "dtype": "F32", "compute_dtype": "float32",
    "svd": "exact", "qkv": "as-is", "on_missing": "refuse", "on_buffer": "refuse", "heads": "refuse",
    "strip_prefix": "", "include": ["*"],
    "exclude": ["none*"], "also": ["conv"], "options": {"density": 0.2, "coefficient": [1.0, 0.5]},
    "weights": {"a": 1.0, "b": 0.5}, "experts": {"a": "a.safetensors", "b": "b.safetensors"},
    "base": "base.safetensors", "output": "out.safetensors", "grid": {"density": [0.2, 0.3]},
}  # fmt: skip
PICTURES: dict[str, Any] = {
    "taskmerge": 1, "name": "tiny", "notes": ["a note"], "base": "base.safetensors", "qkv": "as-is",
    "backbone": {
        "library": "open_clip", "model": "model.json", "tokenizer": {"bpe": "bpe.txt.gz", "context_length": 16},
        "preprocess": {"image_size": 24, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
    },
    "tasks": {"a": {
        "expert": "a.safetensors", "head": "head.safetensors", "kind": "classification", "metric": "accuracy",
        "templates": ["a {}"], "classes": ["x", "y"],
        "data": {"test": {"file": "d.npz", "x": "x", "y": "y"}, "adapt": {"folder": "f", "labelled": False}},
    }},
}  # fmt: skip
TEXTS: dict[str, Any] = {
    "taskmerge": 1,
    "backbone": {"library": "transformers", "model": "m", "tokenizer": "t", "pooling": "mean", "max_length": 16},
    "tasks": {"a": {"head": "head.safetensors", "kind": "regression", "metric": "pearson", "data": {
        "test": {"file": "d.jsonl", "x": ["s", "t"], "y": "y"},
        "other": {"torchvision": "MNIST", "root": "r", "split": "test", "labelled": True},
        "hub": {"hub": "org/name", "revision": "r", "split": "s", "x": "x", "y": "y", "configuration": "c"},
    }}},
}  # fmt: skip
MORE = ("[", "{", "!!python/object:x", "2001-99-99", "9" * 5000, "*a", "&a", "0:inf:1", "0x", "!!int x", "1,", ":")
MEANINGFUL_WEIGHTS = ("0", "1", "-1", "1.5", "10^30")


def places(value: object, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield above
    inner = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, one in inner:
        yield from places(one, (*above, key))


def replaced(document: dict[str, Any], place: tuple[Any, ...], value: object) -> Any:
    if not place:
        return value
    found: Any = copy.deepcopy(document)
    inner = found
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return found


class Dumper(yaml.SafeDumper):
    """Writes everything out, without aliases."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def written(folder: Path, document: object) -> Path:
    path = folder / "some.yaml"
    text = yaml.dump(document, Dumper=Dumper, allow_unicode=True, sort_keys=False)
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    return path


def refused(call: Any) -> TaskmergeError | None:
    """The error with which something is refused, of bounded length and printable; no other exception is let through."""
    error = None
    try:
        call()
    except TaskmergeError as caught:
        error = caught
    assert error is None or error.exit_code in (2, 3, 4)
    assert error is None or len(error.message) < 20_000
    assert error is None or all(line.isprintable() for line in error.message.split("\n"))
    return error


def merged(path: Path) -> None:
    """A recipe as far as it can be read without its inputs."""
    recipe = load_recipe(path)
    said = {"base": recipe.base, "output": recipe.output, "weights": recipe.weights, **recipe.shape, **recipe.options}
    split_options(said)


@pytest.mark.parametrize("place", list(places(RECIPE))[1:], ids=lambda place: ".".join(map(str, place)))
def test_recipes(tmp_path: Path, place: tuple[Any, ...]) -> None:
    assert refused(lambda: merged(written(tmp_path, RECIPE))) is None
    for what, value in WRONG.items():
        path = written(tmp_path, replaced(RECIPE, place, value))
        error = refused(lambda path=path: merged(path))
        if place[0] == "weights" and len(place) == 2 and what not in MEANINGFUL_WEIGHTS:
            assert isinstance(error, UsageError), what
        refused(lambda path=path: from_recipe(path, (), {}))


@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("document", [PICTURES, TEXTS], ids=["pictures", "texts"])
def test_suites(tmp_path: Path, document: dict[str, Any], every: int) -> None:
    """Every value in every place; or one of so many, others from place to place."""
    assert refused(lambda: load_suite(written(tmp_path, document))) is None
    for number, place in enumerate(places(document)):
        for what, value in list(WRONG.items())[number % every :: every]:
            error = refused(lambda: load_suite(written(tmp_path, replaced(document, place, value))))  # noqa: B023
            if what in ("nan", "inf", "10^400", "date", "list of null", "nested list", "bytes") and place:
                assert isinstance(error, UsageError), (place, what)


def test_suites_without_a_key_or_with_another(tmp_path: Path) -> None:
    for document in (PICTURES, TEXTS):
        for place in places(document):
            if place and isinstance(place[-1], str):
                whole = copy.deepcopy(document)
                inner = whole
                for key in place[:-1]:
                    inner = inner[key]
                value = inner.pop(place[-1])
                refused(lambda: load_suite(written(tmp_path, whole)))  # noqa: B023
                inner["\x1b[31m" + place[-1]] = value
                refused(lambda: load_suite(written(tmp_path, whole)))  # noqa: B023


@pytest.mark.parametrize("key", sorted({*SETTABLE, "rank", "options.rank", "density", "", "x"}))
def test_settings_of_the_command_line(key: str) -> None:
    for value in [*WRONG.values(), *MORE]:
        text = value if isinstance(value, str) else str(value)
        found = refused(lambda: load_overrides([f"{key}={text}"]))  # noqa: B023
        if found is None:
            with suppress(TaskmergeError):
                split_options(load_overrides([f"{key}={text}"]))


def test_coefficients(tmp_path: Path) -> None:
    for what, value in WRONG.items():
        error = refused(lambda: load_weights(written(tmp_path, {"a": value})))  # noqa: B023
        assert (error is None) == (what in MEANINGFUL_WEIGHTS), what
