"""Where a merge may go: never over a file that it reads, by whatever path."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import taskmerge
from taskmerge.errors import UsageError

NAMES = ("cars", "dogs")
INDEX = "model.safetensors.index.json"


def tensors(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"blocks.0.fc.weight": (8, 8), "blocks.1.fc.weight": (8, 8), "head.weight": (2 + seed, 8)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def whole(folder: Path, found: dict[str, torch.Tensor], file: str = "model.safetensors") -> None:
    folder.mkdir(exist_ok=True)
    save_file(found, folder / file)


def sharded(folder: Path, found: dict[str, torch.Tensor], stem: str = "model") -> None:
    """A shard a tensor, with an index."""
    folder.mkdir()
    files = {name: f"{stem}-{place:05}-of-{len(found):05}.safetensors" for place, name in enumerate(found, start=1)}
    for name, file in files.items():
        save_file({name: found[name]}, folder / file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": files}))


def tree(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(here: Path, inputs: list[str], output: str, **options: object) -> None:
    """The merge into `output` is refused by name of usage, and every file is as it was."""
    before = tree(here)
    with pytest.raises(UsageError, match="would be lost"):
        taskmerge.merge(inputs, method="average", output=output, overwrite=True, **{"heads": "keep", **options})
    assert tree(here) == before


@pytest.mark.parametrize("options", [{}, {"shard_size": 300}])
@pytest.mark.parametrize("output", ["cars", "cars/", "cars/model.safetensors", "./dogs/../cars/model.safetensors"])
@pytest.mark.parametrize("layout", [whole, sharded])
def test_a_folder_that_is_read_stays(here: Path, layout: type, output: str, options: dict[str, int]) -> None:
    for seed, name in enumerate(NAMES):
        layout(here / name, tensors(seed))
    refused(here, list(NAMES), output, **options)


@pytest.mark.parametrize("inputs", [["cars", "dogs"], [f"cars=cars/{INDEX}", f"dogs=dogs/{INDEX}"]])
@pytest.mark.parametrize("stem", ["model", "part"])
def test_shards_and_index_stay_whatever_the_shards_are_called(here: Path, inputs: list[str], stem: str) -> None:
    for seed, name in enumerate(NAMES):
        sharded(here / name, tensors(seed), stem)
    for output in ("cars/model.safetensors", f"cars/{stem}-00002-of-00003.safetensors"):
        refused(here, inputs, output)


def test_links_lead_to_the_same_file(here: Path) -> None:
    for seed, name in enumerate(NAMES):
        whole(here / name, tensors(seed), "weights.safetensors")
    (here / "link").symlink_to(here / "cars")
    (here / "other.safetensors").symlink_to(here / "dogs" / "weights.safetensors")
    refused(here, ["link", "dogs"], "cars/weights.safetensors")
    refused(here, ["cars", "dogs"], "link/weights.safetensors")
    refused(here, ["cars", "dogs"], "other.safetensors")


def test_the_base_stays(here: Path) -> None:
    for seed, name in enumerate((*NAMES, "base")):
        whole(here / name, {"blocks.0.fc.weight": tensors(seed)["blocks.0.fc.weight"]})
    refused(here, list(NAMES), "base/model.safetensors", base="base", heads="refuse")


def test_heads_do_not_replace_an_input(here: Path) -> None:
    whole(here / "heads", tensors(0), "cars.safetensors")
    whole(here / "dogs", tensors(1))
    refused(here, ["heads/cars.safetensors", "dogs"], "merged.safetensors")


@pytest.mark.parametrize(
    ("file", "options"),
    [
        ("cars.safetensors", {"apply": True, "base": "dogs"}),
        ("cars.vector.safetensors", {"base": "dogs"}),
        ("centre.safetensors", {"centre": True}),
    ],
)
def test_vectors_replace_no_input_either(here: Path, file: str, options: dict[str, object]) -> None:
    for place, name in enumerate(NAMES):
        whole(
            here / name,
            {"blocks.0.fc.weight": tensors(place)["blocks.0.fc.weight"]},
            file if name == "cars" else "x.safetensors",
        )
    before = tree(here)
    with pytest.raises(UsageError, match="would be lost"):
        taskmerge.vectors(["cars"], output="cars", overwrite=True, **options)
    assert tree(here) == before


def test_an_output_beside_an_input_or_in_a_new_folder_replaces_nothing(here: Path) -> None:
    for seed, name in enumerate(NAMES):
        save_file(tensors(seed), here / f"{name}.safetensors")
        whole(here / f"{name}-folder", tensors(seed))
    files, before = [f"{name}.safetensors" for name in NAMES], tree(here)
    taskmerge.merge(files, method="average", output="cars", heads="keep")  # a folder of its own beside cars.safetensors
    taskmerge.merge([f"{name}-folder" for name in NAMES], method="average", output="dogs-folder/merged.safetensors",
                    heads="keep")  # fmt: skip
    after = tree(here)
    assert before.items() < after.items()
    assert {"cars/model.safetensors", "dogs-folder/merged.safetensors"} < after.keys()


def test_an_earlier_output_is_replaced_whichever_way_it_is_named(here: Path) -> None:
    for seed, name in enumerate(NAMES):
        whole(here / name, {"blocks.0.fc.weight": tensors(seed)["blocks.0.fc.weight"]})
    taskmerge.merge(list(NAMES), method="average", output="out")
    first, weights = tree(here / "out"), load_file("out/model.safetensors")
    again = taskmerge.merge([*NAMES, "out"], method="average", output="out/model.safetensors", overwrite=True)
    assert any("out" in warning for warning in again.warnings)
    second = tree(here / "out")
    assert first.pop("model.safetensors") != second.pop("model.safetensors"), "its record has no files beside it"
    assert second == first
    assert all(torch.equal(value, weights[name]) for name, value in load_file("out/model.safetensors").items())
