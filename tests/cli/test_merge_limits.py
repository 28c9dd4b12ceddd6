"""Exit codes 5, 6 and 7: too little memory, disk or device; an output that is in the way; a number that went wrong."""

import errno
import os
from pathlib import Path

import pytest
import torch
from merge_cases import digest, load, merge, model, refused_merge, run, save, tree, write_experts

from taskmerge.checkpoint.checkpoint import Checkpoint
from taskmerge.errors import BadNumber
from taskmerge.merging import outputs
from taskmerge.merging.write import check_numbers

Files = dict[str, Path]
ALL = "*.safetensors"


# --- 5: too little ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--max-memory", "1M"], ["-m", "average", "--max-memory", "1k"]])
def test_too_little_memory(experts: Files, here: Path, arguments: list[str]) -> None:
    refused_merge(5, ALL, *arguments, folder=here, says=("this merge needs", "MB, --max-memory allows", "allow more"))


@pytest.mark.parametrize("arguments", [[], ["--dry-run"], ["-o", "new/folder/out.safetensors"], ["-o", "folder"]])
def test_too_little_disk(experts: Files, here: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    monkeypatch.setattr(outputs, "room_at", lambda path: 1000)
    refused_merge(5, ALL, *arguments, folder=here, says=(str(here), "the disk has", "GB left", "--dtype"))


def test_too_little_disk_for_a_grid(experts: Files, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "room_at", lambda path: 7000)
    merge(ALL)
    refused_merge(5, ALL, "--coefficient", "1,2,3", folder=here, says=("the outputs need",))


@pytest.mark.parametrize("device", ["cuda:99", "cuda"])
def test_no_such_device(experts: Files, here: Path, device: str) -> None:
    if torch.cuda.is_available() and device == "cuda":
        pytest.skip("this machine has one")
    refused_merge(5, ALL, "--device", device, folder=here, says=(f"there is no device `{device}`", "--device cpu"))


# --- 6: outputs ------------------------------------------------------------------------------------------------


def test_an_output_that_exists_stays_as_it_is(experts: Files, here: Path) -> None:
    (here / "out.safetensors").write_bytes(b"precious")
    refused_merge(
        6,
        "cars.safetensors",
        "dogs.safetensors",
        "-o",
        "out.safetensors",
        folder=here,
        says=("out.safetensors: exists already", "--overwrite"),
    )
    assert (here / "out.safetensors").read_bytes() == b"precious"


def test_a_folder_that_holds_a_model_stays_as_it_is(experts: Files, here: Path) -> None:
    (here / "out").mkdir()
    (here / "out" / "model.safetensors").write_bytes(b"precious")
    refused_merge(6, ALL, "-o", "out", folder=here, says=("out/model.safetensors: exists already", "--overwrite"))
    merge(ALL, "-o", "out", "--overwrite")


def test_one_existing_point_of_a_grid_stops_it_all(experts: Files, here: Path) -> None:
    (here / "merged-cart-coefficient2.0.safetensors").write_bytes(b"precious")
    says = ("merged-cart-coefficient2.0.safetensors: exists already",)
    refused_merge(6, "cars.safetensors", "dogs.safetensors", "--coefficient", "1,2,3", folder=here, says=says)


IN_THE_WAY = pytest.mark.parametrize(
    ("there", "arguments"),
    [
        ("merged-cart.safetensors", ()),
        ("merged-cart-coefficient2.0.safetensors", ("--coefficient", "1,2,3")),
        ("out-00003-of-00007.safetensors", ("-o", "out.safetensors")),
        ("out.safetensors.index.json", ("-o", "out.safetensors")),
        ("out/model.safetensors", ("-o", "out")),
        ("out/README.md", ("-o", "out")),
        ("out/rank2/README.md", ("-o", "out", "--rank", "1,2")),
        ("heads/dogs.safetensors", ("--heads", "keep")),
    ],
)


def in_the_way(here: Path, there: str, arguments: tuple[str, ...]) -> tuple[str, ...]:
    """Two experts with heads of their own, a file where an output would be, and the arguments of their merge."""
    for seed, task in enumerate(("cars", "dogs")):
        save(here / f"{task}.safetensors", model(seed, head=torch.ones(seed + 2)))
    keep = () if "--heads" in arguments else ("--exclude", "head")
    (here / there).parent.mkdir(parents=True, exist_ok=True)
    (here / there).write_bytes(b"precious")
    return ("cars.safetensors", "dogs.safetensors", *keep, *arguments)


@IN_THE_WAY
def test_an_output_that_exists_is_found_before_the_plan_is_shown_and_a_byte_is_read(
    here: Path, monkeypatch: pytest.MonkeyPatch, there: str, arguments: tuple[str, ...]
) -> None:
    words = in_the_way(here, there, arguments)
    monkeypatch.setattr(Checkpoint, "read_into", lambda *anything: pytest.fail("bytes were read"))
    found = refused_merge(6, *words, folder=here, says=(f"{there}: exists already", "--overwrite"))
    assert "reads" not in found.err
    monkeypatch.undo()
    monkeypatch.chdir(here)
    merge(*words, "--overwrite")


@IN_THE_WAY
def test_a_dry_run_shows_its_plan_and_then_what_is_in_the_way(
    here: Path, there: str, arguments: tuple[str, ...]
) -> None:
    words = in_the_way(here, there, arguments)
    before = tree(here)
    outcome = run("merge", *words, "--dry-run")
    assert outcome.code == 6
    assert f"{there}: exists already" in outcome.words
    allowed = merge(*words, "--dry-run", "--overwrite")
    assert outcome.out == allowed.out
    assert "linear" in outcome.out
    assert tree(here) == before


def test_an_output_that_exists_is_found_before_inputs_are_opened(experts: Files, here: Path) -> None:
    (here / "out.safetensors").write_bytes(b"precious")
    (here / "cars.safetensors").write_bytes(b"\x10")
    refused_merge(6, ALL, "-o", "out.safetensors", folder=here, says=("out.safetensors: exists already",))


def test_a_parent_that_is_a_file(experts: Files, here: Path) -> None:
    (here / "file").write_text("here")
    refused_merge(
        6, ALL, "-o", "file/out.safetensors", folder=here, says=("file/out.safetensors", "cannot be written", "-o")
    )
    refused_merge(6, ALL, "-o", "file", folder=here, says=("file: is a file, not a folder", "choose another"))


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("output", ["out.safetensors", "folder"])
def test_a_folder_that_cannot_be_written(
    experts: Files, here: Path, monkeypatch: pytest.MonkeyPatch, number: int, output: str
) -> None:  # fmt: skip
    opened, made = os.open, os.mkdir

    def refuse(path: object, flags: int = 0, *rest: object, **more: object) -> int:
        if ".tmp-" in str(path):
            raise OSError(number, os.strerror(number), str(path))
        return opened(path, flags, *rest, **more) if flags or more or rest else made(path)

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(
        os, "mkdir", lambda path, *rest, **more: refuse(path) if ".tmp-" in str(path) else made(path, *rest, **more)
    )
    refused_merge(
        6,
        ALL,
        "-o",
        output,
        folder=here,
        says=(output, "cannot be written", os.strerror(number), "choose another output with -o"),
    )


@pytest.mark.parametrize("after", [0, 3, 9])
@pytest.mark.parametrize("output", ["out.safetensors", "folder", "new/out.safetensors"])
def test_a_disk_that_fills_up_while_writing(
    experts: Files, here: Path, monkeypatch: pytest.MonkeyPatch, after: int, output: str
) -> None:  # fmt: skip
    write, done = os.pwrite, []

    def fill(number: int, data: bytes, offset: int) -> int:
        done.append(offset)
        if len(done) > after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(number, data, offset)

    monkeypatch.setattr(os, "pwrite", fill)
    refused_merge(6, ALL, "-o", output, folder=here, says=(output, "disk full", "free space"))
    monkeypatch.undo()
    monkeypatch.chdir(here)
    merge(ALL, "-o", output)


def test_a_disk_that_is_full_at_the_start(experts: Files, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(number: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    refused_merge(6, ALL, folder=here, says=("merged-cart.safetensors", "disk full"))


def test_an_error_while_overwriting_keeps_the_old_output(experts: Files, here: Path) -> None:
    merge("cars.safetensors", "dogs.safetensors", "-o", "out.safetensors")
    before = digest(here / "out.safetensors")
    bad = load(experts["dogs"])
    bad["proj"][0, 0] = float("nan")
    save(experts["dogs"], bad)
    refused_merge(3, "cars.safetensors", "dogs.safetensors", "-o", "out.safetensors", "--overwrite", folder=here)
    assert digest(here / "out.safetensors") == before


# --- 7: numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["task_arithmetic", "magmax", "ties", "tsv_m"])
def test_overflow_of_half_precision_names_the_tensor(here: Path, method: str) -> None:
    files = write_experts(here, dtype=torch.float16)
    for task, sign in (("cars", 1), ("dogs", 1), ("maps", 1)):
        big = load(files[task])
        big["blocks.0.mlp.fc.weight"] += sign * 60000
        save(files[task], big)
    says = ("`blocks.0.mlp.fc.weight`", "overflows F16", "largest magnitude", "--dtype bfloat16", "--dtype float32")
    refused_merge(7, ALL, "-m", method, "--coefficient", "4", folder=here, says=says)
    merge(ALL, "-m", method, "--coefficient", "4", "--dtype", "float32")


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_overflow_of_8_bit_types_is_not_clipped(experts: Files, here: Path, dtype: str) -> None:
    words = (ALL, "-m", "task_arithmetic", "--dtype", dtype)
    refused_merge(
        7, *words, "--coefficient", "1e6", folder=here, says=("overflows F8_", "largest magnitude", "--dtype")
    )
    merge(*words, "--coefficient", "1")


def test_the_largest_8_bit_number_is_rounded_to_and_what_lies_beyond_is_refused(here: Path) -> None:
    for task, value in (("cars", 464.0), ("dogs", 464.0)):
        save(here / f"{task}.safetensors", {"norm": torch.full((3,), value)})
    merge("*s.safetensors", "-m", "average", "--dtype", "float8_e4m3fn")
    assert load(here / "merged-average.safetensors")["norm"].float().tolist() == [448.0] * 3
    save(here / "dogs.safetensors", {"norm": torch.full((3,), 464.2)})
    says = ("`norm`", "overflows F8_E4M3")
    refused_merge(
        7,
        "cars.safetensors",
        "dogs.safetensors",
        "-m",
        "average",
        "--dtype",
        "float8_e4m3fn",
        "--overwrite",
        folder=here,
        says=says,
    )


@pytest.mark.parametrize("value", [0.0, -4.0])
def test_a_type_of_positive_powers_of_two_takes_nothing_else(value: float) -> None:
    part = torch.tensor([4.0, value])
    with pytest.raises(BadNumber, match="`scale`: F8_E8M0 holds positive powers of two alone"):
        check_numbers(part.to(torch.float8_e8m0fnu), part, "scale", "F8_E8M0")
    check_numbers(part[:1].to(torch.float8_e8m0fnu), part[:1], "scale", "F8_E8M0")


def test_overflow_of_the_arithmetic_names_the_tensor(experts: Files, here: Path) -> None:
    for task in ("cars", "dogs", "maps"):
        big = load(experts[task])
        big["proj"] = torch.full((8, 6), 3e38)
        save(experts[task], big)
    says = ("`proj`", "NaN or infinity", "smaller coefficients or `--compute-dtype float64`")
    refused_merge(7, ALL, "-m", "task_arithmetic", "--coefficient", "3", folder=here, says=says)


def test_a_narrow_output_type_that_cannot_hold_the_values(experts: Files, here: Path) -> None:
    for task in ("cars", "dogs", "maps"):
        big = load(experts[task])
        big["norm.weight"] = torch.full((8,), 1e5)
        save(experts[task], big)
    refused_merge(7, ALL, "--dtype", "float16", folder=here, says=("`norm.weight`", "overflows F16", "1e+05"))


def test_a_copied_tensor_that_overflows_is_named(experts: Files, here: Path) -> None:
    save(here / "base.safetensors", {**load(experts["base"]), "text": torch.full((2,), 1e6)})
    refused_merge(7, ALL, "--dtype", "float16", "--on-missing", "base", folder=here, says=("`text`", "overflows F16"))


def test_no_error_leaves_a_trace(experts: Files, here: Path) -> None:
    """The folders that an output needed are gone again too."""
    bad = load(experts["dogs"])
    bad["proj"][0, 0] = float("inf")
    save(experts["dogs"], bad)
    before = tree(here)
    refused_merge(3, ALL, "-o", "a/b/c/out.safetensors", folder=here)
    refused_merge(3, ALL, "-o", "a/b/folder", "--coefficient", "1,2", folder=here)
    assert tree(here) == before
