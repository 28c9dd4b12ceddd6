"""`taskmerge eval` on two tasks of the embedded example: results, streams, codes, and what is refused."""

import base64
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from eval_cases import EXAMPLE, TASKS, own_copy, prepared, rewritten
from merge_cases import Outcome, refused, run, tree
from PIL import Image
from safetensors.torch import load_file, save_file

from letter_cases import letter_config, save_letters
from taskmerge.checkpoint.adapted import Manifest, write_manifest
from taskmerge.evaluation.results import schema
from taskmerge.models.outputs import Forward

Change = Callable[[dict[str, Any]], None]
LIMIT = ("--limit", "40", "--no-cache")
KNOWN = json.loads((EXAMPLE / "results.json").read_text())


def evaluated(*arguments: object) -> Outcome:
    """An evaluation that must succeed."""
    outcome = run("eval", *arguments)
    assert outcome.code == 0, outcome.err
    return outcome


def report(*arguments: object) -> dict[str, Any]:
    """The JSON document of an evaluation, which its schema describes."""
    document: dict[str, Any] = json.loads(evaluated(*arguments, "--json", "--no-cache").out)
    jsonschema.Draft202012Validator(schema()).validate(document)
    return document


def scores(document: dict[str, Any]) -> dict[tuple[str, str], float]:
    return {(row["checkpoint"], row["task"]): row["score"] for row in document["rows"] if not row["corruption"]}


@pytest.fixture
def suite(here: Path) -> Path:
    """The suite of two tasks, in the working directory."""
    return prepared(here)


# --- results ---------------------------------------------------------------------------------------------------


def test_scores_are_those_that_were_computed_without_taskmerge(suite: Path) -> None:
    found = scores(report("experts", "base"))
    assert found == {
        **{(f"expert:{task}", task): pytest.approx(KNOWN[task][task]) for task in TASKS},
        **{("base", task): pytest.approx(KNOWN["base"][task]) for task in TASKS},
    }


def test_cross_is_every_expert_on_every_task_and_its_diagonal_the_experts_own(suite: Path) -> None:
    plain, crossed = report("experts"), report("base", "--cross")
    found = scores(crossed)
    for encoder in TASKS:
        for task in TASKS:
            assert found[f"expert:{encoder}", task] == pytest.approx(KNOWN[encoder][task])
    assert all(found[key] == score for key, score in scores(plain).items()), "not a bit of difference"
    means = {one["checkpoint"]: one for one in crossed["averages"]}
    assert set(means) == {"base", "experts", "expert:digits", "expert:shapes"}
    assert means["experts"]["normalised"] == 1


def test_two_runs_differ_in_their_timing_alone(suite: Path) -> None:
    arguments = ("base", "experts", "--compare", "experts", "--loss-correlation", "--corrupt", "contrast", *LIMIT)
    first, second = (evaluated(*arguments, "--json").out for _ in range(2))
    without_timing = re.compile(r'"timing": \{[^}]*\}')
    assert without_timing.sub("", first) == without_timing.sub("", second)
    assert without_timing.search(first)
    assert str(Path.cwd()) not in without_timing.sub("", first)


def test_the_rows_say_what_was_evaluated(suite: Path) -> None:
    document = report("experts", "base", *LIMIT)
    assert (document["suite"], document["split"]) == ("tiny", "test")
    assert [one["name"] for one in document["checkpoints"]] == ["expert:digits", "expert:shapes", "base"]
    assert [one["kind"] for one in document["checkpoints"]] == ["expert", "expert", "base"]
    assert {(one["task"], one["n"], one["classes"]) for one in document["data"]} == {
        ("digits", 40, 10),
        ("shapes", 40, 10),
    }
    assert [(row["checkpoint"], row["task"]) for row in document["rows"]] == [
        ("expert:digits", "digits"), ("expert:shapes", "shapes"), ("base", "digits"), ("base", "shapes")
    ]  # fmt: skip
    for row in document["rows"]:
        assert row["n"] == row["correct"]["n"] == 40
        assert row["low"] <= row["score"] <= row["high"]
    relative = {(row["checkpoint"], row["task"]): row["normalised"] for row in document["rows"]}
    found = scores(document)
    for task in TASKS:
        assert relative[f"expert:{task}", task] == 1
        assert relative["base", task] == pytest.approx(found["base", task] / found[f"expert:{task}", task])


def test_without_experts_nothing_is_normalised_and_a_note_says_how(suite: Path) -> None:
    document = report("base", *LIMIT)
    assert {row["normalised"] for row in document["rows"]} == {None}
    assert any("add `experts`" in note for note in document["notes"])


def test_the_limit_is_drawn_by_the_seed(suite: Path) -> None:
    marks = [
        {one["fingerprint"] for one in report("base", "--limit", "40", "--seed", str(seed))["data"]}
        for seed in (0, 0, 1)
    ]
    assert marks[0] == marks[1]
    assert not marks[0] & marks[2]


def test_merged_files_and_other_names(suite: Path, here: Path) -> None:
    assert run("merge", *(f"{task}.safetensors" for task in TASKS), "-m", "average", "-o", "out.safetensors").code == 0
    document = report("mine=out.safetensors", "digits.safetensors", *LIMIT)
    assert [(one["name"], one["kind"]) for one in document["checkpoints"]] == [
        ("mine", "merge"),
        ("digits", "checkpoint"),
    ]
    assert document["checkpoints"][0]["recipe"]["method"] == "average"
    expert = scores(report("experts", *LIMIT))
    assert scores(document)["digits", "digits"] == expert["expert:digits", "digits"]


def test_only_some_tasks(suite: Path) -> None:
    assert set(scores(report("experts", "base", "--tasks", "shapes", *LIMIT))) == {
        ("expert:shapes", "shapes"),
        ("base", "shapes"),
    }


def test_discrepancy_both_ways(suite: Path) -> None:
    document = report("base", "--compare", "experts", *LIMIT)
    found = scores(document)
    assert {(one["checkpoint"], one["task"]) for one in document["comparisons"]} == {("base", task) for task in TASKS}
    for one in document["comparisons"]:
        difference = found[f"expert:{one['task']}", one["task"]] - found["base", one["task"]]
        assert one["net"]["share"] == pytest.approx(difference)
        assert one["lost"]["share"] - one["gained"]["share"] == pytest.approx(difference)
        assert 0 < one["lost"]["share"] < 1


def test_loss_correlation(suite: Path) -> None:
    document = report("base", "--loss-correlation", "--tasks", "digits", *LIMIT)
    found = {(one["loss"], one["items"]): one["score"] for one in document["correlations"]}
    assert set(found) == {(loss, items) for loss in ("entropy", "expert_label") for items in ("all", "expert wrong")}
    assert found["expert_label", "all"] > found["entropy", "all"], "the digits' expert is right on 95%"


def test_corruptions_are_further_rows(suite: Path) -> None:
    pytest.importorskip("imagecorruptions")
    document = report("experts", "base", "--corrupt", "gaussian_noise,contrast", "--severity", "3", *LIMIT)
    kinds = {(row["corruption"], row["severity"]) for row in document["rows"]}
    assert kinds == {(None, None), ("gaussian_noise", 3), ("contrast", 3)}
    assert len(document["rows"]) == 3 * 4
    assert len({one["fingerprint"] for one in document["data"]}) == 6
    means = {(one["checkpoint"], one["corruption"]): one["average"] for one in document["averages"]}
    assert len(means) == 6
    assert means["experts", None] > means["experts", "gaussian_noise"]


def test_someone_elses_heads(suite: Path, here: Path) -> None:
    (here / "others").mkdir()
    for task in TASKS:
        weight = load_file(here / "heads" / f"{task}.safetensors")["weight"]
        save_file({"weight": weight.roll(1, dims=0)}, here / "others" / f"{task}.safetensors")
    own, other = report("experts", *LIMIT), report("experts", "--heads", "others", *LIMIT)
    assert all(other["averages"][0]["average"] < 0.5 < one["average"] for one in own["averages"])
    (here / "others" / "digits.safetensors").unlink()
    refused(3, "eval", "experts", "--heads", "others", *LIMIT, folder=here, says=("no head for task `digits`",))


def test_an_adapted_folder_is_scored_with_its_own_heads(suite: Path, here: Path) -> None:
    folder = here / "adapted"
    (folder / "heads").mkdir(parents=True)
    protocol = "adapted on adapt, 100 iterations"
    write_manifest(folder, Manifest(method="tint", needs_task_index=True, parts=("heads",), protocol=protocol))
    save_file(load_file(here / "digits.safetensors"), folder / "model.safetensors")
    weight = load_file(here / "heads" / "digits.safetensors")["weight"]
    save_file({"weight": weight.roll(1, dims=0)}, folder / "heads" / "digits.safetensors")
    document = report("adapted", "digits.safetensors", *LIMIT)
    found = scores(document)
    assert found["adapted", "digits"] < 0.2 < found["digits", "digits"]
    assert found["adapted", "shapes"] == found["digits", "shapes"], "without a head of its own, the suite's"
    assert document["checkpoints"][0]["kind"] == "adapted"
    assert document["rows"][0]["protocol"] == "adapted on adapt, 100 iterations"
    assert any("no head of its own for `shapes`" in note for note in document["notes"])


def test_tasks_on_the_same_pictures_share_one_pass(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice(said: dict[str, Any]) -> None:
        said["tasks"]["again"] = said["tasks"]["digits"]

    prepared(here, twice)
    from taskmerge.models import outputs as module

    batches: list[int] = []
    encode = module.encode

    def counted(*given: Any, **more: Any) -> Any:
        batches.append(len(given[1]["pixels"]))
        return encode(*given, **more)

    monkeypatch.setattr(module, "encode", counted)
    document = report("base", "--no-cache")
    assert batches == [400, 500], "digits once, shapes once"
    assert scores(document)["base", "again"] == scores(document)["base", "digits"]


def test_data_that_does_not_fit_into_memory_gives_the_same_report(suite: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from taskmerge.evaluation import workload

    arguments = ("base", "experts", "shapes.safetensors", "--compare", "experts", "--corrupt", "contrast", *LIMIT)
    whole = report(*arguments)
    monkeypatch.setattr(workload, "AT_ONCE", 1)
    parts = report(*arguments)
    assert parts.pop("timing") != whole.pop("timing")
    assert parts == whole


def test_memory_that_runs_out_halves_the_batch_once(suite: Path, monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    from taskmerge.models import outputs as module

    expected = report("base", *LIMIT)
    encode, sizes, fits = module.encode, [], 16

    def small(*given: Any, batch_size: int, **more: Any) -> Any:
        sizes.append(batch_size)
        if batch_size > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(*given, batch_size=batch_size, **more)

    monkeypatch.setattr(module, "encode", small)
    document = report("base", "--batch-size", "32", *LIMIT)
    assert sizes == [32, 16, 16], "the smaller batch stays"
    assert scores(document) == scores(expected)
    assert any("batches of 16" in note for note in document["notes"])
    assert document["timing"]["samples"] == 80
    fits = 15
    refused(5, "eval", "base", "--batch-size", "32", *LIMIT, folder=here, says=("--batch-size", "too little memory"))


# --- where it goes ---------------------------------------------------------------------------------------------


def test_the_table_goes_to_stdout_and_the_rest_to_stderr(suite: Path) -> None:
    outcome = evaluated("experts", "base", *LIMIT)
    for word in (*TASKS, "experts", "base", "average"):
        assert word in outcome.out
    assert "note: the suite is suite.yaml of the working directory" in outcome.err
    assert re.search(r"done in .* s: 160 samples, [\d,]+/s", outcome.err)
    assert "done in" not in outcome.out
    quiet = evaluated("experts", "base", "--quiet", *LIMIT)
    assert quiet.err == ""
    assert quiet.out == outcome.out


def test_markdown_csv_and_files(suite: Path, here: Path) -> None:
    outcome = evaluated("base", "--markdown", "-o", "new/report.json", "--csv", "rows.csv", *LIMIT)
    assert outcome.out.startswith("|") or "\n|" in outcome.out
    document = json.loads((here / "new" / "report.json").read_text())
    jsonschema.Draft202012Validator(schema()).validate(document)
    written = (here / "rows.csv").read_text()
    assert len(written.splitlines()) > 2
    assert evaluated("base", "--csv", "-", *LIMIT).out == written
    assert [name for name in tree(here) if ".tmp-" in name] == []


def test_existing_files_are_kept_without_overwrite(suite: Path, here: Path) -> None:
    (here / "report.json").write_text("mine")
    refused(
        6, "eval", "base", "-o", "report.json", *LIMIT, folder=here, says=("report.json: exists already", "--overwrite")
    )
    refused(6, "eval", "base", "--csv", "report.json", *LIMIT, folder=here, says=("exists already",))
    refused(6, "eval", "base", "-o", "heads", *LIMIT, folder=here, says=("holds files already",))
    evaluated("base", "-o", "report.json", "--overwrite", *LIMIT)
    assert json.loads((here / "report.json").read_text())["suite"] == "tiny"


# --- checks ----------------------------------------------------------------------------------------------------


def test_a_missed_threshold_ends_with_8_after_the_result(suite: Path, here: Path) -> None:
    outcome = run("eval", "base", "--fail-under", "digits=0.9", "-o", "report.json", "--json", *LIMIT)
    assert outcome.code == 8
    document = json.loads(outcome.out)
    assert json.loads((here / "report.json").read_text()) == document
    (check,) = document["checks"]
    assert (check["passed"], check["wanted"]) == (False, 0.9)
    assert "error: 1 of 1 checks failed" in outcome.err
    assert "digits" in outcome.err
    assert evaluated("base", "--fail-under", "digits=0.01", "--fail-under", "average=0.01", *LIMIT)


def test_a_baseline_is_compared_and_kept_to(suite: Path, here: Path) -> None:
    evaluated("now=digits.safetensors", "-o", "good.json", *LIMIT)
    evaluated("now=digits.safetensors", "--baseline", "good.json", *LIMIT)
    outcome = run("eval", "now=base.safetensors", "--baseline", "good.json", "--tolerance", "0.005", "--json", *LIMIT)
    assert outcome.code == 8
    failed = [one for one in json.loads(outcome.out)["checks"] if not one["passed"]]
    assert "digits" in {one["task"] for one in failed}
    assert all(one["low"] <= one["difference"] <= one["high"] for one in failed)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("now=digits.safetensors", "--limit", "30"), "the data differs from the baseline's: digits"),
        (("now=digits.safetensors", "--limit", "60", "--tasks", "shapes"), "scores that this run lacks: now: "),
        (("now=digits.safetensors", "--limit", "60", "--split", "adapt"), "the baseline's split is `test`"),
        (("other=digits.safetensors", "then=base.safetensors", "--limit", "60"), "no checkpoint of this run"),
    ],
)
def test_what_no_baseline_can_be_compared_with_is_told_before_the_work(
    suite: Path, here: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], says: str
) -> None:
    evaluated("now=digits.safetensors", "-o", "good.json", "--limit", "60", "--no-cache")

    def encoded(*_: object) -> None:
        raise AssertionError("something was encoded")

    monkeypatch.setattr(Forward, "outputs", encoded)
    refused(4, "eval", *words, "--baseline", "good.json", "--no-cache", "--json", says=(says,), folder=here)


def test_thresholds_are_understood_before_anything_runs(suite: Path, here: Path) -> None:
    for words, says in (
        (("--fail-under", "digit=0.9"), "did you mean `digits`?"),
        (("--fail-under", "digits=high"), "is no threshold"),
        (("--fail-under", "normalised=0.9"), "add `experts`"),
        (("--fail-over", "digits=0.1"), "--fail-under"),
        (("--tolerance", "0.1"), "--baseline"),
    ):
        refused(2, "eval", "base", *words, folder=here, says=(says,))
    refused(3, "eval", "base", "--baseline", "none.json", folder=here, says=("none.json",))


# --- what is refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ((), 2, "nothing to evaluate"),
        (("base", "--json", "--markdown"), 2, "cannot both be printed"),
        (("base", "--json", "--csv", "-"), 2, "cannot both be printed"),
        (("base", "-o", "x", "--csv", "x"), 2, "both JSON and CSV"),
        (("base", "--split", "tset"), 2, "no split `tset`"),
        (("base", "--split", "adapt"), 2, "no labels"),
        (("base", "--tasks", "digit"), 2, "did you mean `digits`?"),
        (("base", "--limit", "0"), 2, "--limit"),
        (("base", "--batch-size", "0"), 2, "--batch-size"),
        (("base", "--compare", "base"), 2, "it takes `experts`"),
        (("base", "--corrupt", "motionblur"), 2, "did you mean `motion_blur`?"),
        (("base", "--corrupt", "contrast", "--severity", "6"), 2, "severity"),
        (("base", "--device", "gpu"), 2, "is no device"),
        (("base", "--cache", "x", "--no-cache"), 2, "contradict"),
        (("base", "--suite", "none.yaml"), 3, "none.yaml"),
        (("bas.safetensors",), 3, "did you mean `base.safetensors`?"),
        (("base", "x=base"), 3, "no such file"),
    ],
)
def test_wrong_words(suite: Path, here: Path, words: tuple[str, ...], code: int, says: str) -> None:
    refused(code, "eval", *words, folder=here, says=(says,))


def test_no_suite(here: Path) -> None:
    refused(2, "eval", "base", folder=here, says=("no suite given", "hint:"))


def set_in(said: dict[str, Any], path: str, value: object) -> None:
    *keys, last = path.split(".")
    for key in keys:
        said = said[key]
    said[last] = value


@pytest.mark.parametrize(
    ("path", "value", "code", "says"),
    [
        ("tasks.digits.data.test.file", "data/digit.npz", 3, "data/digit.npz"),
        ("tasks.digits.data.test.x", "test_z", 2, "test_z"),
        ("tasks.digits.head", "heads/none.safetensors", 3, "heads/none.safetensors"),
        ("tasks.digits.expert", "none.safetensors", 3, "none.safetensors"),
        ("base", "none.safetensors", 3, "none.safetensors"),
        ("backbone.model", "none.json", 3, "none.json"),
        ("tasks.digits.classes", ["zero", "one"], 4, "10"),
        ("tasks.digits.metric", "miou", 2, "miou"),
        ("backbone.librari", "x", 2, "librari"),
    ],
)
def test_wrong_suites(here: Path, path: str, value: object, code: int, says: str) -> None:
    prepared(here, lambda said: set_in(said, path, value))
    refused(code, "eval", "experts", *LIMIT, folder=here, says=(says,))


def test_a_head_of_another_number_of_classes(suite: Path, here: Path) -> None:
    head = own_copy(here / "heads" / "digits.safetensors")
    save_file({"weight": load_file(head)["weight"][:7].contiguous()}, head)
    refused(4, "eval", "base", *LIMIT, folder=here, says=("heads/digits.safetensors", "7", "10"))


def test_labels_outside_the_classes(suite: Path, here: Path) -> None:
    rewritten(here / "data" / "digits.npz", test_y=np.full(400, 10))
    refused(3, "eval", "base", *LIMIT, folder=here, says=("digits", "10"))


def test_an_empty_task(suite: Path, here: Path) -> None:
    rewritten(here / "data" / "digits.npz", test_x=np.zeros((0, 24, 24, 3), np.uint8), test_y=np.zeros(0, np.int64))
    refused(3, "eval", "base", *LIMIT, folder=here, says=("digits", "no items"))


def test_a_checkpoint_of_another_architecture(suite: Path, here: Path) -> None:
    save_file({"bert.encoder.layer.0.weight": torch.zeros(3, 3)}, here / "other.safetensors")
    outcome = refused(
        4, "eval", "base", "other.safetensors", *LIMIT, folder=here, says=("other.safetensors", "does not fit")
    )
    assert "bert.encoder.layer.0.weight" in outcome.err
    assert "samples" not in outcome.err, "found before anything was encoded"


def pictures(here: Path) -> Change:
    """A folder of pictures, one of which is no picture."""
    with np.load(EXAMPLE / "data" / "digits.npz") as found:
        for number in range(8):
            home = here / "pictures" / f"{found['test_y'][number]:02}"
            home.mkdir(parents=True, exist_ok=True)
            Image.fromarray(found["test_x"][number]).save(home / f"{number}.png")
    next(iter(sorted((here / "pictures").rglob("*.png")))).write_bytes(b"\x89PNG\r\n\x1a\n broken")
    return lambda said: set_in(said, "tasks.digits.data", {"test": {"folder": "pictures"}})


def test_a_picture_that_cannot_be_decoded(here: Path) -> None:
    folder = here / "suite"
    change = pictures(folder)
    classes = sorted(path.name for path in (folder / "pictures").iterdir())

    def changed(said: dict[str, Any]) -> None:
        change(said)
        said["tasks"]["digits"]["classes"] = classes
        said["tasks"]["digits"]["head"] = "heads/few.safetensors"

    path = prepared(folder, changed)
    weight = load_file(folder / "heads" / "digits.safetensors")["weight"]
    save_file({"weight": weight[[int(one) for one in classes]].contiguous()}, folder / "heads" / "few.safetensors")
    broken = str(next(iter(sorted((folder / "pictures").rglob("*.png")))))
    arguments = ("base", "--suite", path, "--tasks", "digits")
    refused(3, "eval", *arguments, "--no-cache", folder=here, says=(Path(broken).name, "--skip-bad"))
    document = report(*arguments, "--skip-bad")
    assert [(row["n"], row["skipped"]) for row in document["rows"]] == [(7, 1)]
    assert document["data"][0]["skipped"] == 1
    assert any("1 item" in one for one in document["warnings"])


def test_texts_for_a_vision_backbone(here: Path) -> None:
    def texts(said: dict[str, Any]) -> None:
        set_in(said, "tasks.digits.data", {"test": {"file": "texts.jsonl", "x": "text", "y": "label"}})

    prepared(here, texts)
    (here / "texts.jsonl").write_text('{"text": "one", "label": 1}\n')
    refused(4, "eval", "base", "--no-cache", folder=here, says=("text", "digits"))


@pytest.fixture
def text_suite(here: Path) -> Path:
    """A random small BERT with one task of two sentences, in the working directory."""
    from transformers import BertModel

    BertModel(letter_config()).save_pretrained(here / "bert")
    save_letters(here / "bert")
    save_file({"weight": torch.randn(2, 8), "bias": torch.zeros(2)}, here / "head.safetensors")
    lines = [json.dumps({"text": text, "label": label}) for text, label in (("a b c", 0), ("d", 1), ("e f g h i", 1))]
    (here / "test.jsonl").write_text("\n".join(lines))
    path = here / "suite.yaml"
    path.write_text(
        "taskmerge: 1\nname: texts\n"
        "backbone: {library: transformers, model: bert, tokenizer: bert, pooling: mean, max_length: 12}\n"
        "base: bert\ntasks:\n  letters:\n    head: head.safetensors\n    kind: classification\n    metric: accuracy\n"
        "    classes: [vowel, other]\n    data:\n      test: {file: test.jsonl, x: text, y: label}\n"
    )
    return path


def test_texts(text_suite: Path, here: Path) -> None:
    """Against transformers itself, one text at a time."""
    import transformers

    model = transformers.AutoModel.from_pretrained(here / "bert").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(here / "bert")
    head = load_file(here / "head.safetensors")
    right = []
    for line in (here / "test.jsonl").read_text().splitlines():
        item = json.loads(line)
        with torch.inference_mode():
            feature = model(**tokenizer(item["text"], return_tensors="pt")).last_hidden_state.mean(1)
        right.append(int((feature @ head["weight"].T + head["bias"]).argmax()) == item["label"])
    document = report("base", "--batch-size", "2")
    (row,) = document["rows"]
    assert row["score"] == pytest.approx(sum(right) / 3)
    bits = np.unpackbits(np.frombuffer(base64.b64decode(row["correct"]["bits"]), np.uint8))[:3]
    assert bits.tolist() == right, "in the order of the file"


def test_a_tokenizer_that_is_missing(text_suite: Path, here: Path) -> None:
    for path in here.glob("bert/*token*"):
        path.unlink()
    refused(3, "eval", "base", "--no-cache", folder=here, says=("tokenizer", "bert"))


def test_pictures_are_not_corrupted_where_there_are_none(text_suite: Path, here: Path) -> None:
    refused(2, "eval", "base", "--corrupt", "contrast", "--no-cache", folder=here, says=("texts",))


# --- start-up --------------------------------------------------------------------------------------------------


NO_TORCH = """
import sys
from taskmerge.cli import app
code = app.run(["eval", "--help"])
heavy = {"torch", "numpy", "scipy", "sklearn", "safetensors", "transformers", "open_clip", "yaml", "pydantic"}
print(sorted({name.split(".")[0] for name in sys.modules} & heavy), file=sys.stderr)
sys.exit(code)
"""


def test_help_imports_nothing_heavy(here: Path) -> None:
    done = subprocess.run([sys.executable, "-c", NO_TORCH], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "[]\n")
    for option in ("--suite", "--cross", "--fail-under", "--baseline", "--skip-bad", "--loss-correlation"):
        assert option in done.stdout
