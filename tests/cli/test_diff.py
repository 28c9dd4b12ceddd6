"""`taskmerge diff`: norms, cosine and what changed, against naive float64; a difference is a result."""

import errno
import json
import math
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from merge_cases import SHAPES, Outcome, merge, model, refused, run, save
from torch import Tensor

import taskmerge
from taskmerge.checkpoint import difference

Files = dict[str, Path]


def diff(*arguments: object) -> Outcome:
    """A comparison that must succeed: exit code 0, whatever it finds."""
    outcome = run("diff", *arguments)
    assert outcome.code == 0, outcome.err
    assert outcome.err == ""
    return outcome


def by_hand(a: Tensor, b: Tensor) -> dict[str, float]:
    """The numbers of one tensor, entry by entry."""
    left, right = a.double().flatten().tolist(), b.double().flatten().tolist()
    norm_a = math.sqrt(math.fsum(x * x for x in left))
    norm_b = math.sqrt(math.fsum(y * y for y in right))
    gap = math.sqrt(math.fsum((x - y) ** 2 for x, y in zip(left, right, strict=True)))
    inner = math.fsum(x * y for x, y in zip(left, right, strict=True))
    return {
        "norm_a": norm_a,
        "norm_b": norm_b,
        "norm_difference": gap,
        "relative": gap / norm_a,
        "cosine": inner / norm_a / norm_b,
    }


@settings(max_examples=25, deadline=None)
@given(
    shape=st.lists(st.integers(1, 9), max_size=3),
    dtypes=st.lists(
        st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]), min_size=2, max_size=2
    ),
    seed=st.integers(0, 99),
    scale=st.sampled_from([1e-3, 1.0, 30.0]),
    step=st.integers(1, 20),
)
def test_numbers_are_their_definition(
    shape: list[int],
    dtypes: list[torch.dtype],
    seed: int,
    scale: float,
    step: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder, generator = tmp_path_factory.mktemp("diff"), torch.Generator().manual_seed(seed)
    a, b = (scale * torch.randn(shape, generator=generator).to(dtype) for dtype in dtypes)
    save(folder / "a.safetensors", {"x": a})
    save(folder / "b.safetensors", {"x": b})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(difference, "SLICE", step)
        report = taskmerge.diff(folder / "a.safetensors", folder / "b.safetensors")
    (found,) = report.tensors
    for name, wanted in by_hand(a, b).items():
        assert getattr(found, name) == pytest.approx(wanted, rel=1e-9, abs=1e-12), name
        assert getattr(report, name) == pytest.approx(wanted, rel=1e-9, abs=1e-12), name
    assert found.changed


def test_the_whole_is_the_sum_of_its_tensors(experts: Files) -> None:
    a, b = model(1, near=model(0)), model(2, near=model(0))
    report = taskmerge.diff("cars.safetensors", "dogs.safetensors")
    flat = by_hand(torch.cat([a[name].flatten() for name in SHAPES]), torch.cat([b[name].flatten() for name in SHAPES]))
    for name, wanted in flat.items():
        assert getattr(report, name) == pytest.approx(wanted, rel=1e-9)


def test_the_table(experts: Files) -> None:
    out = diff("cars.safetensors", "dogs.safetensors").out.splitlines()
    assert len(out) == len(SHAPES) + 2
    assert out[0].split() == ["‖A‖", "‖B‖", "‖A-B‖", "relative", "cosine", "tensor"]
    assert all(re.fullmatch(r"≠ ( *[\d.e+-]+){5}  \S+", line) for line in out[1:-1])
    assert {line.split()[-1] for line in out[1:-1]} == set(SHAPES)
    assert out[-1].startswith(f"{len(SHAPES)} of {len(SHAPES)} common tensors differ, relative difference 0.")
    assert all(len(line) <= 80 for line in out)


def test_the_same(experts: Files, here: Path) -> None:
    assert diff("cars.safetensors", "cars.safetensors", "-q").out == f"the same: {len(SHAPES)} tensors, byte for byte\n"
    assert diff("cars.safetensors", "cars.safetensors", "--changed").out.count("\n") == 1
    merge("*.safetensors", "-m", "average", "-o", "out/s.safetensors", "--shard-size", "1k")
    merge("*.safetensors", "-m", "average", "-o", "out/folder")
    assert diff("out/s.safetensors.index.json", "out/folder", "-q").out.startswith("the same")


def test_changed_only(experts: Files, here: Path) -> None:
    tensors = model(0)
    tensors["proj"][3, 2] += 1e-6
    tensors["norm.weight"] = -tensors["norm.weight"]
    save(here / "b.safetensors", tensors)
    out = diff("base.safetensors", "b.safetensors", "--changed").out.splitlines()
    assert [line.split()[-1] for line in out[1:-1]] == ["norm.weight", "proj"]
    assert out[1].split()[5] == "-1.00000"
    assert out[-1].startswith(f"2 of {len(SHAPES)} common tensors differ")
    said = json.loads(diff("base.safetensors", "b.safetensors", "--changed", "--json").out)
    assert [one["name"] for one in said["tensors"]] == ["norm.weight", "proj"]
    assert said["changed"] == 2
    assert not said["same"]


def test_only_one_has_it_or_in_another_shape_or_type(here: Path) -> None:
    a = {"x": torch.ones(2, 3), "y": torch.ones(4), "z": torch.ones(5), "only.a": torch.ones(1)}
    b = {"x": torch.ones(3, 2), "y": torch.ones(4).half(), "z": torch.ones(5), "only.b": torch.ones(1)}
    save(here / "a.safetensors", a)
    save(here / "b.safetensors", b)
    out = diff("a.safetensors", "b.safetensors").out
    assert re.search(r"≠ ( +–){5}  x \(\[2, 3\] → \[3, 2\]\)", out)
    assert re.search(r"≠ +2 +2 +0 +0 +1.00000  y \(F32 → F16\)", out)
    assert re.search(r"= .* z\n", out)
    assert re.search(r"(?m)^A +only\.a$", out)
    assert re.search(r"(?m)^B +only\.b$", out)
    assert out.endswith(
        "2 of 3 common tensors differ, relative difference 0, cosine 1.000000, "
        "1 only in A (marked A), 1 only in B (marked B)\n"
    )
    said: dict[str, Any] = json.loads(diff("a.safetensors", "b.safetensors", "--json").out)
    assert said["only_a"] == ["only.a"]
    assert next(one for one in said["tensors"] if one["name"] == "x")["norm_a"] is None


def test_numbers_without_a_value(here: Path) -> None:
    a = {
        "nan": torch.tensor([1.0, float("nan")]),
        "zero": torch.zeros(3),
        "none": torch.zeros(0),
        "n": torch.arange(4),
        "t": torch.tensor([True]),
    }
    b = {
        "nan": torch.tensor([1.0, float("nan")]),
        "zero": torch.ones(3),
        "none": torch.zeros(0),
        "n": torch.arange(4) * 2,
        "t": torch.tensor([False]),
    }
    save(here / "a.safetensors", a)
    save(here / "b.safetensors", b)
    text = diff("a.safetensors", "b.safetensors", "--json").out
    assert "NaN" not in text
    found = {one["name"]: one for one in json.loads(text)["tensors"]}
    assert not found["nan"]["changed"]  # the same bytes
    assert found["nan"]["norm_a"] is None
    assert found["zero"]["relative"] is None
    assert found["zero"]["cosine"] is None
    assert found["zero"]["norm_difference"] == pytest.approx(math.sqrt(3))
    assert not found["none"]["changed"]
    assert found["none"]["relative"] == 0
    assert found["n"]["cosine"] == pytest.approx(1)
    assert found["t"]["changed"]


def test_minus_zero_is_a_change_of_bytes(here: Path) -> None:
    save(here / "a.safetensors", {"x": torch.zeros(2)})
    save(here / "b.safetensors", {"x": -torch.zeros(2)})
    (found,) = taskmerge.diff("a.safetensors", "b.safetensors").tensors
    assert found.changed
    assert found.norm_difference == 0


def test_a_change_in_one_slice_alone(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(difference, "SLICE", 4)
    for place in range(10):
        save(here / "a.safetensors", {"x": torch.arange(10.0)})
        save(here / "b.safetensors", {"x": torch.arange(10.0).index_fill(0, torch.tensor([place]), 99.0)})
        report = taskmerge.diff("a.safetensors", "b.safetensors")
        assert [one.name for one in report.changed] == ["x"]
        assert report.norm_difference == 99 - place


def test_include_and_exclude(experts: Files) -> None:
    report = taskmerge.diff("cars.safetensors", "dogs.safetensors", include=("blocks.*",), exclude=("*.bias",))
    assert [one.name for one in report.tensors] == sorted(
        name for name in SHAPES if "blocks" in name and "bias" not in name
    )
    out = diff("cars.safetensors", "dogs.safetensors", "--include", "blocks.*", "--exclude", "*.bias", "-q").out
    assert out.startswith("4 of 4 common")


def test_long_names_keep_their_end_on_a_terminal(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from taskmerge.cli import diff as command

    name = "visual.transformer.resblocks.11.attn.in_proj_weight"
    save(here / "a.safetensors", {name: torch.ones(2)})
    report = taskmerge.diff("a.safetensors", "a.safetensors")
    assert command.table(report, report.tensors)[1].endswith("  " + name)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    line = command.table(report, report.tensors)[1]
    assert len(line) <= 80
    assert line.endswith("in_proj_weight")
    assert "…" in line


def test_refusals(here: Path) -> None:
    save(here / "a.safetensors", model(0))
    refused(3, "diff", "a.safetensors", "b.safetensors", says=("b.safetensors", "no such file"))
    torch.save(model(0), here / "a.bin")
    refused(3, "diff", "a.safetensors", "a.bin", says=("--allow-pickle",))
    assert diff("a.safetensors", "a.bin", "--allow-pickle", "-q").out.startswith("the same")
    data = (here / "a.safetensors").read_bytes()
    (here / "a.safetensors").write_bytes(data[:-1])
    refused(3, "diff", "a.safetensors", "a.safetensors", says=("truncated",))


def test_names_cannot_drive_the_terminal(here: Path) -> None:
    """Whoever writes a file chooses its tensors' names."""
    evil = "blocks.0.\x1b[31m\x1b]0;title\x07\nerror: w.weight"
    for index, name in enumerate(("a", "b")):
        save(here / f"{name}.safetensors", {evil: torch.full((3, 3), float(index)), f"{name}\x1b[2J": torch.ones(2)})
    for arguments in (("diff", "a.safetensors", "b.safetensors"), ("inspect", "--tensors", "a.safetensors")):
        outcome = run(*arguments)
        assert outcome.code == 0
        assert "\\x1b[31m" in outcome.out
        assert set(outcome.out) - {"\n"} == {one for one in outcome.out if one.isprintable()}
        assert "\nerror" not in outcome.out


def test_a_file_without_permission_is_an_input_that_cannot_be_read(
    here: Path, experts: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The argument parser's own look at permissions would make it wrong usage."""
    monkeypatch.setattr(os, "access", lambda *anything, **options: False)
    monkeypatch.setattr(os, "open", denied)
    for command in (("diff", "cars.safetensors", "dogs.safetensors"), ("verify", "cars.safetensors")):
        refused(3, *command, says=("cars.safetensors: cannot be opened: Permission denied", "check path"))


def denied(path: object, *anything: object, **options: object) -> int:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def test_configurations_that_change_what_the_same_weights_mean_are_noted(here: Path, experts: Files) -> None:
    for name, theta in (("one", 1e4), ("two", 1e6), ("three", 1e4)):
        (here / name).mkdir()
        (here / name / "model.safetensors").write_bytes(experts["base"].read_bytes())
        (here / name / "config.json").write_text(json.dumps({"rope_theta": theta, "eos_token_id": theta}))
    said = "config.json differs in what changes the meaning of weights: `rope_theta`: 10000.0 in A; 1000000.0 in B"
    report = json.loads(run("diff", "one", "two", "--json").out)
    assert (report["notes"], report["same"]) == ([said], True)
    assert json.loads(run("diff", "one", "three", "--json").out)["notes"] == []
    assert " ".join(said.split()) in " ".join((found := run("diff", "one", "two")).out.split() + found.err.split())
