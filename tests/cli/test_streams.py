"""Streams, codes and start-up as a shell sees them; these run the real program in processes of their own."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from merge_cases import load, merge, run, save, tree, write_experts

from taskmerge.methods.adaptive_registry import find_adaptive

PROGRAM = [sys.executable, "-m", "taskmerge"]
Files = dict[str, Path]


def shell(*arguments: object, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PROGRAM, *map(str, arguments)], capture_output=True, text=True, timeout=120, **more)


# --- streams ---------------------------------------------------------------------------------------------------


def test_the_result_goes_to_stdout_and_everything_else_to_stderr(experts: Files, here: Path) -> None:
    command = 'OUT=$(taskmerge merge --method cart --rank 0.08 *.safetensors) && test -f "$OUT" && printf "<%s>" "$OUT"'
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, timeout=120, env={**os.environ, "PATH": path}
    )
    assert done.stdout == "<merged-cart.safetensors>"
    assert "cart: 3 experts (cars, dogs, maps)" in done.stderr
    assert done.returncode == 0
    assert "\x1b" not in done.stderr, "plain lines where stderr is no terminal"


def test_an_error_in_a_process_of_its_own(experts: Files, here: Path) -> None:
    done = shell("merge", "dog.safetensors")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == "error: dog.safetensors: there is no such file\nhint: did you mean `dogs.safetensors`?\n"


def test_debug_shows_the_traceback_before_the_message(experts: Files) -> None:
    outcome = run("merge", "dog.safetensors", "--debug")
    assert outcome.code == 3
    assert outcome.err.startswith("Traceback")
    assert outcome.err.endswith("hint: did you mean `dogs.safetensors`?\n")


def test_json_prints_one_document_and_nothing_else(experts: Files) -> None:
    outcome = run("merge", "*.safetensors", "--rank", "2,3", "--json")
    receipt = json.loads(outcome.out)
    assert [one["path"] for one in receipt["outputs"]] == [
        "merged-cart-rank2.safetensors",
        "merged-cart-rank3.safetensors",
    ]
    assert [one["options"]["rank"] for one in receipt["outputs"]] == [2, 3]
    assert receipt["outputs"][0]["bytes"] == Path("merged-cart-rank2.safetensors").stat().st_size
    assert {"seconds", "peak_memory", "predicted_memory", "bytes_read", "bytes_written", "notes", "warnings"} <= set(
        receipt
    )
    assert [one["name"] for one in receipt["provenance"]["tasks"]] == ["cars", "dogs", "maps"]
    assert outcome.code == 0


def test_json_of_a_dry_run(experts: Files, here: Path) -> None:
    before = tree(here)
    plan = json.loads(run("merge", "*.safetensors", "--dry-run", "--json").out)
    assert tree(here) == before
    assert plan["method"] == ["cart"]
    assert plan["outputs"] == ["merged-cart.safetensors"]
    assert plan["tasks"] == ["cars", "dogs", "maps"]
    assert {(one["class"], one["tensors"], one["treatment"]) for one in plan["classes"]} == {
        ("linear", 4, "method"),
        ("embedding", 1, "origin"),
        ("projection", 1, "origin"),
        ("vector", 3, "origin"),
        ("scalar", 1, "origin"),
    }
    assert sum(one["parameters"] for one in plan["classes"]) == 7 * 8 + 2 * (24 * 8 + 16 * 8 + 16) + 48 + 8 + 1


def test_the_plan_says_in_which_types_tensors_are_read_computed_and_written(here: Path) -> None:
    """fp16 and fp32 experts with an integer tensor, over a base that alone has another."""
    files = write_experts(here, dtype=torch.float16)
    for path in files.values():
        save(path, {**load(path), "steps": torch.tensor([3])})
    wide = {name: one.float() if one.is_floating_point() else one for name, one in load(files["cars"]).items()}
    save(files["cars"], wide)
    save(files["base"], {**load(files["base"]), "classes": torch.tensor([3], dtype=torch.int32)})
    arguments = ("merge", "*.safetensors", "--on-missing", "base", "--dry-run")
    found = json.loads(run(*arguments, "--dtype", "bf16", "--json").out)
    types = {(one["class"], one["treatment"]): (one["read_as"], one["written_as"]) for one in found["classes"]}
    assert types["linear", "method"] == (["F16", "F32"], ["BF16"])
    assert types["buffer", "buffer"] == (["I64"], ["I64"])
    assert types["buffer", "copy"] == (["I32"], ["I32"])
    assert found["compute_dtype"] == "float32"
    assert "F16, F32 → F32" in run(*arguments).out
    assert " I64 " in run(*arguments).out


def test_a_json_run_that_fails_prints_no_document(experts: Files) -> None:
    outcome = run("merge", "*.safetensors", "--rank", "0", "--json")
    assert (outcome.code, outcome.out) == (2, "")


@pytest.mark.parametrize("columns", ["80", None])
def test_a_dry_run_shows_a_table_that_fits_80_columns(
    experts: Files, here: Path, monkeypatch: pytest.MonkeyPatch, columns: str | None
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    before = tree(here)
    outcome = merge("*.safetensors", "-m", "tsv_m", "--dry-run")
    assert tree(here) == before
    lines = outcome.out.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert lines[0].split() == ["class", "tensors", "parameters", "share", "type", "treatment"]
    rows = {line.split()[0]: line.strip().split(maxsplit=5)[1:] for line in lines[1:-1]}
    assert rows["linear"] == ["4", "640", "81.5%", "F32", "merged by the method"]
    assert rows["embedding"] == ["1", "56", "7.1%", "F32", "merged by its fallback"]
    assert lines[-1] == "would write merged-tsv-m.safetensors"
    assert "peak memory up to" in outcome.err
    assert "--coefficient 1" in outcome.err


@pytest.mark.parametrize(
    "arguments", [["methods"], ["merge", "*.safetensors", "--dry-run"], ["merge", "*.safetensors", "--overwrite"]]
)
def test_no_color_is_respected(experts: Files, monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    plain = run(*arguments)
    assert plain.code == 0
    assert "\x1b" not in plain.out + plain.err, "no colours where no terminal reads them"
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    forced = run(*arguments)
    assert "\x1b[3" not in forced.out + forced.err


def test_help_respects_no_color(here: Path) -> None:
    done = shell("merge", "--help", env={**os.environ, "NO_COLOR": "1", "FORCE_COLOR": "1"})
    assert "\x1b[3" not in done.stdout + done.stderr


def test_a_reader_that_goes_away_is_no_error(experts: Files) -> None:
    for arguments in (["merge", "--help"], ["merge", "*.safetensors", "--coefficient", "1:40:1"]):
        process = subprocess.Popen([*PROGRAM, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        error = process.stderr.read()
        process.stderr.close()
        assert process.wait(timeout=120) == 141
        assert "error:" not in error
        assert "Traceback" not in error
        assert "Exception ignored" not in error


def test_nobody_listens_on_stderr(experts: Files, here: Path) -> None:
    def code(words: str) -> int:
        return subprocess.run(f"{' '.join(PROGRAM)} merge {words}", shell=True, timeout=120).returncode

    assert code("*.safetensors >/dev/null 2>&-") == 0
    assert (here / "merged-cart.safetensors").exists()
    assert code("dog.safetensors -o new.safetensors 2>&-") == 3
    if Path("/dev/full").exists():
        assert code("dog.safetensors -o new.safetensors 2>/dev/full") == 3


def test_control_characters_in_a_message_are_shown_and_not_obeyed(here: Path) -> None:
    for seed, task in enumerate(("cars", "dogs")):
        save(here / f"{task}.safetensors", {"h.0.\x1b[31m.weight": torch.full((2, 2 + seed), 1.0)})
    outcome = run("merge", "*.safetensors")
    assert outcome.code == 4
    assert "\x1b" not in outcome.err
    assert "\\x1b[31m" in outcome.err
    assert outcome.err.count("\n") > 2, "its lines stay lines"


@pytest.mark.parametrize("place", [("-o", "{}/out.safetensors"), ("{}.safetensors",), ("--recipe", "{}.yaml")])
def test_a_name_that_is_too_long_is_no_defect(experts: Files, here: Path, place: tuple[str, ...]) -> None:
    words = [one.format("x" * 300) for one in place]
    outcome = run("merge", "cars.safetensors", "dogs.safetensors", *words)
    assert outcome.code in (3, 6), outcome.err
    assert "defect" not in outcome.err
    assert "xxx" in outcome.err


# --- interruption ----------------------------------------------------------------------------------------------


def test_ctrl_c_ends_with_130_and_leaves_nothing(here: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    for task in ("cars", "dogs", "maps", "pets"):
        tensors = {f"h.{block}.fc.weight": torch.randn(768, 768, generator=generator) for block in range(24)}
        save(here / f"{task}.safetensors", tensors)
    before = tree(here)
    process = subprocess.Popen(
        [*PROGRAM, "merge", "*.safetensors", "-o", "new/out.safetensors"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    deadline = time.monotonic() + 60
    while not list(here.glob(".new.tmp-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert out == ""
    assert "interrupted" in error
    assert "Traceback" not in error
    assert tree(here) == before


# --- start-up --------------------------------------------------------------------------------------------------

NO_TORCH = """
import sys
from taskmerge.cli import app
code = app.run(sys.argv[1:])
loaded = {name.split(".")[0] for name in sys.modules}
heavy = sorted(loaded & {"torch", "numpy", "scipy", "safetensors", "transformers", "yaml", "pydantic"})
print("imported", heavy, file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["-h"], ["--version"], ["merge", "--help"], ["adapt", "--help"], ["methods", "--help"]],
)
def test_help_and_version_import_nothing_heavy(here: Path, arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", NO_TORCH, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert done.stderr == "imported []\n"
    assert done.stdout


def seconds(*command: str) -> float:
    """Processor time of a fresh process, the best of three: other programs on this machine count little."""
    found = []
    for _ in range(3):
        before = os.times()
        subprocess.run([sys.executable, *command], check=True, capture_output=True, timeout=60)
        after = os.times()
        found.append(after.children_user + after.children_system - before.children_user - before.children_system)
    return min(found)


@pytest.mark.parametrize("command", ["merge", "adapt"])
def test_help_takes_little_more_than_the_argument_parser(here: Path, command: str) -> None:
    """0.3 s is the promise; the bare parser takes a third of it on a quiet machine, and both suffer from a busy one."""
    assert seconds("-m", "taskmerge", command, "--help") < 2 * seconds("-c", "import typer, typer.rich_utils") + 0.05


OPTIONS = """
--base --include --exclude --also --qkv --dtype --compute-dtype --device --threads --max-memory --seed --recipe --set
--on-missing --on-buffer --dry-run --json --quiet --debug --heads --strip-prefix --skip-input --allow-merged --keep-base
--allow-pickle --overwrite --output --shard-size --weight --coefficients --method --then --lines --svd
"""


def test_version_and_help_texts(here: Path) -> None:
    outcome = run("--version")
    assert outcome.out.startswith("taskmerge ")
    text = run("merge", "--help").out
    for option in OPTIONS.split():
        assert option in text, option


def test_no_command_shows_the_help(here: Path) -> None:
    outcome = run()
    assert outcome.code == 2
    assert "merge" in outcome.out + outcome.err


# --- methods ---------------------------------------------------------------------------------------------------


METHODS = """
average task_arithmetic ties dare magmax breadcrumbs consensus_ta consensus_ties pcb lines truncated_task_arithmetic
tsv_m iso_c iso_cts star slerp model_stock cart
adamerging adamerging_plus cart_plus adarank tint tint_plus symerge surgery probsurgery heads supervised_heads
"""


def test_methods_lists_all_and_explains_one(here: Path) -> None:
    names = [one["name"] for one in json.loads(run("methods", "--json").out)]
    assert names == sorted(names)
    assert set(METHODS.split()) <= set(names)
    table = run("methods").out
    assert all(name in table for name in names)
    assert all(len(line) <= 80 for line in table.splitlines())
    for name in names:
        page = run("methods", name.replace("_", "-")).out
        assert page.startswith(f"{name}: ")
        assert "paper: " in page
        assert "needs a base: " in page
        assert json.loads(run("methods", name, "--json").out)["name"] == name
    page = run("methods", "cart").out
    assert "--rank  ((0, 1], an integer, or energy:(0, 1]; default 0.08 of the full rank)" in page
    assert run("methods", "--markdown").out.count("\n| method |") == 2, "a table of each kind"


def test_pages_of_adaptive_methods_say_what_is_learnt_and_how(here: Path) -> None:
    page, parts = " ".join(run("methods", "AdaRank").out.split()), find_adaptive("adarank").bound({})
    for text in (
        "paper: arXiv:2503.22178", "taskmerge adapt --method adarank", "needs: a suite with unlabelled items",
        "needs a base: yes (--origin mean: no)", "components of task vectors (full rank)",
        "learns: coefficients, one a task and tensor; masks of components, at first full rank", "objective: entropy",
        f"horizon: {parts.iterations} iterations of 16 items a task, one update of all tasks",
        "learning rates (Adam): coefficients 0.001, masks 1/updates", "--parity sets: clamped no, iterations 10000",
        "--temperature (number 0.001..; default 10)", "notes: - the authors run 10,000 updates",
        "which task an item is of: no",
    ):  # fmt: skip
        assert text in page, text
    assert "filter code" in run("methods", "tint++").out
    assert "unpublished: of this project" in run("methods", "heads").out
    assert "LABELLED" in run("methods", "supervised-heads").out
    described = json.loads(run("methods", "cart++", "--json").out)
    assert (described["name"], described["command"], described["origin"]) == ("cart_plus", "adapt", "mean")
    assert json.loads(run("methods", "cart", "--json").out)["command"] == "merge"


@pytest.mark.parametrize(("name", "near"), [("tsvm", "tsv_m"), ("adarnk", "adarank"), ("symrge", "symerge")])
def test_an_unknown_method_gets_the_nearest_name(here: Path, name: str, near: str) -> None:
    outcome = run("methods", name)
    assert outcome.code == 2
    assert f"did you mean `{near}`?" in outcome.err


def test_experts_are_read_only_once_they_fit(here: Path) -> None:
    """`--dry-run` reads headers: the data of these files is not even there for it to read."""
    files = write_experts(here)
    outcome = merge("*.safetensors", "--dry-run")
    for path in files.values():
        with path.open("r+b") as file:
            size = 8 + int.from_bytes(file.read(8), "little")
            file.seek(size)
            file.write(b"\xff" * (path.stat().st_size - size))  # all NaN
    assert merge("*.safetensors", "--dry-run").out == outcome.out


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_shell_gets_its_completions(shell: str) -> None:
    environment = {
        **os.environ,
        "_TASKMERGE_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": "taskmerge me",
        "COMP_CWORD": "1",
    }
    environment["_TYPER_COMPLETE_ARGS"] = "taskmerge me"
    done = subprocess.run([sys.executable, "-m", "taskmerge"], capture_output=True, text=True, env=environment)
    assert "merge" in done.stdout
    assert "methods" in done.stdout
    assert "eval" not in done.stdout
