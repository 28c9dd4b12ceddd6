"""`taskmerge eval` at its edges: words that say nothing, names that collide, outputs that fail, inputs with NaN."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from eval_cases import TASKS, own_copy, prepared, rewritten
from merge_cases import Outcome, refused, run, tree
from safetensors.torch import load_file, save_file

import taskmerge
from taskmerge.errors import BadFile, UsageError

LIMIT = ("--tasks", "digits", "--limit", "5", "--no-cache")


@pytest.fixture
def suite(here: Path) -> Path:
    """The suite of two tasks, in the working directory."""
    return prepared(here)


def evaluated(*arguments: object) -> Outcome:
    outcome = run("eval", *arguments)
    assert outcome.code == 0, outcome.err
    return outcome


# --- words -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("base", "--tasks", ""), "--tasks: names nothing"),
        (("base", "--tasks", " , "), "--tasks: names nothing"),
        (("base", "--corrupt", ","), "--corrupt: names nothing"),
        (("base", "--severity", "3"), "--severity: says nothing without --corrupt"),
        (("base", "--adapt-split", "adapt"), "--adapt-split: says nothing without --rank-by"),
        (("base", "--tolerance", "0.1"), "--tolerance: says nothing without --baseline"),
        (("base", "--seed", "-1"), "--seed: -1 is no seed"),
        (("base", "--corrupt", "contrast,contrast"), "`contrast` is given twice"),
        (("base", "--corrupt", "jpeg,jpeg_compression"), "`jpeg_compression` is given twice"),
        (("base", "-o", "-"), "--json prints the report"),
        (("base", "base"), "`base` is given twice hint: leave one out"),
        (("experts", "experts"), "`experts` is given twice hint: leave one out"),
        (("base.safetensors", "base"), "such as `other=base.safetensors`"),
        (("base", "base.safetensors"), "such as `other=base.safetensors`"),
        (("digits.safetensors", "heads/digits.safetensors"), "such as `other=heads/digits.safetensors`"),
        (("experts", "expert:digits=digits.safetensors"), "a checkpoint cannot be called `expert:digits`"),
        (("base", "--tasks", "digits", "--fail-under", "shapes=0.5"), "unknown task or mean `shapes`"),
        (("base", "--fail-under", "expert:digits/digits=0.5"), "unknown checkpoint `expert:digits`"),
        (("base", "--fail-under", "digits=0.5", "--split", "tset"), "no split `tset`"),
    ],
)
def test_words_that_are_refused_before_anything_is_read(
    suite: Path, here: Path, words: tuple[str, ...], says: str
) -> None:
    outcome = refused(2, "eval", *words, folder=here, says=(says,))
    assert "hint:" in outcome.err


@pytest.mark.parametrize("tolerance", ["nan", "inf", "-0.1"])
def test_a_tolerance_is_checked_before_the_run(suite: Path, here: Path, tolerance: str) -> None:
    evaluated("base", "-o", "before.json", *LIMIT)
    words = ("base", "--baseline", "before.json", "--tolerance", tolerance, *LIMIT)
    refused(2, "eval", *words, folder=here, says=("is no tolerance",))


def test_an_experts_threshold_is_known_where_experts_are_evaluated(suite: Path) -> None:
    evaluated("experts", "--fail-under", "expert:digits/digits=0.1", *LIMIT)
    evaluated("base", "--cross", "--fail-under", "expert:digits/digits=0.1", *LIMIT)


def test_severity_is_five_where_it_is_not_said(suite: Path) -> None:
    pytest.importorskip("imagecorruptions")
    for words, severity in (((), 5), (("--severity", "1"), 1)):
        document = json.loads(evaluated("base", "--corrupt", "contrast", *words, "--json", *LIMIT).out)
        assert {row["severity"] for row in document["rows"]} == {None, severity}


def test_an_expert_whose_score_is_nothing_is_said_not_to_normalise(here: Path) -> None:
    suite = prepared(here, tasks=("digits",))
    save_file({"weight": torch.zeros(10, 64)}, own_copy(here / "heads" / "digits.safetensors"))
    rewritten(here / "data" / "digits.npz", test_y=np.full(400, 9))
    outcome = evaluated("experts", "base", "--suite", suite, *LIMIT)
    assert "not normalised, as the expert scores 0 or less: digits" in outcome.err


# --- inputs ----------------------------------------------------------------------------------------------------


def test_all_checkpoints_that_do_not_fit_are_in_one_message(suite: Path, here: Path) -> None:
    weights = load_file(here / "digits.safetensors")
    save_file({**weights, "visual.extra": torch.zeros(3)}, here / "more.safetensors")
    save_file({**weights, "visual.proj": torch.zeros(96, 32)}, here / "other.safetensors")
    lacking = {name: one for name, one in weights.items() if "resblocks.2" not in name}
    save_file(lacking, here / "lacking.safetensors")
    refused(
        4, "eval", "more.safetensors", "base", "other.safetensors", "lacking.safetensors", *LIMIT, folder=here,
        says=("3 checkpoints do not fit", "1 unexpected: visual.extra", "visual.proj [96, 32]", "12 missing: visual."),
    )  # fmt: skip


def test_a_block_that_is_missing_is_not_the_bases(suite: Path, here: Path) -> None:
    weights = load_file(here / "digits.safetensors")
    lacking = {name: one for name, one in weights.items() if "resblocks.2.mlp" not in name}
    save_file(lacking, here / "lacking.safetensors")
    says = ("4 missing: visual.transformer.resblocks.2.mlp", "--on-missing base")
    refused(4, "eval", "lacking.safetensors", *LIMIT, folder=here, says=says)
    embeddings = {name: one for name, one in weights.items() if "embedding" not in name}
    save_file(embeddings, here / "partial.safetensors")
    assert len(embeddings) == len(weights) - 2
    evaluated("partial.safetensors", *LIMIT)


@pytest.mark.parametrize("words", [(), ("--rank-by", "agreement")])
def test_nan_in_a_checkpoint_names_the_tensor(suite: Path, here: Path, words: tuple[str, ...]) -> None:
    weights = load_file(here / "digits.safetensors")
    weights["visual.ln_post.bias"][3] = torch.inf
    save_file(weights, here / "broken.safetensors")
    says = ("broken.safetensors: `visual.ln_post.bias`: holds NaN or infinity",)
    refused(3, "eval", "shapes.safetensors", "broken.safetensors", *words, *LIMIT, folder=here, says=says)


def test_finite_weights_whose_features_are_not_are_another_matter(suite: Path, here: Path) -> None:
    weights = {name: one.float() for name, one in load_file(here / "digits.safetensors").items()}
    weights["visual.proj"] *= 1e38
    save_file(weights, here / "huge.safetensors")
    refused(7, "eval", "huge.safetensors", *LIMIT, folder=here, says=("`huge`", "`digits`", "its tensors are finite"))


def test_nan_in_a_head_names_the_head(suite: Path, here: Path) -> None:
    weight = load_file(here / "heads" / "digits.safetensors")["weight"]
    weight[2, 5] = torch.nan
    save_file({"weight": weight}, own_copy(here / "heads" / "digits.safetensors"))
    says = ("heads/digits.safetensors: the head's `weight` holds NaN",)
    refused(3, "eval", "base", *LIMIT, folder=here, says=says)


def test_nan_in_the_text_tower_is_told_of_the_zero_shot_head(here: Path) -> None:
    prepared(here, lambda said: said["tasks"]["digits"].update(head="zero_shot"))
    weights = load_file(here / "base.safetensors")
    weights["text_projection"][0, 0] = torch.nan
    save_file(weights, own_copy(here / "base.safetensors"))
    refused(3, "eval", "digits.safetensors", *LIMIT, folder=here, says=("`zero_shot`", "the base's text tower"))


def test_labels_that_are_no_classes(suite: Path, here: Path) -> None:
    """Not cut down to what could be one, with a warning of numpy's on the way."""
    with np.load(here / "data" / "digits.npz") as found:
        labels = found["test_y"]
    cases = [
        (labels.astype(np.complex64), "no class number"),
        (labels + 0.5, "no class number"),
        (labels * 1e30, "no class number"),
        (np.where(labels == 3, np.nan, labels), "label `nan`"),
        (np.eye(10, dtype=np.int64)[labels], "labels of shape"),
        (labels[:-1], "different lengths"),
    ]
    for wrong, says in cases:
        rewritten(here / "data" / "digits.npz", test_y=wrong)
        refused(3, "eval", "base", "--tasks", "digits", "--no-cache", folder=here, says=("data/digits.npz", says))
    rewritten(here / "data" / "digits.npz", test_y=labels[:, None].astype(np.float32))
    evaluated("base", *LIMIT)


def test_a_folder_of_heads_that_is_none(suite: Path, here: Path) -> None:
    refused(3, "eval", "base", "--heads", "nowhere", *LIMIT, folder=here, says=("no such folder of heads",))
    refused(3, "eval", "base", "--heads", "suite.yaml", *LIMIT, folder=here, says=("not a folder of heads",))


# --- outputs ---------------------------------------------------------------------------------------------------


def test_a_device_is_written_as_it_is(suite: Path, here: Path) -> None:
    """/dev/stdout, /dev/null, a pipe: never refused as existing, never replaced by a file."""
    os.mkfifo(here / "pipe")
    reader = os.open(here / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        evaluated("base", "-o", "pipe", "--overwrite", *LIMIT)
        assert json.loads(os.read(reader, 1 << 16))["suite"] == "tiny"
    finally:
        os.close(reader)
    assert (here / "pipe").is_fifo()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_does_not_cost_the_printed_result(suite: Path, here: Path) -> None:
    outcome = run("eval", "base", "-o", "/dev/full", "--json", *LIMIT)
    assert outcome.code == 6
    assert json.loads(outcome.out)["rows"]
    assert "error: /dev/full: cannot be written: No space left on device" in outcome.err


@pytest.mark.parametrize(
    "place",
    [
        "suite.yaml", "digits.safetensors", "base.safetensors", "heads/shapes.safetensors", "data/digits.npz",
        "model.json", "bpe.txt.gz",
    ],
)  # fmt: skip
def test_not_even_overwrite_replaces_an_input(suite: Path, here: Path, place: str) -> None:
    (here / "hard").hardlink_to(own_copy(here / place) if place != "suite.yaml" else suite)
    (here / "soft").symlink_to(here / place)
    for words in (("-o", place), ("--csv", f"./{place}"), ("-o", "hard"), ("--csv", "soft")):
        says = (words[1].removeprefix("./"), "is an input of this evaluation")
        refused(2, "eval", "base", *words, "--overwrite", *LIMIT, folder=here, says=says)


def test_the_weights_in_an_input_folder_are_inputs_too(suite: Path, here: Path) -> None:
    (here / "model").mkdir()
    shutil.copy(here / "digits.safetensors", here / "model" / "model.safetensors")
    (here / "model" / "config.json").write_text("{}")
    for place in ("model/model.safetensors", "other", "model/config.json"):
        (here / "other").unlink(missing_ok=True)
        (here / "other").symlink_to(here / "model" / "model.safetensors")
        refused(2, "eval", "model", "-o", place, "--overwrite", *LIMIT, folder=here, says=(place, "is an input"))


def test_reports_in_an_input_folder_are_replaced(suite: Path, here: Path) -> None:
    (here / "model").mkdir()
    shutil.copy(here / "digits.safetensors", here / "model" / "model.safetensors")
    outputs = ("-o", "model/report.json", "--csv", "model/report.csv", "--clip-benchmark", "model")
    for _ in range(2):
        evaluated("model", *outputs, "--overwrite", *LIMIT)


def test_what_is_another_commands_report_in_an_input_folder_stays(suite: Path, here: Path) -> None:
    (here / "adapted").mkdir()
    shutil.copy(here / "digits.safetensors", here / "adapted" / "model.safetensors")
    (here / "adapted" / "report.json").write_text('{"report": "adapt"}')
    words = ("adapted", "-o", "adapted/report.json", "--overwrite", *LIMIT)
    refused(2, "eval", *words, folder=here, says=("adapted/report.json", "is an input"))


def test_heads_given_in_place_of_the_suites_are_inputs(suite: Path, here: Path) -> None:
    (here / "mine").mkdir()
    shutil.copy(here / "heads" / "digits.safetensors", here / "mine")
    words = ("base", "--heads", "mine", "-o", "mine/digits.safetensors", "--overwrite", *LIMIT)
    refused(2, "eval", *words, folder=here, says=("mine/digits.safetensors", "is an input"))


def test_files_for_clip_benchmark_replace_no_input(suite: Path, here: Path) -> None:
    """Their names are known at the end alone: the printed result stays."""
    (here / "results").mkdir()
    evaluated("base", "--clip-benchmark", "results", "--overwrite", *LIMIT)
    (name,) = os.listdir("results")
    (here / "results" / name).unlink()
    shutil.copy(here / "model.json", here / "results" / name)
    (here / "model.json").unlink()
    (here / "model.json").symlink_to(here / "results" / name)
    before = tree(here)
    outcome = run("eval", "base", "--clip-benchmark", "results", "--overwrite", "--json", *LIMIT)
    assert outcome.code == 2
    assert f"results/{name}: is an input of this evaluation" in outcome.err
    assert json.loads(outcome.out)["rows"]
    assert tree(here) == before


def test_a_baseline_can_be_replaced_by_the_report_that_is_compared_with_it(suite: Path) -> None:
    evaluated("base", "-o", "report.json", *LIMIT)
    evaluated("base", "--baseline", "report.json", "-o", "report.json", "--overwrite", *LIMIT)


def test_files_for_clip_benchmark(suite: Path, here: Path) -> None:
    words = ("experts", "base", "--clip-benchmark", "made/results", "--limit", "5", "--no-cache")
    rows = list(csv.DictReader(evaluated(*words, "--csv", "-").out.splitlines()))
    files = [json.loads(path.read_text()) for path in sorted((here / "made" / "results").glob("*.json"))]
    assert len(files) == len(rows) == 4
    told = {(one["dataset"], one["pretrained"], str(one["metrics"]["acc1"])) for one in files}
    assert told == {(row["dataset"], row["pretrained"], row["acc1"]) for row in rows}
    refused(6, "eval", *words, folder=here, says=("made/results: holds files already", "--overwrite"))
    before = tree(here)
    evaluated(*words, "--overwrite")
    assert tree(here) == before, "the same bytes under the same names"
    refused(6, "eval", "base", "--clip-benchmark", "suite.yaml", folder=here, says=("is a file, not a folder",))


def test_checkpoints_whose_names_differ_in_signs_have_files_of_their_own(suite: Path, here: Path) -> None:
    names = ("a b", "a:b", "a-b")
    evaluated(*(f"{name}={task}.safetensors" for name, task in zip(names, (*TASKS, "base"), strict=True)),
              "--clip-benchmark", "results", *LIMIT)  # fmt: skip
    files = [json.loads(path.read_text()) for path in (here / "results").iterdir()]
    assert {one["pretrained"] for one in files} == set(names)


def test_results_of_clip_benchmark_are_all_written_or_none(
    suite: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from taskmerge.cli import writing

    (here / "results").mkdir()
    write, written = writing.write_bytes, []

    def fails(path: Path, content: bytes, *, overwrite: bool) -> None:
        if written:
            raise writing.BadOutput("cannot be written: No space left on device", where=str(path))
        written.append(path)
        write(path, content, overwrite=overwrite)

    monkeypatch.setattr(writing, "write_bytes", fails)
    outcome = run("eval", "base", "--clip-benchmark", "results", "--limit", "5", "--no-cache")
    assert outcome.code == 6
    assert "digits" in outcome.out
    assert list((here / "results").iterdir()) == []


PROGRAM = f"{sys.executable} -m taskmerge schema eval"


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        (f"{PROGRAM} > /dev/full", 6, "error: the output cannot be written: No space left on device"),
        (f"{PROGRAM} >&-", 0, ""),
        (f"PYTHONIOENCODING=ascii {PROGRAM.replace('schema eval', 'methods cart')}", 0, ""),
    ],
)
def test_a_stdout_that_is_full_closed_or_plain(command: str, code: int, says: str) -> None:
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.strip()) == (code, says)


# --- the same from Python --------------------------------------------------------------------------------------


def test_one_name_is_a_list_of_one(suite: Path, here: Path) -> None:
    report = taskmerge.evaluate("base", suite=suite, tasks="digits", limit=5, cache=str(here / "cache"))
    assert [(row.encoder, row.task) for row in report.rows] == [("base", "digits")]
    with pytest.raises(UsageError, match="unknown corruption `fogg`"):
        taskmerge.evaluate("base", suite=suite, corrupt="fogg")
    with pytest.raises(UsageError, match="--seed"):
        taskmerge.evaluate("base", suite=suite, seed=-1)
    with pytest.raises(BadFile, match="no such folder of heads"):
        taskmerge.evaluate("base", suite=suite, heads="nowhere")


def test_two_suites_with_models_of_one_name(tmp_path: Path) -> None:
    """open_clip's registry knows a model by its file's name; two suites may both have a `model.json`."""
    one, other = prepared(tmp_path / "one"), prepared(tmp_path / "other")
    config = json.loads((tmp_path / "other" / "model.json").read_text())
    config["vision_cfg"]["layers"] -= 1
    own_copy(tmp_path / "other" / "model.json").write_text(json.dumps(config))
    before = taskmerge.evaluate("base", suite=one, tasks="digits", limit=5)
    with pytest.raises(taskmerge.TaskmergeError, match=r"12 unexpected: visual\.transformer\.resblocks\.3"):
        taskmerge.evaluate("base", suite=other, tasks="digits", limit=5)
    assert taskmerge.evaluate("base", suite=one, tasks="digits", limit=5).rows[0].score == before.rows[0].score


def test_one_item(suite: Path) -> None:
    out = evaluated("base", "--tasks", "digits", "--limit", "1", "--no-cache").out
    assert "1 item a task" in out
    assert "100.0 ±79.3" in out or "0.0 ±79.3" in out, "one item says next to nothing"


def test_a_choice_without_any_labels_is_summed_up_too(suite: Path) -> None:
    outcome = evaluated("digits.safetensors", "--rank-by", "agreement", "--split", "adapt", *LIMIT)
    assert "digits" in outcome.out
    assert "done: nothing was scored" in outcome.err


def test_what_a_run_lacks_of_its_baseline_is_not_listed_without_end(suite: Path) -> None:
    kinds = "contrast,pixelate,jpeg,spatter,snow,fog,brightness,saturate"
    pytest.importorskip("imagecorruptions")
    evaluated("base", "--corrupt", kinds, "-o", "before.json", *LIMIT)
    outcome = run("eval", "base", "--baseline", "before.json", *LIMIT)
    assert outcome.code == 4
    assert "base: digits (contrast 5)" in outcome.err
    assert "and 2 more" in outcome.err
