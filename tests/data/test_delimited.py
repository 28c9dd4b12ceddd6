"""Columns of .csv and .tsv files, byte order marks, and class names in parquet's metadata."""

import csv
import gzip
from pathlib import Path

import datasets
import pytest
from data_cases import Bytes, load, texts_of
from hypothesis import given, settings
from hypothesis import strategies as st

from taskmerge.errors import BadFile, UsageError
from taskmerge.specs.suite import Split

words = st.text(st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters="\u2028\u2029\x85"), min_size=1)
texts = st.lists(words, min_size=1, max_size=6)


def split(path: Path, x: str = "text", y: str = "label") -> Split:
    return Split("delimited", path, (x,), y, place="suite.yaml:3:5")


@settings(max_examples=60, deadline=None)
@given(given=texts, zipped=st.booleans(), mark=st.booleans(), quoted=st.booleans())
def test_what_was_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, given: list[str], zipped: bool, mark: bool, quoted: bool
) -> None:
    if not quoted:
        given = [text.replace("\t", " ") for text in given]
    path = tmp_path_factory.mktemp("table") / f"a.{'csv' if quoted else 'tsv'}{'.gz' if zipped else ''}"
    with (gzip.open if zipped else open)(path, "wt", encoding="utf-8-sig" if mark else "utf-8", newline="") as file:
        rows = [["label", "text"], *([str(number % 3), text] for number, text in enumerate(given))]
        if quoted:
            csv.writer(file).writerows(rows)
        else:
            file.writelines("\t".join(row) + "\n" for row in rows)
    labelled = load(split(path), Bytes())
    assert labelled.labels.tolist() == [number % 3 for number in range(len(given))]
    assert texts_of(labelled.items) == given


def test_glues_own_files(tmp_path: Path) -> None:
    """CoLA has no header, SST-2 a header and a quote that is only a sign, MNLI classes by name."""
    (tmp_path / "cola.tsv").write_text("gj04\t1\t\tOur \"friends won't buy.\nc13\t0\t*\tThey drank the pub.\n")
    cola = load(split(tmp_path / "cola.tsv", "3", "1"), Bytes())
    assert texts_of(cola.items) == ["Our \"friends won't buy.", "They drank the pub."]
    assert cola.labels.tolist() == [1, 0]
    (tmp_path / "mnli.tsv").write_text("index\tsentence1\tgold_label\n0\tYes\tneutral\n1\tNo\tentailment\n")
    mnli = load(split(tmp_path / "mnli.tsv", "sentence1", "gold_label"), Bytes(), classes=["entailment", "neutral"])
    assert mnli.labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("text,label\na,1\nb\n", r"a\.csv:3: has 1 columns"),
        ('text,label\n"a,1\n', r"a\.csv:\d: cannot be read"),
        ("words,label\na,1\n", "no column `text`"),
        ("text,label\na,maybe\n", "label `maybe` is none of the 3 classes"),
        ("", "no column `text`"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises((BadFile, UsageError), match=message):
        load(split(tmp_path / "a.csv"), Bytes())


def test_json_lines_may_begin_with_a_mark(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('\ufeff{"text": "a", "label": 2}\n', encoding="utf-8")
    labelled = load(Split("jsonl", tmp_path / "a.jsonl", ("text",), "label"), Bytes())
    assert labelled.labels.tolist() == [2]
    assert texts_of(labelled.items) == ["a"]


@pytest.mark.parametrize("names", [["yes", "no", "so"], ["no", "so", "yes"]])
def test_parquet_keeps_the_names_of_its_classes(tmp_path: Path, names: list[str]) -> None:
    kinds = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
    rows = {"text": list("abc"), "label": [0, 1, 2]}
    datasets.Dataset.from_dict(rows, features=kinds).to_parquet(str(tmp_path / "a.parquet"))
    labelled = load(Split("parquet", tmp_path / "a.parquet", ("text",), "label"), Bytes(), classes=["no", "so", "yes"])
    assert labelled.labels.tolist() == [["no", "so", "yes"].index(name) for name in names]
