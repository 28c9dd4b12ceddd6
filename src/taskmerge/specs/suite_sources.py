"""Where a suite's files and data are: paths, places on the hub, and the sources of splits."""

import os
import re
from pathlib import Path
from typing import cast

from taskmerge.specs.class_names import ClassesBy
from taskmerge.specs.paths import beside
from taskmerge.specs.sections import Section
from taskmerge.specs.suite import Form, HubPath, Location, Split

ENDINGS: dict[str, Form] = {
    ".npz": "npz", ".jsonl": "jsonl", ".jsonl.gz": "jsonl", ".csv": "delimited", ".csv.gz": "delimited",
    ".tsv": "delimited", ".tsv.gz": "delimited", ".parquet": "parquet",
}  # fmt: skip
SOURCES = {
    "file": ("x", "y", "classes_by"),
    "folder": ("split", "x", "y", "labelled", "classes_by"),
    "torchvision": ("root", "split", "configuration", "labelled", "classes_by"),
    "hub": ("revision", "configuration", "split", "x", "y", "classes_by"),
}
"""The key that says what kind of source a split has, and the keys that go with it."""

SAVED = ("dataset_info.json", "dataset_dict.json", "state.json")  # files of a folder that `datasets` saved
REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?")


def read_location(section: Section, key: str, folder: Path) -> Location | None:
    """A path relative to the suite's folder, or `{hub: org/name, file: path/in/repo, revision: sha}`."""
    value = section.values.get(key)
    if not isinstance(value, dict):
        said = section.text(key)
        return None if said is None else beside(folder, said)
    inner = section.section(key, "a path, or `{hub: org/name, file: path/in/repo}`")
    if inner is None:
        return None
    inner.only(("hub", "file", "revision"))
    if "hub" not in inner.values:
        inner.bad(None, f"`{key}` is a path or a place on the hub", "a path, or `{hub: org/name, file: path/in/repo}`")
        return None
    return _on_hub(inner, inner.text("file"))


def read_split(section: Section, folder: Path) -> Split:
    """One split; `y` is None for an unlabelled one.

    Class folders and torchvision carry their labels with them: their `y` is set unless `labelled: false` is written.
    """
    kinds = [key for key in SOURCES if key in section.values]
    if len(kinds) != 1:
        what = f"a split has one source, not {' and '.join(f'`{key}`' for key in kinds) if kinds else 'none'}"
        section.bad(None, what, "one of `file`, `folder`, `torchvision`, `hub`; a file of a hub: `file: {hub: …}`")
        return Split("npz", None, place=section.place())
    source = kinds[0]
    section.only((source, *SOURCES[source]))
    place, form = _source(section, source, folder)
    _check_columns(section, form)
    labelled = section.flag("labelled", True) and form in ("images", "torchvision")
    return Split(
        form=form,
        location=place,
        x=section.texts("x"),
        y="label" if labelled else section.text("y"),
        dataset=section.text("torchvision") if source == "torchvision" else None,
        configuration=section.text("configuration"),
        name=section.text("split"),
        classes_by=_classes_by(section),
        place=section.place(),
    )


def _classes_by(section: Section) -> ClassesBy | None:
    """How the classes of the data are the task's, where that is said."""
    if "classes_by" not in section.values:
        return None
    return cast(ClassesBy, section.choice("classes_by", ("name", "number"), "name"))


def _source(section: Section, source: str, folder: Path) -> tuple[Location | None, Form]:
    """Where the items are, and in which form."""
    if source == "hub":
        return _on_hub(section, None), "hub"
    if source == "torchvision":
        if "root" not in section.values:
            section.bad(None, "`root` is missing", "the folder that torchvision keeps its data sets in")
        return read_location(section, "root", folder), "torchvision"
    place = read_location(section, source, folder)
    if source == "folder":
        return place, "datasets" if _is_saved(section, place) else "images"
    name = (place.file or "") if isinstance(place, HubPath) else str(place or "")
    ending = next((one for one in ENDINGS if name.endswith(one)), None)
    if ending is None and place is not None:
        section.bad("file", f"`{name}` has no known ending", f"data files are {', '.join(ENDINGS)}; folders: `folder`")
    return place, ENDINGS.get(ending or "", "npz")


def _is_saved(section: Section, place: Location | None) -> bool:
    """Whether a folder was saved by `datasets`: it says so, or columns or a split are chosen in it."""
    if any(key in section.values for key in ("x", "y", "split")):
        return True
    return isinstance(place, Path) and any(os.path.isfile(place / name) for name in SAVED)


def _check_columns(section: Section, form: Form) -> None:
    """Which array or column holds the inputs must be said; pairs of texts have two."""
    if form in ("npz", "jsonl", "delimited", "parquet", "datasets", "hub") and "x" not in section.values:
        what = "`x` is missing: the array or column of the inputs"
        section.bad(None, what, "such as `x: image`, or `x: [sentence1, sentence2]` for pairs of texts")
    if form == "datasets" and "labelled" in section.values:
        section.bad("labelled", "`labelled` belongs to class folders of pictures", "leave `y` out where there is none")
    names = section.values.get("x")
    if isinstance(names, list) and (len(names) not in (1, 2) or (form == "npz" and len(names) != 1)):
        hint = "an .npz has one" if form == "npz" else "pairs of texts have two"
        section.bad("x", f"`x` names {len(names)} columns", f"one array or column; {hint}")


def _on_hub(section: Section, file: str | None) -> HubPath | None:
    repository = section.text("hub")
    if repository is None:
        return None
    if not REPOSITORY.fullmatch(repository):
        section.bad("hub", f"`{repository}` is no name of a repository", "such as `hub: org/name`")
        return None
    return HubPath(repository, file, section.text("revision"))
