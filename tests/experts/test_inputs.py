"""How arguments become experts and a base; the command line's tests have the messages."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from taskmerge.errors import BadFile, UsageError
from taskmerge.experts.arguments import named
from taskmerge.experts.inputs import InputOptions, resolve


def save(path: Path, value: float = 1.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"w": torch.full((2, 2), value)}, path)
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_paths_globs_and_names(here: Path) -> None:
    for name in ("a.safetensors", "b.safetensors", "x=1.safetensors", "m/model.safetensors", "n/model.safetensors"):
        save(here / name)
    assert named(["b.safetensors", "a.safetensors"]) == [("b", Path("b.safetensors")), ("a", Path("a.safetensors"))]
    assert named(["[ab].safetensors"]) == [("a", Path("a.safetensors")), ("b", Path("b.safetensors"))]
    assert named(["x=1.safetensors"]) == [("x=1", Path("x=1.safetensors"))], "what exists is a path"
    assert named(["y=x=1.safetensors"]) == [("y", Path("x=1.safetensors"))]
    assert named(["m", "n/model.safetensors"]) == [("m", Path("m")), ("n", Path("n/model.safetensors"))]
    assert named({"z": "a.safetensors"}) == [("z", Path("a.safetensors"))]
    assert [task for task, _ in named(["*/"])] == ["m", "n"]
    for bad in ("c.safetensors", "z=c.safetensors", "*.bin"):
        with pytest.raises(BadFile):
            named([bad])
    for bad in ("=a.safetensors", "p/q=a.safetensors", "..=a.safetensors"):
        with pytest.raises(UsageError):
            named([bad])


def test_experts_are_sorted_by_name_whatever_their_order(here: Path) -> None:
    files = [save(here / f"{name}.safetensors", index) for index, name in enumerate("cab")]
    for order in (files, files[::-1]):
        found = resolve(order, InputOptions())
        assert [one.task for one in found.experts] == ["a", "b", "c"]
        assert found.base is None


@pytest.mark.parametrize("way", ["file", "folder", "model", "name", "link"])
def test_the_base_by_every_kind_of_name(here: Path, way: str) -> None:
    save(here / "a.safetensors", 2)
    if way == "file":
        inputs = ["a.safetensors", str(save(here / "pretrained.safetensors"))]
    elif way in ("folder", "model"):
        path = save(here / "zeroshot" / "model.safetensors")
        inputs = ["a.safetensors", str(path if way == "model" else path.parent)]
    elif way == "name":
        inputs = ["a.safetensors", f"base={save(here / 'v1.safetensors')}"]
    else:
        save(here / "v1.safetensors")
        (here / "base.safetensors").symlink_to(here / "v1.safetensors")
        inputs = ["a.safetensors", "base.safetensors"]
    found = resolve(inputs, InputOptions())
    assert [one.task for one in found.experts] == ["a"]
    assert found.base is not None
    assert len(found.notes) == 1


def test_the_base_by_option_is_known_under_another_path(here: Path) -> None:
    save(here / "a.safetensors", 2)
    save(here / "start.safetensors")
    (here / "link.safetensors").symlink_to(here / "start.safetensors")
    found = resolve(["*.safetensors"], InputOptions(base=here / "start.safetensors"))
    assert [one.task for one in found.experts] == ["a"]


def test_keep_base_keeps_it_and_still_uses_it(here: Path) -> None:
    save(here / "a.safetensors", 2)
    save(here / "base.safetensors")
    found = resolve(["*.safetensors"], InputOptions(keep_base=True))
    assert [one.task for one in found.experts] == ["a", "base"]
    assert found.base is not None
    assert found.warnings == ()


def test_outputs_are_known_as_file_shard_index_and_folder(here: Path) -> None:
    import json

    def earlier(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"w": torch.ones(2, 2)}, path, {"taskmerge": json.dumps({"kind": "merge", "tasks": []})})

    save(here / "a.safetensors")
    for name in (
        "out.safetensors",
        "out-00001-of-00002.safetensors",
        "dir/model.safetensors",
        "dir/model-00001-of-00001.safetensors",
        "out-g0123abcd-00001-of-00002.safetensors",
        "dir/model-g0123abcd-00001-of-00001.safetensors",
    ):
        earlier(here / name)
    inputs = ["a.safetensors", "out*.safetensors", "dir/*.safetensors"]
    found = resolve(inputs, InputOptions(outputs=(here / "out.safetensors", here / "dir")))
    assert [one.task for one in found.experts] == ["a"]
    assert len(found.warnings) == 6


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("meta-llama/Llama-3.1-8B", "`hf download meta-llama/Llama-3.1-8B --local-dir Llama-3.1-8B`"),
        ("hf://org/name.v2", "`hf download org/name.v2 --local-dir name.v2`"),
        ("there/name", "check the path"),
        ("org/name.safetensors", "check the path"),
        ("../name", "check the path"),
        ("a/b/c", "check the path"),
        ("/org/name", "check the path"),
    ],
)
def test_what_looks_like_a_hubs_name_is_met_with_the_command_that_fetches_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, hint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    with pytest.raises(BadFile, match="there is no such file") as caught:
        resolve([text], InputOptions())
    assert hint in (caught.value.hint or "")


@settings(deadline=None, max_examples=60)
@given(st.text(st.sampled_from("ab[]!*?{}()= '-"), min_size=1, max_size=9), st.text("ab", max_size=3))
def test_an_input_is_skipped_by_its_name_to_the_letter(
    tmp_path_factory: pytest.TempPathFactory, stem: str, other: str
) -> None:
    """As our own hints give it, whatever signs a glob would take it for."""
    folder = tmp_path_factory.mktemp("skipped")
    path, rest = folder / f"m{stem}.safetensors", folder / f"other-{other}.safetensors"
    for one in (path, rest):
        save_file({"w": torch.zeros(1)}, one)
    found = resolve({"one": path, "other": rest}, InputOptions(skip_input=(path.name,)))
    assert [source.where for source in found.experts] == [str(rest)]
    found.close()
