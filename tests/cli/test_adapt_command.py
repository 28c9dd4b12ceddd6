"""`taskmerge adapt`: what it prints where, what it refuses with which code, and what it leaves behind."""

import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
from adapt_command_cases import METHOD, SHORT, adapt, contents, report, suite_here, trace
from eval_cases import prepared, rewritten
from merge_cases import merge, refused, run, tree
from safetensors.torch import load_file, save_file

import taskmerge
from taskmerge.adaptation.trace import StepRecord
from taskmerge.checkpoint.adapted import read_adapted
from taskmerge.cli.adapt_meter import AdaptMeter
from taskmerge.methods.adaptive_registry import RECOMMENDED
from taskmerge.workflows.adapt_schema import schema

UNSCORED = "--no-scores"


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Decoded items and experts' outputs, shared by all tests."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def tiny(here: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a suite of two tasks."""
    monkeypatch.setenv("TASKMERGE_CACHE", str(cache))
    monkeypatch.setenv("COLUMNS", "80")
    suite_here(here)
    return here


# --- what is printed -------------------------------------------------------------------------------------------


def test_the_folder_goes_to_stdout_and_everything_else_to_stderr(tiny: Path) -> None:
    outcome = adapt()
    assert outcome.out == "adapted-symerge\n"
    assert "no --method" not in outcome.err
    assert read_adapted(tiny / "adapted-symerge").manifest.parts
    for text in (
        "note: the suite is suite.yaml of the working directory (--suite names another)",
        "symerge: 2 tasks (digits, shapes), task vectors added to the base",
        "learns coefficients, one a task and tensor; heads from the suite's; objective self on outputs, against the "
        "experts, filter code",
        "3 iterations of 32 items a task, one update a task: 6 updates; rates: coefficients 0.01, heads 0.01",
        "split `adapt` of tiny, at most 64 items a task; no label is read; seed 0; on cpu",
        "--coefficient 0.3",
        "note: merging the 2 experts of suite.yaml",
        "tiny, split test: accuracy, in percent ± 95% interval",
    ):
        assert text in outcome.words, text
    assert outcome.words.index("6 updates; rates") < outcome.words.index("in percent")
    assert "done in" in outcome.err.splitlines()[-1]
    assert not (tiny / "adapted-symerge" / "state").exists()


def test_without_a_method_the_recommended_one_is_named(tiny: Path) -> None:
    outcome = run("adapt", "-n", "1", "--limit", "64", UNSCORED)
    assert outcome.paths == [f"adapted-{RECOMMENDED.replace('_', '-')}"]
    assert f"note: no --method: {RECOMMENDED}, the recommended one" in outcome.err


def test_scores_are_a_table_of_tasks_in_80_columns(tiny: Path) -> None:
    outcome = adapt("-m", "cart++")
    lines = outcome.err.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("task "))
    assert lines[start].split() == ["task", "adapted"]
    table = [line.split() for line in lines[start + 2 : start + 5]]
    scores = report("adapted-cart-plus")["scores"]
    wanted = [(row["task"], row["score"]) for row in scores["rows"]] + [("average", scores["average"])]
    assert [(name, number) for name, number, _ in table] == [(name, f"{100 * score:.1f}") for name, score in wanted]
    assert all(margin.startswith("±") for _, _, margin in table)
    assert max(len(line) for line in lines[start - 1 : -1]) <= 80


def test_json_is_one_document_that_the_schema_describes(tiny: Path) -> None:
    outcome = adapt("--json", "--stop", "agreement", "-m", "tint")
    document = json.loads(outcome.out)
    assert document.pop("path") == "adapted-tint"
    assert document == json.loads((tiny / "adapted-tint" / "report.json").read_text())
    jsonschema.Draft202012Validator(schema()).validate(document)
    assert document["stopped"]["curve"][0][0] == 0
    assert document["scores"]["split"] == "test"


def test_quiet_prints_the_folder_alone(tiny: Path) -> None:
    outcome = adapt("--quiet", "-m", "adamerging")
    assert (outcome.out, outcome.err) == ("adapted-adamerging\n", "")


def test_the_layer_is_named_as_in_the_tensors_names(tiny: Path) -> None:
    outcome = adapt("--layer", "2", UNSCORED)
    assert "learns coefficients, one a task and tensor; a block of every task's own (2)" in outcome.words
    assert "tensors become every task's own, `visual.transformer.resblocks.2.ln_1.weight`" in outcome.words
    assert "accuracy" not in outcome.err, "no scores were asked for"
    assert report("adapted-symerge")["scores"] is None


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-m", "adarank", "--origin", "mean"], ("components of task vectors (full rank) added to the experts' mean",
         "--origin mean", "masks of components, at first 0.08 of the full rank", "one update of all tasks: 3 updates")),
        (["-m", "heads", "-n", "0", "--init", "cart", "--rank", "4"], ("the encoder stays as `cart` makes it",
         "no updates: what is learnt is solved for", "--rank rank 4", "note: CART of two experts")),
        (["-m", "AdaMerging++", "--density", "0.4"], ("task vectors trimmed to 0.4", "--density 0.4")),
        (["-m", "tint++", "--parity"], ("clamped to [0, 1]", "filter code")),
        (["-m", "surgery", "--size", "4"], ("surgery adapters of width 4", "objective l1 on features")),
        (["-m", "blocks"], ("a block of every task's own (last, from its expert's); heads solved for at the end",)),
        (["--stop", "agreement"], ("0.2 of them held out for --stop",)),
        (["--mask-lr", "1e-4", "-m", "adarank"], ("no bit can flip", "--mask-lr 0.333")),
    ],
)  # fmt: skip
def test_the_plan_says_what_was_understood(tiny: Path, arguments: list[str], says: tuple[str, ...]) -> None:
    outcome = adapt(*arguments, UNSCORED)
    for text in says:
        assert text in outcome.words, f"{text!r} is not in: {outcome.words}"


# --- inputs ----------------------------------------------------------------------------------------------------


def test_experts_may_be_given_as_for_merge(tiny: Path) -> None:
    adapt(UNSCORED, "-o", "suite")
    adapt("*.safetensors", UNSCORED, "-o", "glob")
    adapt("shapes=digits.safetensors", "digits=shapes.safetensors", UNSCORED, "-o", "swapped")
    assert contents("suite") == contents("glob")
    assert contents("suite").keys() == contents("swapped").keys()
    assert report("swapped")["experts"]["digits"] == report("suite")["experts"]["shapes"]


def test_inputs_choose_the_tasks(tiny: Path) -> None:
    for number, arguments in enumerate((["digits.safetensors"], ["--tasks", "digits"])):
        adapt(*arguments, UNSCORED, "-o", number)
        assert [one["name"] for one in report(str(number))["tasks"]] == ["digits"]
        assert list(report(str(number))["experts"]) == ["digits"]
    assert trace("0") == trace("1")


@pytest.mark.parametrize("method", ["adarank", "cart++", "surgery", "heads"])
def test_one_task_alone_works(tiny: Path, method: str) -> None:
    outcome = adapt("-m", method, "--tasks", "digits")
    assert "1 task (digits)" in outcome.err
    (row,) = json.loads((tiny / outcome.paths[0] / "report.json").read_text())["scores"]["rows"]
    assert row["task"] == "digits"


def test_inputs_that_are_no_experts_of_the_suite(tiny: Path) -> None:
    says = ("no input is the expert of `digits`, `shapes`: these are `a`, `b`", "digits=FILE")
    refused(2, "adapt", "a=digits.safetensors", "b=shapes.safetensors", folder=tiny, says=says)
    says = ("no input is the expert of `shapes`",)
    refused(2, "adapt", "digits.safetensors", "--tasks", "digits,shapes", folder=tiny, says=says)


# --- what is refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-m", "ties"], ("--method: `ties` adapts nothing", "`taskmerge merge --method ties`", "--init ties")),
        (["-m", "adarnk"], ("unknown adaptive method `adarnk`", "did you mean `adarank`?")),
        (["--iteration", "3"], ("unknown option `--iteration`", "did you mean `--iterations`?")),
        (["--temprature=3"], ("unknown option `--temprature`", "did you mean `--temperature`?")),
        (["--density", "0.1"], ("`symerge` has no option `--density`", "belongs to adamerging_plus")),
        (["-m", "heads", "--init", "cart", "--eta", "1"], ("`heads` has no option `--eta`", "belongs to star")),
        (["--coefficient", "0.1,0.2"], ("--coefficient: an adaptation takes one value",)),
        (["--coefficient"], ("`--coefficient` needs a value",)),
        (["--layer", "99"], ("--layer: there is no block 99", "give 0 to 3")),
        (["--layer", "lst"], ("unknown layer `lst`", "did you mean `last`?")),
        (["--batch-size", "65"], ("--batch-size: a batch of 65 is more than the 64 items of `digits`", "1 to 64")),
        (["--batch-size", "0"], ("--batch-size: 0 is out of range",)),
        (["--iterations", "-1"], ("--iterations: -1 is out of range",)),
        (["--lr", "0"], ("--lr: 0.0 is out of range", "above 0")),
        (["--held-out", "1", "--stop", "agreement"], ("--held-out: 1.0 is no share",)),
        (["--objective", "entrpy"], ("unknown objective `entrpy`", "did you mean `entropy`?")),
        (["--filter", "codes"], ("--filter: unknown filter `codes`", "did you mean `code`?")),
        (["--adapt-split", "tset"], ("task `digits` has no split `tset`", "it has test, adapt: --adapt-split NAME")),
        (["--split", "tset"], ("task `digits` has no split `tset`",)),
        (["--tasks", "digts"], ("unknown task `digts`", "did you mean `digits`?")),
        (["--train", "masks"], ("--train: `masks` is not learnt by this method", "coefficients, heads")),
        (["-m", "heads", "--origin", "mean"], ("--origin: `heads` leaves the encoder as it is",)),
        (["--init", "cart"], ("--init: `symerge` starts from its own coefficients",)),
        (["-m", "heads", "--init", "crat"], ("--init: `crat` is no file, folder or method",)),
        (["-m", "adamerging", "--heads-start", "fitted"], ("--heads-start: this method learns no heads",)),
        (["--with", "ties"], ("--with: `ties` adapts nothing",)),
        (["--cache", "c", "--no-cache"], ("--cache and --no-cache contradict",)),
        (["--no-scores", "--split", "adapt"], ("--split: says nothing with --no-scores",)),
        (["--every", "3"], ("--every: says nothing without --stop",)),
        (["--budget", "3"], ("--budget: says nothing without --method auto",)),
        (["-m", "auto", "--layer", "last"], ("--layer: does not go with --method auto", "--budget")),
        (["-m", "auto", "--budget", "0"], ("--budget: a budget of 0",)),
        (["-m", "auto", "--seeds", "2"], ("--seeds: does not go with --method auto", "run it once a seed")),
        (["-m", "auto", "--with", "tint"], ("--with: does not go with --method auto",)),
        (["--seeds", "0"], ("--seeds: 0 runs are none",)),
        (["--compute-dtype", "float16"], ("--compute-dtype: `float16`", "float32 or float64")),
        (["--qkv", "fuse"], ("--qkv: `fuse` is no value",)),
        (["--device", "gpu"], ("--device: `gpu` is no device",)),
        (["--threads", "0"], ("--threads: 0 threads cannot work",)),
        (["-s", "nowhere.yaml"], ("",)),
    ],
)  # fmt: skip
def test_wrong_usage_leaves_no_trace(tiny: Path, arguments: list[str], says: tuple[str, ...]) -> None:
    code = 3 if arguments[0] == "-s" else 2
    given = METHOD if "--iterations" in arguments or "auto" in arguments else SHORT
    outcome = refused(code, "adapt", "--limit", "64", *given, *arguments, folder=tiny, says=says)
    assert "hint: " in outcome.err or arguments[:2] == ["--with", "ties"]


def test_merge_names_adapt_for_methods_that_adapt(tiny: Path) -> None:
    for name in ("adarank", "tint++", "AdaMerging"):
        says = (f"--method: `{name}` learns from data", "taskmerge adapt --method")
        refused(2, "merge", "*.safetensors", "-m", name, folder=tiny, says=says)


def test_no_suite_here(here: Path) -> None:
    refused(2, "adapt", folder=here, says=("--suite: no suite given",))


def test_a_split_without_items(here: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKMERGE_CACHE", str(cache))
    suite = prepared(here / "tiny")
    rewritten(suite.parent / "data" / "digits.npz", adapt_x=np.zeros((0, 24, 24, 3), np.uint8))
    refused(3, "adapt", "-s", suite, folder=here, says=("digits.npz", "no items"))


def test_what_is_in_the_way_of_the_output(tiny: Path) -> None:
    adapt(UNSCORED)
    refused(6, "adapt", *SHORT, folder=tiny, says=("adapted-symerge: exists already", "--overwrite"))
    refused(3, "adapt", *SHORT, "--resume", "--overwrite", folder=tiny, says=("no unfinished run to resume",))
    refused(3, "adapt", *SHORT, "--resume", "-o", "new", folder=tiny, says=("new: there is no unfinished run",))
    (tiny / "full").mkdir()
    (tiny / "full" / "thesis.tex").write_text("years")
    for more in ((), ("--overwrite",)):
        says = ("full: holds something else (thesis.tex)", "-o")
        refused(6, "adapt", *SHORT, "-o", "full", *more, folder=tiny, says=says)
    refused(6, "adapt", *SHORT, "-o", "digits.safetensors", folder=tiny, says=("is a file",))
    before = contents("adapted-symerge")
    adapt(UNSCORED, "--overwrite", "--coefficient", "0.5")
    assert contents("adapted-symerge") != before
    assert [path.name for path in tiny.iterdir() if path.name.startswith(".")] == []


def test_an_empty_folder_stays_where_nothing_was_learnt(tiny: Path) -> None:
    (tiny / "mine").mkdir()
    refused(2, "adapt", *SHORT, "--layer", "99", "-o", "mine", folder=tiny, says=("no block",))
    adapt(UNSCORED, "-o", "mine")


# --- seeds -----------------------------------------------------------------------------------------------------


def test_seeds_get_a_folder_each_and_a_spread(tiny: Path) -> None:
    outcome = adapt("--seeds", "2", "--seed", "4", "-o", "runs")
    assert outcome.paths == ["runs/seed-4", "runs/seed-5"]
    averages = [report(path)["scores"]["average"] for path in outcome.paths]
    for seed, average in zip((4, 5), averages, strict=True):
        assert f"seed {seed}: average {100 * average:.1f}, done in" in outcome.words
    mean, spread = np.mean(averages), np.std(averages, ddof=1)
    assert f"average {100 * mean:.1f} ±{100 * spread:.1f}" in outcome.words
    assert outcome.err.count("learns coefficients") == 1, "the plan is told once"
    adapt("--seed", "5", "-o", "alone/seed-5", UNSCORED)
    assert contents("alone/seed-5") == contents("runs/seed-5")
    refused(6, "adapt", *SHORT, "--seeds", "3", "--seed", "5", "-o", "runs", folder=tiny, says=("seed-5: exists",))
    refused(
        6, "adapt", *SHORT, "--seeds", "2", "-o", "runs/seed-5", folder=tiny, says=("is the folder of one adaptation",)
    )


def test_seeds_are_resumed_where_they_stopped(tiny: Path) -> None:
    adapt("--seeds", "1", "-o", "runs", UNSCORED)
    before = tree(tiny / "runs" / "seed-0")
    outcome = adapt("--seeds", "2", "-o", "runs", UNSCORED, "--resume", "--json")
    document = json.loads(outcome.out)
    assert [one["seed"] for one in document["seeds"]] == [0, 1]
    assert (document["mean"], document["spread"]) == ({}, {}), "nothing was scored"
    assert "seed 0: finished before" in outcome.err
    assert tree(tiny / "runs" / "seed-0") == before
    says = ("seed-0: is the result of another recipe",)
    refused(2, "adapt", *SHORT, "--seeds", "2", "-o", "runs", "--resume", "--lr", "0.1", says=says)
    refused(2, "adapt", *SHORT, "--seeds", "2", "-o", "runs", "--resume", "--exclude", "*ln_final*", says=says)


def test_seeds_are_of_the_same_experts(tiny: Path) -> None:
    adapt("--seeds", "1", "-o", "runs", UNSCORED)
    report = tiny / "runs/seed-0/report.json"
    document = json.loads(report.read_bytes())
    document["experts"] = dict.fromkeys(document["experts"], "0" * 64)
    report.write_text(json.dumps(document), encoding="utf-8")
    says = ("the experts have changed since",)
    refused(2, "adapt", *SHORT, "--seeds", "2", "-o", "runs", "--resume", UNSCORED, says=says)


# --- --dry-run -------------------------------------------------------------------------------------------------


def test_a_dry_run_measures_and_writes_nothing(tiny: Path, cache: Path) -> None:
    before, kept = tree(tiny), tree(cache)
    outcome = adapt("-m", "adarank", "--dry-run")
    assert (tree(tiny), tree(cache)) == (before, kept)
    assert "adarank: 2 tasks" in outcome.err
    words = " ".join(outcome.out.split())
    coefficients, bits = 2 * 56, 2 * 4 * 6 * 64
    assert f"coefficients {coefficients} mask bits {bits:,}" in words
    assert "128 items of 2 tasks 3 updates of" in words
    assert "in all on cpu, scoring left out" in words
    assert "peak memory about" in words
    assert "shorter: half the horizon: --iterations 1" in words
    assert outcome.out.splitlines()[-1] == "would write adapted-adarank"
    assert max(map(len, outcome.out.splitlines())) <= 80


def test_a_dry_run_as_json(tiny: Path) -> None:
    found = json.loads(adapt("--dry-run", "--json", "--layer", "0", "--stop", "agreement").out)
    assert found["items"] == {"digits": 52, "shapes": 52}
    assert found["updates"] == 6
    assert set(found["learnt"]) == {"coefficients", "block parameters"}
    assert found["total_seconds"] == pytest.approx(sum(found["seconds"].values()))
    assert found["seconds"]["updates"] == pytest.approx(6 * found["update_seconds"])
    assert found["memory"] > 0
    assert found["device_memory"] is None


def test_a_dry_run_finds_what_a_run_would_refuse(tiny: Path) -> None:
    for arguments, says in (
        (["--batch-size", "65"], "more than the 64 items"), (["--layer", "99"], "no block"), (["-m", "ties"], "no data")
    ):  # fmt: skip
        refused(2, "adapt", *SHORT, "--dry-run", *arguments, folder=tiny, says=(says,))
    adapt(UNSCORED)
    outcome = run("adapt", *SHORT, "--dry-run")
    assert outcome.code == 6
    assert "would write adapted-symerge" in outcome.out, "the plan is of use even so"
    assert "exists already" in outcome.err


@pytest.mark.parametrize(
    ("method", "updates"), [("heads", 0), ("surgery", 80), ("supervised_heads", 2 * 5), ("blocks", 80)]
)
def test_a_dry_run_of_what_leaves_the_encoder(tiny: Path, method: str, updates: int) -> None:
    horizon = ["-n", "40"] if updates == 80 else []
    split = ["--adapt-split", "test"] if method == "supervised_heads" else []
    found = json.loads(run("adapt", "--limit", "150", "-m", method, "--dry-run", "--json", *split, *horizon).out)
    assert found["updates"] == updates
    learnt = {"surgery": {"adapter parameters"}, "blocks": {"block parameters", "head parameters"}}
    assert set(found["learnt"]) == learnt.get(method, {"head parameters"})


# --- options that are about the run ----------------------------------------------------------------------------


def test_options_of_the_run_do_not_change_the_result(tiny: Path) -> None:
    adapt(UNSCORED, "-o", "plain")
    adapt(UNSCORED, "-o", "kept", "--keep-state", "-j", "2", "--no-cache")
    assert (tiny / "kept" / "state").is_dir()
    state = {name for name in contents("kept") if name.startswith("state/")}
    assert {name: digest for name, digest in contents("kept").items() if name not in state} == contents("plain")


def test_a_watched_run_has_its_scores_in_the_trace(tiny: Path) -> None:
    adapt(UNSCORED, "--watch", "4")
    watched = {line["update"]: line["watched"] for line in trace("adapted-symerge") if line["watched"]}
    assert watched.keys() == {0, 4, 6}
    assert set(watched[4]["scores"]) == {"digits", "shapes"}
    assert watched[4]["diagnostic"] is True
    refused(2, "adapt", *SHORT, "--watch", "4", "--split", "adapt", "-o", "x", folder=tiny, says=("has no labels",))


# --- the same from Python, and with what is written ------------------------------------------------------------


def test_python_does_the_same(tiny: Path) -> None:
    adapt("-m", "cart++", "--rank", "4", "-o", "shell")
    receipt = taskmerge.adapt(
        suite="suite.yaml", method="cart_plus", rank=4, iterations=3, limit=64, output="python", cache=None
    )
    assert isinstance(receipt, taskmerge.AdaptReceipt)
    assert contents("shell") == contents("python")
    assert receipt.report["scores"] == report("shell")["scores"]


def test_the_model_is_one_that_other_commands_read(tiny: Path) -> None:
    adapt("-m", "adarank", "-o", "found", UNSCORED)
    outcome = merge("--from", "found", "-o", "again.safetensors")
    assert outcome.paths == ["again.safetensors"]
    assert (tiny / "again.safetensors").read_bytes() == (tiny / "found" / "model.safetensors").read_bytes()
    assert run("eval", "found", "--limit", "20", "--quiet").code == 0


# --- --method auto ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_dry_run_of_auto_says_what_it_would_try(tiny: Path) -> None:
    before = tree(tiny)
    outcome = run("adapt", "-m", "auto", "--budget", "9", "--limit", "64", "--dry-run")
    assert outcome.code == 0, outcome.err
    assert tree(tiny) == before
    words = " ".join(outcome.out.split())
    assert "candidate iterations updates time heads-iso-cts 0 0" in words
    assert "cart-plus 3 3" in words
    assert "symerge 3 6" in words
    assert "blocks 200 400" in words
    assert "--budget 9: iterations that the candidates whose encoder learns share" in words
    assert outcome.out.splitlines()[-1] == "would write adapted-auto"
    assert max(map(len, outcome.out.splitlines())) <= 80
    document = json.loads(run("adapt", "-m", "auto", "--budget", "9", "--limit", "64", "--dry-run", "--json", "-q").out)
    assert [one["iterations"] for one in document["candidates"]] == [0, 0, 3, 3, 3, 200]
    assert document["total_seconds"] > 0
    refused(3, "adapt", "-m", "auto", "--limit", "64", "--resume", says=("there is no unfinished run",), folder=tiny)


@pytest.mark.slow
def test_auto_is_stopped_and_resumed(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["adapt", "-m", "auto", "--budget", "9", "--limit", "64", UNSCORED]

    def heard(meter: AdaptMeter, record: StepRecord, total: int) -> None:
        if record.update == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as stopped:
        stopped.setattr(AdaptMeter, "heard", heard)
        outcome = run(*words)
    assert outcome.code == 130
    assert "adapted-auto: not finished" in outcome.err
    assert "the same command with --resume continues it" in outcome.err
    resumed = run(*words, "--resume")
    assert resumed.paths == ["adapted-auto"], resumed.err
    assert "heads-cart is finished already" in resumed.words
    assert "trying heads-cart" not in resumed.err
    assert [path.name for path in tiny.iterdir() if path.name.startswith(".")] == []


@pytest.mark.slow
def test_auto_tries_candidates_and_says_which_it_keeps(tiny: Path) -> None:
    outcome = run("adapt", "-m", "auto", "--budget", "12", "--limit", "64", "--json")
    assert outcome.code == 0, outcome.err
    document = json.loads(outcome.out)
    jsonschema.Draft202012Validator(schema()).validate({key: document[key] for key in document if key != "path"})
    tried = {one["name"]: one["agreement"] for one in document["chosen"]["tried"]}
    assert tried[document["chosen"]["candidate"]] == max(tried.values())
    for name in tried:
        assert outcome.err.count(f"trying {name}\n") == 1
    assert outcome.err.count("note: merging the 2 experts") == 1
    assert "* chosen by agreement, without a label" in outcome.err
    assert read_adapted(tiny / "adapted-auto").manifest.method == document["method"]


# --- tensors that are not merged -------------------------------------------------------------------------------

ENTROPY = ("--method", "adamerging", "--origin", "mean", "--iterations", "3", "--limit", "64", UNSCORED)


@pytest.mark.parametrize("keeper", ["base", "shapes"])
def test_what_is_kept_from_one_input_is_in_the_model_that_learns(tiny: Path, keeper: str) -> None:
    """As if every expert held it: the same losses, though the first expert's own tensor is another."""
    name = "visual.conv1.weight"
    experts = {path.stem: load_file(path) for path in (tiny / "digits.safetensors", tiny / "shapes.safetensors")}
    held = load_file(tiny / "base.safetensors") if keeper == "base" else experts[keeper]
    kept = adapt(*ENTROPY, "--keep-from", keeper, "visual.conv1*", "-o", "kept")
    assert f"copied unmerged from {keeper}: 1 tensors (`{name}`)" in kept.words
    for task, tensors in experts.items():
        save_file(tensors | {name: held[name]}, tiny / f"{task}.safetensors", {"format": "pt"})
    adapt(*ENTROPY, "-o", "held")
    losses = [
        [task["loss"] for record in trace(folder) for task in record["tasks"].values()] for folder in ("kept", "held")
    ]
    assert len(losses[0]) == 6
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert torch.equal(load_file(tiny / "kept" / "model.safetensors")[name], held[name])


def test_where_nothing_is_merged_nothing_is_kept(tiny: Path) -> None:
    merge("--suite", "suite.yaml", "--method", "average", "-o", "start.safetensors")
    words = ("--method", "surgery", "--init", "start.safetensors", "--keep-from", "base", "visual.conv1*")
    refused(2, "adapt", *words, says=("--keep-from: the encoder is there already",))
