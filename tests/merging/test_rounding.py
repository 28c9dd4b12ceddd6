"""What rounding explains and what it does not: against plain arithmetic on Python's floats, and whole merges."""

import itertools
import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import taskmerge
from taskmerge.checkpoint.checkpoint import open_checkpoint
from taskmerge.cli.app import run
from taskmerge.merging.differences import Look, each
from taskmerge.merging.rounding import LastBits, Results, last_bits
from taskmerge.merging.verification import Changed
from taskmerge.methods.registry import methods
from vector_cases import COUNTER, TASKS, experts, load, record_of, resealed, write_models

DIGITS = {torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}
"""Binary digits of a number."""
ELSEWHERE = {"torch": "2.0.1", "cpu": "SVE256", "rounding": "0" * 16}


# --- one tensor ------------------------------------------------------------------------------------------------


def judged(
    folder: Path, file: torch.Tensor, again: torch.Tensor, exact: torch.Tensor, terms: int = 1
) -> LastBits | None:
    places = [folder / f"{name}.safetensors" for name in ("file", "again", "exact")]
    for place, tensor in zip(places, (file, again, exact), strict=True):
        save_file({"x": tensor}, place)
    opened = [open_checkpoint(place) for place in places]
    try:
        return last_bits(Results(*opened), Look("x", threading.Event()), terms, torch.float32)
    finally:
        for one in opened:
            one.close()


def unit(value: float, dtype: torch.dtype) -> float:
    """The unit in the last place of a number, by its definition."""
    return 2.0 ** (math.floor(math.log2(abs(value))) - DIGITS[dtype] + 1)


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(sorted(DIGITS, key=str)),
    st.integers(0, 2**32),
    st.lists(st.integers(-3, 3), min_size=64, max_size=64),
)
def test_the_last_bits_are_counted_in_units_of_the_largest_entry(
    tmp_path_factory: pytest.TempPathFactory, dtype: torch.dtype, seed: int, steps: list[int]
) -> None:
    """Every entry is moved by some units of the largest entry, as much as the result here is off too."""
    generator = torch.Generator().manual_seed(seed)
    exact = torch.randn(64, generator=generator, dtype=torch.float64).to(dtype).double()
    largest = float(exact.abs().max())
    one = unit(largest, dtype)
    again = (exact + 3 * one * torch.where(torch.arange(64) % 2 == 0, 1.0, -1.0)).to(dtype)
    file = (again.double() + one * torch.tensor(steps, dtype=torch.float64)).to(dtype)
    gaps = [abs(a - b) for a, b in zip(file.double().tolist(), again.double().tolist(), strict=True)]
    found = judged(tmp_path_factory.mktemp("one"), file, again, exact)
    if 3 * 4 * one > largest * 2.0**-12:  # of a short type that is no rounding of float32's any more
        assert dtype != torch.float32
        return
    assert found is not None
    assert found.entries == sum(gap > 0 for gap in gaps)
    wanted = max(1, math.ceil(math.log2(max(gaps) / one + 1)))
    assert found.bits == wanted


@pytest.mark.parametrize("dtype", sorted(DIGITS, key=str))
@pytest.mark.parametrize("terms", [1, 8, 4096])
def test_how_far_rounding_goes(dtype: torch.dtype, terms: int, tmp_path: Path) -> None:
    """To a rounding of what is off by 4 times the error here, and 7 √terms units of roundoff: no further."""
    exact = torch.linspace(-1, 1, 301, dtype=torch.float64)
    off = 5e-7
    again = (exact + off * (-1.0) ** torch.arange(301)).to(dtype)
    error = max(
        0.0,
        *(abs(float(a) - float(e)) - abs(float(e)) * 2.0 ** -DIGITS[dtype] for a, e in zip(again, exact, strict=True)),
    )
    edge = 4 * error + 7 * math.sqrt(terms) * 2.0**-24
    for place in (0, 150, 299):
        value, half = float(exact[place]), abs(float(exact[place])) * 2.0 ** -DIGITS[dtype]
        for factor, explained in ((0.4, True), (1.01, False)):
            moved = torch.tensor(value + factor * edge + half * (1.01 if not explained else 0), dtype=torch.float64)
            stored = moved.to(dtype)
            while not explained and float(stored) < float(moved):
                stored = torch.nextafter(stored, torch.tensor(2.0, dtype=dtype))
            file = again.clone()
            file[place] = stored
            assert (judged(tmp_path, file, again, exact, terms) is not None) == explained, (place, factor)


def test_what_is_off_by_half_the_digits_is_no_rounding(tmp_path: Path) -> None:
    """However far the result here is off, as where another number of components was taken."""
    exact = torch.linspace(-1, 1, 64, dtype=torch.float64)
    again = (exact + 0.1).float()
    assert judged(tmp_path, again, again, exact) is None
    assert judged(tmp_path, (exact + 2.0**-13).float(), again, exact) is not None


@pytest.mark.parametrize("shape", [(), (0, 4), (1,), (3, 5)])
def test_zeros_and_tensors_without_entries(shape: tuple[int, ...], tmp_path: Path) -> None:
    zeros = torch.zeros(shape)
    assert judged(tmp_path, zeros, zeros, zeros.double()) == LastBits(0, 1) or not zeros.numel()


def test_a_stop_is_heard_while_tensors_are_looked_at() -> None:
    """Ctrl-C ends all workers at the next piece, whatever they are at: none waits for the work of all tensors."""
    seen = []

    def forever(look: Look) -> None:
        for piece in look.through(itertools.count()):
            if piece == 0:
                seen.append(look.name)
                if len(seen) == 2:
                    threading.Timer(0.1, os.kill, (os.getpid(), 2)).start()

    with pytest.raises(KeyboardInterrupt):
        each([str(number) for number in range(50)], forever, 2)
    assert len(seen) == 2
    assert not [one for one in threading.enumerate() if one.name.startswith("merge")]


# --- whole merges ----------------------------------------------------------------------------------------------


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return write_models(tmp_path / "models")


def merged(models: dict[str, Path], out: Path, **options: Any) -> Path:
    options = {"method": "cart", "rank": 3, "base": models["base"], **options}
    return Path(taskmerge.merge(experts(models), output=out, **options).paths[0])


def moved(path: Path, tensors: dict[str, torch.Tensor], **record: Any) -> None:
    """The file with other tensors and entries of its record, as taskmerge elsewhere would have written it."""
    with safe_open(path, "pt") as file:
        metadata = dict(file.metadata())
    metadata["taskmerge"] = json.dumps(resealed({**record_of(path), **record}))
    save_file({**load_file(path), **tensors}, path, metadata)


def nudged(tensor: torch.Tensor) -> torch.Tensor:
    """Every other entry one unit up or down."""
    up = torch.nextafter(tensor, torch.full_like(tensor, torch.finfo(tensor.dtype).max))
    return torch.where(torch.arange(tensor.numel()).reshape(tensor.shape) % 2 == 0, up, tensor)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", ["cart", "tsv_m", "task_arithmetic", "average"])
def test_last_bits_from_elsewhere_are_explained(
    method: str, dtype: str, models: dict[str, Path], tmp_path: Path
) -> None:
    rank = {"rank": 3} if method == "cart" else {}
    path = Path(
        taskmerge.merge(
            experts(models), method=method, base=models["base"], dtype=dtype, output=tmp_path / "m.safetensors", **rank
        ).paths[0]
    )  # fmt: skip
    names = [name for name, value in load(path).items() if value.is_floating_point() and value.numel() > 1]
    held = {name: load(path)[name] for name in names}
    if dtype == "float32":
        moved(path, {name: nudged(value) for name, value in held.items()}, arithmetic=ELSEWHERE)
        found = taskmerge.verify(path, [tmp_path / "models"])
        assert found.verdict == "same up to last bits"
        assert found.last_bits == 1
        assert found.entries == sum((value.numel() + 1) // 2 for value in held.values())
        assert found.elsewhere[:2] == (
            f"torch 2.0.1 there, {torch.__version__} here",
            f"CPU code SVE256 there, {torch.backends.cpu.get_cpu_capability()} here",
        )
    else:  # a number that lies between two of a short type is rounded to one of them by any arithmetic
        moved(path, {name: nudged(value) for name, value in held.items()}, arithmetic=ELSEWHERE)
        with pytest.raises(Changed, match="are not what the recipe gives"):
            taskmerge.verify(path, [tmp_path / "models"])


def test_the_same_arithmetic_rounds_in_one_way(models: dict[str, Path], tmp_path: Path) -> None:
    """One bit, where torch and the CPU are the same, is a change."""
    path = merged(models, tmp_path / "m.safetensors")
    moved(path, {"proj": nudged(load(path)["proj"])})
    with pytest.raises(Changed, match="1 of 8 tensors are not what the recipe gives: `proj`"):
        taskmerge.verify(path, [tmp_path / "models"])


def tampered(path: Path) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """Changes that no arithmetic makes, each with the tensor that it is in."""
    held = load(path)
    weight = held["blocks.0.attn.weight"].clone()
    yield "blocks.0.attn.weight", {"blocks.0.attn.weight": weight.flip(0)}
    one = weight.clone()
    one[3, 4] += 0.003
    yield "blocks.0.attn.weight", {"blocks.0.attn.weight": one}
    for bit in (14, 20, 23, 31):
        bits = weight.clone().view(torch.int32)
        bits[int(weight.abs().argmax()) // 16, int(weight.abs().argmax()) % 16] ^= 1 << bit if bit < 31 else -(1 << 31)
        yield "blocks.0.attn.weight", {"blocks.0.attn.weight": bits.view(torch.float32)}
    yield COUNTER, {COUNTER: held[COUNTER] + 1}
    yield "proj", {"proj": held["proj"].bfloat16().float()}


def test_tampering_elsewhere_is_found(models: dict[str, Path], tmp_path: Path) -> None:
    path = merged(models, tmp_path / "m.safetensors")
    raw = path.read_bytes()
    for name, tensors in tampered(path):
        moved(path, tensors, arithmetic=ELSEWHERE)
        with pytest.raises(Changed, match=f"1 of 8 tensors are not what the recipe gives: `{name}`"):
            taskmerge.verify(path, [tmp_path / "models"])
        path.write_bytes(raw)


def test_what_is_copied_is_never_rounded(models: dict[str, Path], tmp_path: Path) -> None:
    path = merged(models, tmp_path / "m.safetensors", keep_from=[("base", "proj")])
    moved(path, {"proj": nudged(load(path)["proj"])}, arithmetic=ELSEWHERE)
    with pytest.raises(Changed, match="`proj`"):
        taskmerge.verify(path, [tmp_path / "models"])


def test_the_same_bytes_from_elsewhere_are_the_same(models: dict[str, Path], tmp_path: Path) -> None:
    path = merged(models, tmp_path / "m.safetensors")
    moved(path, {}, arithmetic=ELSEWHERE)
    found = taskmerge.verify(path, [tmp_path / "models"])
    assert (found.verdict, found.same_file, found.last_bits) == ("same bytes", False, 0)
    assert "torch 2.0.1 there" in found.notes[0]
    assert "the same bytes all the same" in found.notes[0]


def test_where_it_was_merged_may_not_be_recorded(models: dict[str, Path], tmp_path: Path) -> None:
    """Files of before, without a seal."""
    path = merged(models, tmp_path / "m.safetensors")
    record = {key: value for key, value in record_of(path).items() if key not in ("arithmetic", "seal")}
    save_file(
        {**load(path), "proj": nudged(load(path)["proj"])}, path, {"format": "pt", "taskmerge": json.dumps(record)}
    )
    found = taskmerge.verify(path, [tmp_path / "models"])
    assert (found.last_bits, found.elsewhere) == (1, ("where it was merged is not recorded",))


def test_the_command_says_which_of_three(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, places = merged(models, tmp_path / "m.safetensors"), str(tmp_path / "models")
    assert run(["verify", str(path), places, "-q"]) == 0
    assert "same bytes, verified (the whole file came out again" in capsys.readouterr().out
    moved(path, {"proj": nudged(load(path)["proj"])}, arithmetic=ELSEWHERE)
    assert run(["verify", str(path), places, "-q"]) == 0
    said = capsys.readouterr().out
    assert "same up to 1 last bit, verified (torch 2.0.1 there, " in said
    assert "96 of 1,626 numbers differ by rounding)" in said
    assert run(["verify", str(path), places, "--json", "-q"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["verdict"], document["last_bits"], document["entries"]) == ("same up to last bits", 1, 96)
    moved(path, {"proj": load(path)["proj"] * 2})
    assert run(["verify", str(path), places, "--json", "-q"]) == 3
    streams = capsys.readouterr()
    document = json.loads(streams.out)
    assert document["verdict"] == "changed"
    assert [change["file"] for change in document["changed"]] == ["m.safetensors"]
    assert "changed: m.safetensors (1 of 8 tensors" in streams.err


# --- other code of the same processor --------------------------------------------------------------------------

SCRIPT = """
import json, sys, taskmerge
folder, methods = sys.argv[1], sys.argv[2].split()
for method in methods:
    ins = [f"{folder}/models/{task}.safetensors" for task in "abcd"]
    base, output = f"{folder}/models/base.safetensors", f"{folder}/out/{method}.safetensors"
    taskmerge.merge(ins, method=method, base=base, output=output)
"""
CODE = (
    {"ATEN_CPU_CAPABILITY": "default"},
    {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    {"MKL_CBWR": "COMPATIBLE"},
    {"OPENBLAS_CORETYPE": "Prescott"},
)


def large_models(folder: Path, tasks: Sequence[str] = TASKS) -> None:
    """Matrices that blocked code is used for."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(3)
    shapes = {"blocks.0.attn.weight": (96, 64), "blocks.1.mlp.weight": (40, 200), "blocks.1.mlp.bias": (300,)}
    base = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    save_file(base, folder / "base.safetensors")
    for task in tasks:
        moved = {name: value + 0.1 * torch.randn(value.shape, generator=generator) for name, value in base.items()}
        save_file(moved, folder / f"{task}.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("code", CODE, ids=lambda code: "-".join(code.values()))
def test_every_method_verifies_under_other_code(code: dict[str, str], tmp_path: Path) -> None:
    """Merged by other instructions of this processor, as on another type: last bits at most, and it is said why."""
    large_models(tmp_path / "models")
    names = [name for name, one in methods().items() if one.tasks[1] is None and name != "lines"]
    environment = {**os.environ, **code}
    subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path), " ".join(names)], env=environment, check=True)
    verdicts = {}
    for name in names:
        path = tmp_path / "out" / f"{name}.safetensors"
        found = taskmerge.verify(path, [tmp_path / "models"])
        verdicts[name] = found.verdict
        assert found.verdict in ("same bytes", "same up to last bits")
        assert found.elsewhere or found.same_file
    if code == CODE[0] and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"):
        assert verdicts["task_arithmetic"] == "same up to last bits", "or this tests nothing"
