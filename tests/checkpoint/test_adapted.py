"""The folder of an adapted model: its manifest comes back as it was written, and nothing else passes for one."""

import json
import tempfile
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskmerge.checkpoint.adapted import (
    OF_TASKS,
    PLACES,
    Manifest,
    Part,
    check_finished,
    is_adapted,
    read_adapted,
    unfinished,
    write_manifest,
)
from taskmerge.errors import BadFile

WHOLE: dict[str, Any] = {"version": 1, "method": "tint", "needs_task_index": True, "parts": []}
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


def with_parts(folder: Path, parts: tuple[Part, ...]) -> Path:
    """A folder in which these parts are."""
    folder.mkdir(exist_ok=True)
    for part in parts:
        if part in OF_TASKS:
            (folder / PLACES[part]).mkdir()
            (folder / PLACES[part] / "cars.safetensors").write_bytes(b"")
        else:
            (folder / PLACES[part]).write_bytes(b"")
    return folder


def saying(folder: Path, **changes: Any) -> Path:
    """A folder whose manifest is changed: a key set, or (None) left out."""
    document = {key: value for key, value in {**WHOLE, **changes}.items() if value is not None}
    (folder / "folder.json").write_text(json.dumps(document))
    return folder


@given(
    method=TEXTS, needs_task_index=st.booleans(), parts=st.lists(st.sampled_from(get_args(Part)), unique=True),
    protocol=st.none() | TEXTS,
)  # fmt: skip
@settings(deadline=None)
def test_what_was_written_is_read(method: str, needs_task_index: bool, parts: list[Part], protocol: str | None) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = with_parts(Path(name) / "adapted", tuple(parts))
        assert not is_adapted(folder)
        manifest = Manifest(
            method=method, needs_task_index=needs_task_index, parts=tuple(sorted(parts)), protocol=protocol
        )
        write_manifest(folder, manifest)
        assert is_adapted(folder)
        adapted = read_adapted(folder)
        assert adapted.manifest == manifest
        assert adapted.model == folder / "model.safetensors"
        for part, place in PLACES.items():
            assert adapted.place(part) == (folder / place if part in parts else None)


def test_the_text_is_canonical(tmp_path: Path) -> None:
    write_manifest(tmp_path, Manifest(method="surgery", needs_task_index=True, parts=("recipe", "adapters")))
    wanted = '{"method":"surgery","needs_task_index":true,"parts":["adapters","recipe"],"version":1}\n'
    assert (tmp_path / "folder.json").read_text() == wanted


def test_every_part_of_the_format_has_a_place() -> None:
    assert tuple(PLACES) == get_args(Part)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"version": None}, "has no `version`, this taskmerge reads 1"),
        ({"version": 2}, "is of version 2, this"),
        ({"version": "1"}, 'is of version "1", this'),
        ({"version": True}, "is of version true, this"),
        ({"version": 1.0}, "is of version 1.0, this"),
        ({"method": None}, "`method` is missing"),
        ({"method": 3}, "`method` is malformed"),
        ({"needs_task_index": None}, "`needs_task_index` is missing"),
        ({"needs_task_index": 0}, "`needs_task_index` is malformed"),
        ({"parts": None}, "`parts` is missing"),
        ({"parts": "heads"}, "`parts` is malformed"),
        ({"parts": ["head"]}, r"`head` is no part of a folder \(`heads` is\)"),
        ({"parts": [["heads"]]}, "is no part of a folder"),
        ({"parts": ["heads", "heads"]}, "`parts` names one twice"),
        ({"protocol": ["adapt"]}, "`protocol` is malformed"),
        ({"colour": 1}, "`colour` is no key"),
    ],
)
def test_a_malformed_manifest_is_refused(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    (with_parts(tmp_path, ("heads",)) / "heads" / "cars.safetensors").unlink()
    read_adapted(saying(tmp_path))
    with pytest.raises(BadFile, match=says) as caught:
        read_adapted(saying(tmp_path, **changes))
    assert caught.value.where == str(tmp_path / "folder.json")
    assert caught.value.hint


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000, b"[]", b"null"])
def test_what_is_no_document_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "folder.json").write_bytes(content)
    with pytest.raises(BadFile, match=r"folder\.json: (is not JSON|is no JSON object)"):
        read_adapted(tmp_path)


@pytest.mark.parametrize("part", get_args(Part))
def test_a_listed_part_must_be_there(tmp_path: Path, part: Part) -> None:
    saying(tmp_path, parts=[part])
    with pytest.raises(BadFile, match=rf"lists `{PLACES[part]}`, which is not there"):
        read_adapted(tmp_path)
    assert read_adapted(with_parts(tmp_path, (part,))).place(part) == tmp_path / PLACES[part]


@pytest.mark.parametrize("part", OF_TASKS)
def test_a_part_of_a_task_that_is_not_listed_is_not_passed_over(tmp_path: Path, part: Part) -> None:
    saying(with_parts(tmp_path, (part,)))
    with pytest.raises(BadFile, match=rf"does not list `{part}`, which is there"):
        read_adapted(tmp_path)
    (tmp_path / part / "cars.safetensors").unlink()
    assert read_adapted(tmp_path).place(part) is None


def test_a_task_has_a_file_of_a_part_or_has_none(tmp_path: Path) -> None:
    write_manifest(with_parts(tmp_path, ("heads",)), Manifest(method="tint", needs_task_index=True, parts=("heads",)))
    adapted = read_adapted(tmp_path)
    assert adapted.file("heads", "cars") == tmp_path / "heads" / "cars.safetensors"
    assert adapted.file("heads", "dogs") is None
    assert adapted.file("blocks", "cars") is None


def test_another_manifest_is_noticed(tmp_path: Path) -> None:
    write_manifest(tmp_path, Manifest(method="tint", needs_task_index=True))
    adapted = read_adapted(tmp_path)
    adapted.check_unchanged()
    (tmp_path / "folder.json").unlink()
    write_manifest(tmp_path, Manifest(method="tint", needs_task_index=True))
    with pytest.raises(BadFile, match="changed while it was being read"):
        adapted.check_unchanged()


def holding(folder: Path, *names: str) -> Path:
    """A folder with these files; a name that ends in `/` is a folder."""
    for name in names:
        if name.endswith("/"):
            (folder / name).mkdir(parents=True)
        else:
            (folder / name).write_bytes(b"{}")
    return folder


@pytest.mark.parametrize(
    "names",
    [
        ("trace.jsonl",),
        ("state/",),
        ("trace.jsonl", "state/"),
        ("recipe.yaml", "state/"),
        ("trace.jsonl", "model.safetensors"),
        ("trace.jsonl", "state/", "model.safetensors", "coefficients.safetensors", "heads/"),
        ("trace.jsonl", "state/", "model.safetensors", "config.json"),
    ],
)
def test_an_adaptation_that_was_killed_is_known(tmp_path: Path, names: tuple[str, ...]) -> None:
    folder = holding(tmp_path, *names)
    assert unfinished(folder)
    with pytest.raises(BadFile, match="an adaptation that has not ended") as caught:
        check_finished(folder)
    assert (caught.value.where, caught.value.exit_code) == (str(folder), 3)
    assert "--resume" in str(caught.value.hint)
    write_manifest(folder, Manifest(method="tint", needs_task_index=True))
    assert not unfinished(folder)
    check_finished(folder)


@pytest.mark.parametrize(
    "names",
    [
        (),
        ("model.safetensors",),
        ("config.json", "model.safetensors", "trace.jsonl"),
        ("open_clip_config.json", "open_clip_model.safetensors", "trace.jsonl"),
        ("model.safetensors", "state/"),
        ("pytorch_model.bin", "config.json", "state/"),
        ("trace.jsonl/", "state"),
    ],
)
def test_a_models_folder_is_none(tmp_path: Path, names: tuple[str, ...]) -> None:
    assert not unfinished(holding(tmp_path, *names))
    check_finished(tmp_path)
    for other in (tmp_path / "missing", holding(tmp_path, "file") / "file"):
        assert not unfinished(other)
