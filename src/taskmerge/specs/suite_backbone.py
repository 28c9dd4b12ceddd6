"""The `backbone:` of a suite: which architecture the checkpoints fill, and what each library needs for it."""

import os
from pathlib import Path
from typing import cast

from taskmerge.specs.paths import beside
from taskmerge.specs.sections import Section
from taskmerge.specs.suite import BackboneSpec, Library, Location, Pooling, Preprocess, Tokenizer
from taskmerge.specs.suite_sources import read_location

LIBRARIES = ("open_clip", "transformers", "torchvision")
KEYS = ("library", "model", "tokenizer", "preprocess", "pooling", "max_length")


def read_backbone(top: Section, folder: Path) -> BackboneSpec:
    section = top.section("backbone", "for example `backbone: {library: open_clip, model: ViT-B-32}`")
    if section is None:
        if "backbone" not in top.values:
            top.bad(None, "`backbone` is missing", "for example `backbone: {library: open_clip, model: ViT-B-32}`")
        return BackboneSpec("open_clip", "")
    section.only(KEYS)
    library = cast(Library, section.choice("library", LIBRARIES, ""))
    if "library" not in section.values:
        section.bad(None, "`library` is missing", f"one of {', '.join(LIBRARIES)}")
    if "model" not in section.values:
        section.bad(None, "`model` is missing", "a registered name, a configuration file or a folder")
    tokenizer = _tokenizer(section, library, folder)
    preprocess = _preprocess(section)
    pooling = cast("Pooling | None", section.choice("pooling", ("cls", "mean", "last"), "") or None)
    if library:
        _check_library(section, library)
    return BackboneSpec(
        library, _model(section, library, folder), tokenizer, preprocess, pooling, section.count("max_length"),
        section.place(),
    )  # fmt: skip


def _model(section: Section, library: Library, folder: Path) -> str | Location:
    """A registered name for open_clip and torchvision, unless it is a file; always a place for transformers."""
    value = section.values.get("model")
    if not isinstance(value, str) or library == "transformers":
        return read_location(section, "model", folder) or ""
    is_file = value.endswith(".json") or os.path.exists(beside(folder, value))
    if library == "torchvision" and is_file:
        section.bad("model", "torchvision's models are named, not described by a file", "such as `model: resnet50`")
    return beside(folder, value) if is_file else section.text("model") or ""


def _check_library(section: Section, library: Library) -> None:
    """What a library needs, and what it has no use for."""
    given = section.values
    unused = {
        "open_clip": {"pooling": "a text option", "max_length": "a text option"},
        "torchvision": {
            "pooling": "a text option",
            "max_length": "a text option",
            "tokenizer": "torchvision reads no texts",
        },
    }.get(library, {})
    for key, why in unused.items():
        if key in given:
            section.bad(key, f"`{key}` has no meaning with {library}: {why}", "leave it out, or use transformers")
    if library == "transformers" and "tokenizer" not in given and "preprocess" not in given:
        hint = "for texts `tokenizer: FOLDER`, for pictures `preprocess: {image_size: 224, mean: […], std: […]}`"
        section.bad(None, "transformers needs a `tokenizer` (texts) or a `preprocess` (pictures)", hint)
    if library == "transformers" and "max_length" in given and "tokenizer" not in given:
        section.bad("max_length", "`max_length` is a text option, and there is no tokenizer", "add `tokenizer: FOLDER`")


def _tokenizer(section: Section, library: Library, folder: Path) -> Tokenizer | None:
    """A path (the library says of what), a hub place, or a mapping of `bpe` or `folder` and `context_length`."""
    value = section.values.get("tokenizer")
    if "tokenizer" not in section.values or library == "torchvision":
        return None
    own = "folder" if library == "transformers" else "bpe"
    if not isinstance(value, dict) or "hub" in value:
        place = read_location(section, "tokenizer", folder)
        return Tokenizer(folder=place) if own == "folder" else Tokenizer(bpe=place)
    inner = section.section("tokenizer", "for example `tokenizer: {bpe: bpe.txt.gz, context_length: 16}`")
    if inner is None:
        return None
    inner.only(("bpe", "folder", "context_length"))
    other = {"folder": "bpe", "bpe": "folder"}[own]
    if other in inner.values:
        inner.bad(other, f"`{other}` is no tokenizer of {library or 'the backbone'}", f"{library} takes `{own}`")
    if own == "folder" and "context_length" in inner.values:
        inner.bad("context_length", "`context_length` belongs to open_clip", "write `max_length` beside `tokenizer`")
    bpe = read_location(inner, "bpe", folder) if own == "bpe" else None
    place = read_location(inner, "folder", folder) if own == "folder" else None
    return Tokenizer(bpe, place, inner.count("context_length"))


def _preprocess(section: Section) -> Preprocess | None:
    inner = section.section("preprocess", "for example `preprocess: {image_size: 32, mean: [0, 0, 0], std: [1, 1, 1]}`")
    if inner is None:
        return None
    inner.only(("image_size", "mean", "std"))
    if "image_size" not in inner.values:
        inner.bad(None, "`image_size` is missing", "such as `image_size: 224`")
    size, mean, std = inner.count("image_size"), inner.numbers("mean", 3), inner.numbers("std", 3)
    if std and min(std) <= 0:
        inner.bad("std", f"a deviation is positive, not {min(std):g}", "such as `std: [0.5, 0.5, 0.5]`")
    if mean and not all(0 <= one <= 1 for one in mean):
        inner.bad("mean", "means are of channels in [0, 1]", "divide means of 0 to 255 by 255, and deviations too")
    if size is None or mean is None or std is None:
        return None
    return Preprocess(size, cast("tuple[float, float, float]", mean), cast("tuple[float, float, float]", std))
