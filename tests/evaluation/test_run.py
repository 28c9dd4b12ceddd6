"""`evaluate` as a function: what it notes and counts, files it may unpickle, and heads that experts bring along."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file

from letter_cases import LETTERS, letter_config, save_letters
from taskmerge import Report, evaluate
from taskmerge.errors import TaskmergeError
from taskmerge.evaluation.results import to_json
from taskmerge.specs.suite import BackboneSpec, Split, Suite, Task, Tokenizer
from taskmerge.specs.suite_file import load_suite

EXAMPLE = Path(__file__).parents[2] / "examples" / "tiny"


@pytest.fixture
def suite() -> Suite:
    """One task of the embedded example."""
    found = load_suite(EXAMPLE / "suite.yaml")
    return replace(found, tasks=tuple(task for task in found.tasks if task.name == "digits"), notes=())


def values(report: Report) -> dict[str, float]:
    return {row.encoder: row.score.value for row in report.rows}


def test_one_item_in_a_batch_of_one(suite: Suite) -> None:
    report = evaluate(["base"], suite=suite, limit=1, batch_size=1)
    assert [(row.score.n, row.skipped) for row in report.rows] == [(1, 0)]
    (mean,) = to_json(report)["averages"]
    assert (mean["checkpoint"], mean["tasks"]) == ("base", 1)


def test_nothing_is_noted_where_there_is_nothing_to_note(suite: Suite) -> None:
    report = evaluate(["base", "experts"], suite=suite, limit=20, compare="experts", loss_correlation=True)
    assert (report.notes, report.warnings) == ((), ())
    assert evaluate(["base"], suite=suite, limit=20).notes == (
        "scores are not normalised: add `experts` to the checkpoints",
    )


def test_pickles_are_read_where_that_is_allowed(suite: Suite, tmp_path: Path) -> None:
    torch.save(load_file(EXAMPLE / "base.safetensors"), tmp_path / "base.pt")
    pickled = replace(suite, base=tmp_path / "base.pt")
    found = evaluate(["base", f"same={tmp_path / 'base.pt'}"], suite=pickled, limit=20, allow_pickle=True)
    (wanted,) = values(evaluate(["base"], suite=suite, limit=20)).values()
    assert values(found) == {"base": wanted, "same": wanted}
    with pytest.raises(TaskmergeError, match="--allow-pickle"):
        evaluate([tmp_path / "base.pt"], suite=suite, limit=20)


@pytest.mark.parametrize(
    ("count", "said"), [(1, "1 item cannot be decoded and is"), (2, "2 items cannot be decoded and are")]
)
def test_items_left_out_are_counted(suite: Suite, tmp_path: Path, count: int, said: str) -> None:
    (task,) = suite.tasks
    for name in task.classes:
        (tmp_path / name).mkdir()
        Image.new("RGB", (24, 24)).save(tmp_path / name / "good.png")
    for number in range(count):
        (tmp_path / task.classes[0] / f"bad{number}.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    split = Split("images", tmp_path, (), "label")
    report = evaluate(["base"], suite=replace(suite, tasks=(replace(task, splits={"test": split}),)), skip_bad=True)
    assert f"split `test` of task `digits`: {said} left out" in report.warnings
    assert [(row.score.n, row.skipped) for row in report.rows] == [(len(task.classes), count)]


@pytest.mark.parametrize("from_base", [True, False])
def test_an_experts_own_classifier_scores_every_encoder(tmp_path: Path, from_base: bool) -> None:
    """BERT with a classifier of its own, against transformers; the expert's head is used for the base too."""
    config = letter_config(num_labels=3)
    torch.manual_seed(0)
    expert, base = (transformers.BertForSequenceClassification(config).eval() for _ in range(2))
    with torch.no_grad():
        for model in (expert, base):
            model.classifier.weight.normal_(std=5)
    expert.save_pretrained(tmp_path / "expert")
    base.bert.save_pretrained(tmp_path / "base")
    save_letters(tmp_path / "base")
    texts = [" ".join(LETTERS[start : start + 1 + start % 4]) for start in range(10)] * 3
    labels = [number % 3 for number in range(30)]
    lines = "".join(f'{{"text": "{text}", "label": {label}}}\n' for text, label in zip(texts, labels, strict=True))
    (tmp_path / "test.jsonl").write_text(lines)
    split = Split("jsonl", tmp_path / "test.jsonl", ("text",), "label")
    task = Task("letters", tmp_path / "expert", "expert", "classification", "accuracy", splits={"test": split})
    spec = BackboneSpec("transformers", tmp_path / "base", Tokenizer(folder=tmp_path / "base"))
    suite = Suite("own", "suite.yaml", tmp_path, spec, tmp_path / "base", (task,))

    given = transformers.AutoTokenizer.from_pretrained(tmp_path / "base")(texts, padding=True, return_tensors="pt")
    encoder = "base" if from_base else "experts"
    with torch.inference_mode():
        if from_base:  # its encoder and pooler's place are the base's, classifier and pooler the expert's
            expert.bert.load_state_dict(
                {name: one for name, one in base.bert.state_dict().items() if "pooler" not in name}, strict=False
            )
        wanted = expert(**given).logits.argmax(1).eq(torch.tensor(labels)).float().mean()
    (found,) = values(evaluate([encoder], suite=suite)).values()
    assert 0 < found < 1
    assert found == pytest.approx(float(wanted))
