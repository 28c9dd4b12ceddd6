"""`taskmerge inspect suite.yaml`: what was found, what is missing, and nothing read that need not be."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from merge_cases import refused, run, save, tree

from taskmerge.checkpoint.checkpoint import Checkpoint
from taskmerge.specs.suite_file import packaged

EXAMPLE = Path(__file__).parents[2] / "examples" / "tiny"
SUITE = """\
taskmerge: 1
backbone: {library: open_clip, model: model.json}
base: base.safetensors
tasks:
  cars:
    expert: cars.safetensors
    head: head.safetensors
    classes: [audi, bmw]
    data:
      test: SPLIT
"""


def suite(folder: Path, split: str = "{file: cars.npz, x: test_x, y: test_y}") -> Path:
    """A complete suite of one task, but for its data."""
    (folder / "model.json").write_text("{}")
    save(folder / "base.safetensors", {"a": torch.zeros(2, 3)})
    save(folder / "cars.safetensors", {"a": torch.zeros(2, 3)})
    save(folder / "head.safetensors", {"weight": torch.zeros(2, 3)})
    path = folder / "suite.yaml"
    path.write_text(SUITE.replace("SPLIT", split))
    return path


def test_weights_that_cannot_be_read_are_bad(tmp_path: Path) -> None:
    path = suite(tmp_path)
    np.savez(tmp_path / "cars.npz", test_x=np.zeros((3, 2)), test_y=np.zeros(3, np.int64))
    assert run("inspect", path).code == 0
    save(tmp_path / "cars.safetensors", {"a.weight": torch.zeros(2, 3, dtype=torch.int8), "a.SCB": torch.ones(2)})
    done = run("inspect", path)
    assert done.code == 3
    assert "is quantised (bitsandbytes, 8 bits)" in done.words


def document(code: int, path: Path) -> dict[str, Any]:
    outcome = run("inspect", path, "--json")
    assert outcome.code == code, outcome.err
    return dict(json.loads(outcome.out)[0])


def entry(path: Path) -> dict[str, Any]:
    """The test split of a complete suite."""
    return dict(document(0, path)["tasks"][0]["splits"]["test"])


def test_the_embedded_example_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Checkpoint, "read_into", lambda *_: pytest.fail("read"))
    before = tree(EXAMPLE)
    outcome = run("inspect", EXAMPLE / "suite.yaml")
    assert (outcome.code, outcome.err) == (0, "")
    assert "the suite tiny, 8 tasks, complete" in outcome.out
    assert "  letters: classification, accuracy, 26 classes, 2 templates" in outcome.out
    assert "letters.npz: 500 items of uint8 24 x 24 x 3" in outcome.out
    assert "letters.npz: 300 items of uint8 24 x 24 x 3, unlabelled" in outcome.out
    said = document(0, EXAMPLE / "suite.yaml")
    assert said["kind"] == "suite"
    assert said["missing"] == []
    assert said["tasks"][1]["head"]["said"] == "26 x 64"
    assert tree(EXAMPLE) == before


def test_what_is_missing_is_listed_and_the_code_is_3(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(EXAMPLE, tmp_path / "tiny"))
    for name in ("shapes.safetensors", "heads/digits.safetensors", "data/counts.npz", "base.safetensors"):
        (folder / name).unlink()
    outcome = run("inspect", folder / "suite.yaml")
    assert outcome.code == 3
    warnings = [line for line in outcome.err.splitlines() if line.startswith("warning: ")]
    assert warnings == [
        f"warning: the base: {folder}/base.safetensors is missing",
        f"warning: the head of `digits`: {folder}/heads/digits.safetensors is missing",
        f"warning: the expert of `shapes`: {folder}/shapes.safetensors is missing",
        f"warning: the split `test` of `counts`: {folder}/data/counts.npz is missing",
        f"warning: the split `adapt` of `counts`: {folder}/data/counts.npz is missing",
    ]
    assert "5 things missing or bad" in outcome.out
    assert "base.safetensors: MISSING" in outcome.out
    assert len(document(3, folder / "suite.yaml")["missing"]) == 5


def test_a_head_with_a_hidden_layer_is_described_by_its_output(tmp_path: Path) -> None:
    path, hidden = suite(tmp_path), {"hidden.weight": torch.zeros(4, 3), "hidden.bias": torch.zeros(4)}
    np.savez(tmp_path / "cars.npz", test_x=np.zeros((4, 8, 8, 3), np.uint8), test_y=np.zeros(4, np.int64))
    for code, classes, said in ((0, 2, "2 x 4"), (3, 5, "`output.weight` is [5, 4], and the suite names 2 classes")):
        save(tmp_path / "head.safetensors", {**hidden, "output.weight": torch.zeros(classes, 4)})
        assert said in document(code, path)["tasks"][0]["head"]["said"]


def test_what_is_there_but_of_no_use(tmp_path: Path) -> None:
    path = suite(tmp_path)
    save(tmp_path / "head.safetensors", {"weight": torch.zeros(5, 3)})
    (tmp_path / "base.safetensors").write_text("this is no model at all")
    np.savez(tmp_path / "cars.npz", test_x=np.zeros((4, 8, 8, 3), np.uint8), labels=np.zeros(4, np.int64))
    missing = "\n".join(document(3, path)["missing"])
    assert "`weight` is [5, 3], and the suite names 2 classes" in missing
    assert "base.safetensors" in missing
    assert "has no `test_y`; hint: its arrays: test_x, labels" in missing.replace("\n", "; ")
    save(tmp_path / "head.safetensors", {"w": torch.zeros(2, 3)})
    np.savez(tmp_path / "cars.npz", test_x=np.zeros((4, 8), np.uint8), test_y=np.zeros(5, np.int64))
    missing = "\n".join(document(3, path)["missing"])
    assert "has no tensor `weight` (it has w)" in missing
    assert "different lengths: `test_x` 4, `test_y` 5" in missing
    (tmp_path / "cars.npz").write_bytes(b"not a zip file")
    assert "cars.npz: is damaged: File is not a zip file" in "\n".join(document(3, path)["missing"])


def test_every_form_of_data(tmp_path: Path) -> None:
    columns = pyarrow.table({"text": ["a", "b", "c"], "label": [0, 1, 0]})
    pyarrow.parquet.write_table(columns, tmp_path / "a.parquet")
    said = entry(suite(tmp_path, "{file: a.parquet, x: text, y: label}"))
    assert (said["items"], said["labelled"]) == (3, True)
    (tmp_path / "a.jsonl").write_text('{"text": "a", "label": 0}\n' * 2)
    said = entry(suite(tmp_path, "{file: a.jsonl, x: text}"))
    assert (said["items"], said["labelled"]) == (None, False)
    assert said["source"]["said"] == "records of text, label"
    for name in ("audi/1.png", "audi/2.png", "bmw/3.png", "bmw/.hidden"):
        (tmp_path / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pictures" / name).write_bytes(b"")
    assert entry(suite(tmp_path, "{folder: pictures}"))["items"] == 3
    (tmp_path / "mnist").mkdir()
    assert entry(suite(tmp_path, "{torchvision: MNIST, root: mnist}"))["source"]["state"] == "found"
    said = entry(suite(tmp_path, "{hub: org/name, x: image, y: label}"))
    assert (said["source"]["state"], said["source"]["where"]) == ("hub", "hub org/name")


def test_folders_that_datasets_saved(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]})
    table.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": table, "test": table}).save_to_disk(str(tmp_path / "many"))
    assert entry(suite(tmp_path, "{folder: one, x: text, y: label}"))["source"]["said"] == "columns text, label"
    assert entry(suite(tmp_path, "{folder: many, split: test, x: text, y: label}"))["source"]["state"] == "found"
    assert entry(suite(tmp_path, "{folder: many, x: text, y: label}"))["source"]["state"] == "found", "test by its name"
    missing = document(3, suite(tmp_path, "{folder: many, split: val, x: text}"))["missing"]
    assert "`split:` is one of train, test" in missing[0]
    missing = document(3, suite(tmp_path, "{folder: one, x: words}"))["missing"]
    assert "has no `words`; hint: its columns: text, label" in missing[0]


def test_a_suite_beside_checkpoints(tmp_path: Path) -> None:
    path = suite(tmp_path, "{hub: org/name, x: image}")
    outcome = run("inspect", tmp_path / "cars.safetensors", path)
    assert outcome.code == 0
    assert "cars.safetensors: a checkpoint" in outcome.out
    assert "the suite suite, 1 tasks, complete" in outcome.out


def test_a_suite_that_is_wrong_in_itself(tmp_path: Path) -> None:
    path = suite(tmp_path)
    path.write_text(path.read_text().replace("expert:", "expret:"))
    refused(2, "inspect", path, says=("suite.yaml:6:5", "did you mean `expert`?"))
    refused(3, "inspect", tmp_path / "nothing.yaml", says=("there is no such file",))


def test_what_is_on_the_hub_is_not_called_complete() -> None:
    outcome = run("inspect", packaged()["clip-vit-b-32-8"])
    assert outcome.code == 0
    assert "8 tasks, complete but for the hub, which was not asked" in outcome.out
    assert "mnist: classification, accuracy, 10 classes, 1 template\n" in outcome.out


@pytest.mark.parametrize(
    ("content", "says"), [("", "is not JSON"), ("[]", "is no JSON object"), ("{", "is not JSON"), (None, "is missing")]
)
def test_a_model_whose_configuration_is_none(tmp_path: Path, content: str | None, says: str) -> None:
    path = suite(tmp_path, "{file: cars.jsonl, x: text, y: label}")
    (tmp_path / "cars.jsonl").write_text('{"text": "a", "label": 0}\n')
    (tmp_path / "model.json").unlink() if content is None else (tmp_path / "model.json").write_text(content)
    (missing,) = document(3, path)["missing"]
    assert missing.startswith("the model: ")
    assert says in missing


def test_folders_without_model_or_tokenizer(tmp_path: Path) -> None:
    path = suite(tmp_path, "{file: cars.jsonl, x: text, y: label}")
    (tmp_path / "cars.jsonl").write_text('{"text": "a", "label": 0}\n')
    (tmp_path / "bert").mkdir()
    words = "{library: transformers, model: bert, tokenizer: bert, pooling: mean}"
    path.write_text(path.read_text().replace("{library: open_clip, model: model.json}", words))
    found = document(3, path)["missing"]
    assert [one.split(":")[0] for one in found] == ["the model", "the tokenizer"]
    assert "config.json: no such file" in found[0]
    assert "has none of tokenizer.json, vocab.txt" in found[1]
    (tmp_path / "bert" / "config.json").write_text("{}")
    (tmp_path / "bert" / "vocab.txt").write_text("a")
    assert document(0, path)["missing"] == []
