"""`taskmerge.merge` from Python: the same names as on the command line, typed receipts, one family of errors."""

import ast
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import taskmerge


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    found = {}
    for seed, name in enumerate(("base", "cars", "dogs")):
        generator = torch.Generator().manual_seed(seed)
        tensors = {"h.0.fc.weight": torch.randn(6, 4, generator=generator), "norm": torch.randn(3, generator=generator)}
        found[name] = tmp_path / f"{name}.safetensors"
        save_file(tensors, found[name])
    return found


def test_inputs_are_paths_a_glob_or_a_mapping(files: dict[str, Path], tmp_path: Path) -> None:
    experts = [files["cars"], files["dogs"]]
    ways = [experts, f"{tmp_path}/[cd]*.safetensors", {"cars": files["cars"], "dogs": str(files["dogs"])}]
    for number, inputs in enumerate(ways):
        receipt = taskmerge.merge(inputs, method="average", output=tmp_path / f"{number}.out.safetensors")
        assert isinstance(receipt, taskmerge.MergeReceipt)
        average = (load_file(files["cars"])["norm"] + load_file(files["dogs"])["norm"]) / 2
        torch.testing.assert_close(load_file(receipt.paths[0])["norm"], average)
    assert len({Path(tmp_path / f"{number}.out.safetensors").read_bytes() for number in range(3)}) == 1


def test_options_are_keywords_and_sequences_are_grids(files: dict[str, Path], tmp_path: Path) -> None:
    receipt = taskmerge.merge(
        [files["cars"], files["dogs"]], base=files["base"], method="truncated-task-arithmetic", rank=[1, 0.5],
        coefficient=0.4, weights={"cars": 2}, exclude="norm", dtype="bfloat16", output=tmp_path / "x.safetensors",
    )  # fmt: skip
    assert [one.options["rank"] for one in receipt.outputs] == [1, 0.5]
    merged = load_file(receipt.paths[0])
    assert set(merged) == {"h.0.fc.weight"}
    assert merged["h.0.fc.weight"].dtype == torch.bfloat16
    assert receipt.provenance["recipe"]["weights"] == {"cars": 2}


@pytest.mark.parametrize(
    ("keywords", "code", "says"),
    [
        ({"rnk": 1}, 2, "did you mean `--rank`?"),
        ({"rank": 0}, 2, "rank 0"),
        ({"on_missing": "maybe"}, 2, "refuse, base, skip"),
        ({"method": "ties"}, 2, "--base FILE"),
        ({"base": "nowhere.safetensors"}, 3, "there is no such file"),
        ({"max_memory": 1000}, 5, "--max-memory"),
    ],
)
def test_errors_carry_the_exit_code(
    files: dict[str, Path], tmp_path: Path, keywords: dict[str, object], code: int, says: str
) -> None:
    with pytest.raises(taskmerge.TaskmergeError) as caught:
        taskmerge.merge([files["cars"], files["dogs"]], output=tmp_path / "x.safetensors", **keywords)
    assert caught.value.exit_code == code
    assert says in str(caught.value)
    assert not (tmp_path / "x.safetensors").exists()


def test_no_file_stays_open(files: dict[str, Path], tmp_path: Path) -> None:
    def merge() -> int:
        taskmerge.merge(
            list(files.values()), method="task_arithmetic", output=tmp_path / "x.safetensors", overwrite=True
        )
        return len(os.listdir("/proc/self/fd"))

    assert len({merge() for _ in range(3)}) == 1


def test_type_checkers_see_every_public_name_where_it_is_loaded_from() -> None:
    source = ast.parse(Path(taskmerge.__file__).read_text())
    (block,) = [node for node in source.body if isinstance(node, ast.If)]
    seen = {one.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for one in node.names}
    assert seen == taskmerge._HOMES
    assert sorted([*seen, "__version__"]) == sorted(taskmerge.__all__)
