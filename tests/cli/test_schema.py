"""`taskmerge schema`: the published schemas, on stdout."""

import json
from pathlib import Path

import jsonschema
import pytest
from merge_cases import run


@pytest.mark.parametrize("name", ["adapt", "doctor", "eval", "merge", "recover", "spectrum", "sweeps"])
def test_the_schema_is_printed(here: Path, name: str) -> None:
    outcome = run("schema", name)
    assert (outcome.code, outcome.err) == (0, "")
    document = json.loads(outcome.out)
    assert document["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    jsonschema.Draft202012Validator.check_schema(document)
    assert document["title"] == f"taskmerge {name}"


def test_without_a_name_it_lists_them(here: Path) -> None:
    assert run("schema").out == "adapt\ndoctor\neval\nmerge\nrecover\nspectrum\nsweeps\n"


def test_an_unknown_name_is_told_the_nearest(here: Path) -> None:
    outcome = run("schema", "evla")
    assert outcome.code == 2
    assert outcome.err == "error: unknown schema `evla`\nhint: did you mean `eval`?\n"
    assert outcome.out == ""
