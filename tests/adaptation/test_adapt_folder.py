"""Where an adaptation may write, by exit codes; finished folders that only finished ones replace; their parts."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adaptation_cases import TASKS, adapt, assembled, clip_suite, contents, hearing
from safetensors.torch import load_file

import taskmerge
from taskmerge.adaptation import folder as folders
from taskmerge.adaptation.folder import Folder, open_folder, resumable
from taskmerge.checkpoint.adapted import Manifest, is_adapted, read_adapted, write_manifest
from taskmerge.errors import BadOutput, Mismatch, TaskmergeError, UsageError
from taskmerge.specs.suite import Suite
from taskmerge.workflows import adapted

QUICK: dict[str, Any] = {"method": "adamerging", "iterations": 1}


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    return clip_suite(tmp_path_factory.mktemp("folders"))


# --- rules -----------------------------------------------------------------------------------------------------


def nothing(place: Path) -> None:
    pass


def an_empty_folder(place: Path) -> None:
    place.mkdir()


def a_file(place: Path) -> None:
    place.write_text("x")


def something_else(place: Path) -> None:
    place.mkdir()
    (place / "notes.txt").write_text("x")


def a_finished_one(place: Path) -> None:
    place.mkdir()
    (place / "model.safetensors").write_bytes(b"x")
    write_manifest(place, Manifest(method="tint", needs_task_index=True))


def an_unfinished_one(place: Path) -> None:
    (place / "state").mkdir(parents=True)
    (place / "state" / "state.safetensors").write_bytes(b"x")
    (place / "trace.jsonl").write_text("x")


def a_finished_one_that_is_being_replaced(place: Path) -> None:
    a_finished_one(place)
    an_unfinished_one(place.with_name(f".{place.name}.unfinished"))


def what_a_failed_run_left(place: Path) -> None:
    place.mkdir()
    (place / "model.safetensors").write_bytes(b"x")
    (place / "heads").mkdir()


FREE, STARTS, RESUMES, BESIDE = 0, "starts", "resumes", "beside"
RULES: tuple[tuple[Callable[[Path], None], dict[str, Any]], ...] = (
    (nothing, {"": STARTS, "o": STARTS, "r": 3, "or": 3}),
    (an_empty_folder, {"": STARTS, "o": STARTS, "r": 3, "or": 3}),
    (what_a_failed_run_left, {"": STARTS, "o": STARTS, "r": 3, "or": 3}),
    (a_file, {"": 6, "o": 6, "r": 6, "or": 6}),
    (something_else, {"": 6, "o": 6, "r": 6, "or": 6}),
    (a_finished_one, {"": 6, "o": BESIDE, "r": 6, "or": 3}),
    (an_unfinished_one, {"": 6, "o": STARTS, "r": RESUMES, "or": RESUMES}),
    (a_finished_one_that_is_being_replaced, {"": 6, "o": BESIDE, "r": 6, "or": RESUMES}),
)  # fmt: skip


@pytest.mark.parametrize(("what", "asked", "wanted"), [
    (what, asked, wanted) for what, cases in RULES for asked, wanted in cases.items()
])  # fmt: skip
def test_what_may_be_there(tmp_path: Path, what: Callable[[Path], None], asked: str, wanted: Any) -> None:
    """With --overwrite (o), with --resume (r), with both."""
    place = tmp_path / "out"
    what(place)
    before = contents_of(tmp_path)
    options = {"overwrite": "o" in asked, "resume": "r" in asked}
    if isinstance(wanted, int):
        with pytest.raises(TaskmergeError) as error, open_folder(place, **options):
            pass
        assert error.value.exit_code == wanted
        assert str(place) in error.value.message
        assert error.value.hint
        assert contents_of(tmp_path) == before
        return
    with open_folder(place, **options) as found:
        pass
    assert found.resumes == (wanted == RESUMES)
    assert (found.path == place) != (is_adapted(place))
    assert found.path.is_dir()
    if wanted == RESUMES:
        assert contents_of(tmp_path) == before
    else:
        assert not any(found.path.iterdir())
    if is_adapted(place):
        assert (place / "model.safetensors").read_bytes() == b"x"


def contents_of(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def test_a_folder_that_cannot_be_made_is_a_bad_output(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadOutput) as error, open_folder(tmp_path / "file" / "out", overwrite=False, resume=False):
        pass
    assert error.value.exit_code == 6


def test_folders_above_are_made(tmp_path: Path) -> None:
    with open_folder(tmp_path / "a" / "b" / "out", overwrite=False, resume=False) as found:
        assert found.path.is_dir()


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_is_one_runs_alone(tmp_path: Path, finished: bool, resume: bool) -> None:
    """Another run is refused while the first one works, and takes nothing away; afterwards it may."""
    place, other = tmp_path / "out", {"overwrite": True, "resume": resume}
    if finished:
        a_finished_one(place)
    with open_folder(place, overwrite=True, resume=False) as found:
        (found.path / "state").mkdir()
        (found.path / "trace.jsonl").write_text("{}")
        before = contents_of(tmp_path)
        with pytest.raises(BadOutput, match="another run is writing here"), open_folder(place, **other):
            pass
        assert contents_of(tmp_path) == before
    with open_folder(place, **other) as found:
        assert (found.path / "state").is_dir() == resume


def test_errors_of_a_run_are_its_own(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="of the run"), open_folder(tmp_path / "out", overwrite=False, resume=False):
        raise OSError("of the run")


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path, suite: Suite) -> None:
    """What it leads to is written, and replaced."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    adapt(suite, tmp_path / "link", **QUICK)
    first = contents(tmp_path / "real")
    adapt(suite, tmp_path / "link", overwrite=True, **QUICK)
    assert (tmp_path / "link").is_symlink()
    assert contents(tmp_path / "real").keys() == first.keys()


def test_the_working_directory_itself(tmp_path: Path, suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    adapt(suite, Path("."), **QUICK)
    assert is_adapted(tmp_path / "out")
    with pytest.raises(BadOutput):
        adapt(suite, Path("."), **QUICK)
    adapt(suite, Path("."), overwrite=True, **QUICK)
    assert is_adapted(tmp_path / "out")


# --- runs that replace others ------------------------------------------------------------------------------------


def test_a_finished_folder_is_replaced_by_a_finished_one(
    suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the new one learns the old one is there, whole; a failure leaves it."""
    place = tmp_path / "out"
    adapt(suite, place, **QUICK)
    old, seen = contents(place), []

    def heard(record: Any, total: int) -> None:
        seen.append(contents(place) == old)

    with hearing(monkeypatch, heard):
        adapt(suite, place, method="tint", iterations=1, overwrite=True)
    assert seen == [True] * 4
    assert read_adapted(place).manifest.method == "tint"
    assert os.listdir(tmp_path) == ["out"]


def test_an_error_before_anything_was_learnt_leaves_no_folder(suite: Suite, tmp_path: Path) -> None:
    place = tmp_path / "out"
    for options, code in (({"batch_size": 1000}, 2), ({"adapt_split": "nowhere"}, 2), ({"layer": "77"}, 2)):
        with pytest.raises(TaskmergeError) as error:
            adapt(suite, place, method="symerge", **options)
        assert error.value.exit_code == code
        assert not place.exists()
    adapt(suite, place, **QUICK)
    old = contents(place)
    with pytest.raises(UsageError):
        adapt(suite, place, method="symerge", batch_size=1000, overwrite=True)
    assert contents(place) == old
    assert os.listdir(tmp_path) == ["out"]


def test_an_unfinished_run_beside_a_finished_folder_is_resumed(
    suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "out"
    adapt(suite, place, **QUICK)
    old = contents(place)

    def heard(record: Any, total: int) -> None:
        if record.update == 1:
            raise KeyboardInterrupt

    options = {"method": "tint", "iterations": 1, "overwrite": True}
    with hearing(monkeypatch, heard), pytest.raises(KeyboardInterrupt):
        adapt(suite, place, **options)
    assert contents(place) == old
    assert resumable(place)
    adapt(suite, place, resume=True, **options)
    adapt(suite, tmp_path / "whole", method="tint", iterations=1)
    assert contents(place) == contents(tmp_path / "whole")
    assert not resumable(place)
    assert sorted(os.listdir(tmp_path)) == ["out", "whole"]


def test_the_state_goes_unless_it_is_kept(suite: Suite, tmp_path: Path) -> None:
    adapt(suite, tmp_path / "gone", **QUICK)
    adapt(suite, tmp_path / "kept", keep_state=True, **QUICK)
    assert not (tmp_path / "gone" / "state").exists()
    assert (tmp_path / "kept" / "state" / "state.safetensors").is_file()


def test_the_manifest_comes_last(suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that stops before has no folder that looks whole."""
    there: list[set[str]] = []
    write = folders.write_manifest

    def noted(path: Path, manifest: Manifest) -> None:
        there.append(set(os.listdir(path)))
        write(path, manifest)

    monkeypatch.setattr(folders, "write_manifest", noted)
    adapt(suite, tmp_path / "out", **QUICK)
    assert there == [{
        "model.safetensors", "coefficients.safetensors", "recipe.yaml", "report.json", "trace.jsonl", "state"
    }]  # fmt: skip


# --- parts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "parts"), [
    ({"method": "adamerging"}, {"coefficients"}),
    ({"method": "adarank"}, {"coefficients", "masks"}),
    ({"method": "tint"}, {"coefficients", "heads"}),
    ({"method": "symerge", "layer": "0", "refit_heads": True}, {"coefficients", "blocks", "heads"}),
    ({"method": "adarank", "with_": "surgery"}, {"coefficients", "masks", "adapters"}),
    ({"method": "probsurgery"}, {"adapters"}),
    ({"method": "heads"}, {"heads"}), ({"method": "blocks"}, {"blocks", "heads"}),
])  # fmt: skip
def test_a_folder_has_the_parts_of_its_method(
    suite: Suite, tmp_path: Path, options: dict[str, Any], parts: set[str]
) -> None:
    place = tmp_path / "out"
    adapt(suite, place, iterations=0 if options["method"] == "heads" else 1, **options)
    manifest = read_adapted(place).manifest
    assert set(manifest.parts) == {*parts, "trace", "recipe", "report"}
    of_tasks = parts & {"heads", "blocks", "adapters"}
    assert manifest.needs_task_index == bool(of_tasks)
    for part in of_tasks:
        assert {path.name for path in (place / part).iterdir()} == {f"{task}.safetensors" for task in TASKS}
    assert json.loads((place / "report.json").read_text())["method"] == options["method"]


def test_blocks_have_the_names_of_the_model(suite: Suite, tmp_path: Path) -> None:
    adapt(suite, tmp_path / "out", method="symerge", layer="0", iterations=1)
    model = load_file(tmp_path / "out" / "model.safetensors")
    block = load_file(tmp_path / "out" / "blocks" / "cars.safetensors")
    assert set(block) == {name for name in model if ".resblocks.0." in name}
    assert all(block[name].shape == model[name].shape for name in block)


def test_a_block_that_is_not_merged_has_no_place_in_the_model(suite: Suite, tmp_path: Path) -> None:
    """The shared encoder lacks its tensors, so that no file could hold the block."""
    with pytest.raises(Mismatch, match="would lack"):
        adapt(suite, tmp_path / "out", method="symerge", layer="0", exclude=("visual.transformer.*",), iterations=0)


@pytest.mark.parametrize("method", ["adamerging", "heads", "blocks", "cart++"])
@pytest.mark.parametrize("options", [{"exclude": ("visual.proj",)}, {"include": ("visual.transformer.*",)}])
def test_a_model_that_would_lack_tensors_is_refused_before_the_work(
    suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, options: dict[str, Any]
) -> None:
    monkeypatch.setattr(adapted, "open_tasks", lambda *given: pytest.fail("it began to read items"))
    with pytest.raises(Mismatch, match="would lack") as error:
        adapt(suite, tmp_path / "out", method=method, **options)
    assert error.value.exit_code == 4
    assert error.value.where == f"--{next(iter(options))}"
    assert str(error.value.hint).startswith(f"leave --{next(iter(options))} out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ["adamerging", "heads"])
def test_an_excluded_embedding_is_the_bases(suite: Suite, tmp_path: Path, method: str) -> None:
    """While it learns, as in what `eval` makes of the folder."""
    found = assembled(suite, tmp_path / "out", method=method, exclude=("visual.conv1.*",), goes_on=True, iterations=0)
    base = load_file(suite.folder / "base.safetensors")["visual.conv1.weight"]
    assert torch.equal(found.live()["visual.conv1.weight"], base)
    assert "visual.conv1.weight" not in load_file(tmp_path / "out" / "model.safetensors")
    report = taskmerge.evaluate({"mine": tmp_path / "out"}, suite=suite, split="test")
    assert len(report.rows) == len(suite.tasks)


def test_nothing_is_abandoned_that_could_be_continued(tmp_path: Path) -> None:
    an_unfinished_one(tmp_path / "out")
    Folder(tmp_path / "out", tmp_path / "out", resumes=True, new=False).abandon()
    assert resumable(tmp_path / "out")
    what_a_failed_run_left(tmp_path / "other")
    Folder(tmp_path / "other", tmp_path / "other", resumes=False, new=False).abandon()
    assert not any((tmp_path / "other").iterdir())
    what_a_failed_run_left(tmp_path / "new")
    Folder(tmp_path / "new", tmp_path / "new", resumes=False, new=True).abandon()
    assert not (tmp_path / "new").exists()
    a_finished_one(tmp_path / "done")
    Folder(tmp_path / "done", tmp_path / "done", resumes=False).abandon()
    assert is_adapted(tmp_path / "done")
