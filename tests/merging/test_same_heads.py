"""Heads that are kept per task, a second time in one directory: the same ones are accepted, others are refused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import taskmerge
from taskmerge.checkpoint.ahead import stamp
from taskmerge.errors import BadOutput

TASKS = ("cars", "dogs")


def expert(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    body = {f"blocks.{n}.fc.weight": torch.randn(4, 4, generator=generator) for n in range(2)}
    return body | {"head.weight": torch.randn(2 + seed, 4, generator=generator)}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for seed, task in enumerate(TASKS):
        save_file(expert(seed), f"{task}.safetensors")
    lines = [f"  {task}: {{expert: {task}.safetensors, head: expert, classes: [{', '.join('abc'[: 2 + seed])}], "
             "data: {test: {file: d.npz, x: x, y: y}}}" for seed, task in enumerate(TASKS)]  # fmt: skip
    backbone = "backbone: {library: torchvision, model: resnet18}"
    Path("suite.yaml").write_text("\n".join(["taskmerge: 1", "name: s", backbone, "tasks:", *lines]) + "\n")
    return tmp_path


def merge(output: str, method: str = "average", **options: object) -> list[str]:
    """The files that a merge by the suite wrote."""
    receipt = taskmerge.merge(suite="suite.yaml", method=method, output=output, **options)
    return sorted(file for one in receipt.outputs for file in one.files)


HEADS = [f"heads/{task}.safetensors" for task in TASKS]


def test_a_second_output_beside_the_first_shares_its_heads(here: Path) -> None:
    assert merge("one.safetensors") == [*HEADS, "one.safetensors"]
    before = {head: stamp(Path(head)) for head in HEADS}
    assert merge("two.safetensors", "karcher") == [*HEADS, "two.safetensors"]
    assert {head: stamp(Path(head)) for head in HEADS} == before
    assert {tuple(load_file(head)["head.weight"].shape) for head in HEADS} == {(2, 4), (3, 4)}


def test_one_head_alone_may_be_there(here: Path) -> None:
    merge("one.safetensors")
    Path(HEADS[0]).unlink()
    merge("two.safetensors")
    assert Path(HEADS[0]).is_file()


@pytest.mark.parametrize("other", ["values", "shape", "dtype", "name", "more", "damaged"])
def test_another_head_is_refused_before_anything_is_written(here: Path, other: str) -> None:
    merge("one.safetensors")
    head, path = load_file(HEADS[1])["head.weight"], Path(HEADS[1])
    changed = {
        "values": {"head.weight": head + 1}, "shape": {"head.weight": head[:2].clone()},
        "dtype": {"head.weight": head.half()}, "name": {"heads.weight": head},
        "more": {"head.weight": head, "head.bias": torch.zeros(3)},
    }.get(other)  # fmt: skip
    if changed is None:
        path.write_bytes(b"x")
    else:
        save_file(changed, path)
    with pytest.raises(BadOutput, match=r"heads/dogs\.safetensors"):
        merge("two.safetensors")
    assert not Path("two.safetensors").exists()


def test_overwriting_replaces_them(here: Path) -> None:
    merge("one.safetensors")
    save_file({"head.weight": torch.zeros(2, 4)}, HEADS[0])
    merge("one.safetensors", overwrite=True)
    assert load_file(HEADS[0])["head.weight"].abs().sum() > 0


def test_a_folder_has_heads_of_its_own(here: Path) -> None:
    merge("one.safetensors")
    assert {file for file in merge("out") if "heads" in file} == {f"out/{head}" for head in HEADS}
