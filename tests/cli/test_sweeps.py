"""`taskmerge spectrum --suite --sweep`: what it writes, that it goes on, and what it refuses."""

import json
from pathlib import Path

import jsonschema
import pytest
from merge_cases import run

from taskmerge.spectra.report import schema
from taskmerge.workflows.sweeps.schema import schema as sweeps_schema

EXAMPLE = Path(__file__).parents[2] / "examples" / "tiny"
SHORT = (
    "spectrum",
    "--suite",
    str(EXAMPLE),
    "--tasks",
    "digits,shapes",
    "--limit",
    "3",
    "--device",
    "cpu",
    "--no-cache",
)


def documents(folder: Path) -> tuple[dict[str, object], bytes]:
    """The report without its times."""
    document = json.loads((folder / "report.json").read_text())
    document.pop("timing")
    return document, json.dumps(document, sort_keys=True).encode()


@pytest.mark.slow
def test_a_sweep_is_part_of_the_report_and_goes_on(here: Path) -> None:
    grid = ("--sweep-rank", "0.1,0.5")
    first = run(*SHORT, "--sweep", "rank,pairs", *grid, "-o", "whole")
    assert first.code == 0, first.err
    document, content = documents(here / "whole")
    jsonschema.validate(json.loads((here / "whole" / "report.json").read_text()), schema())
    jsonschema.validate(document["sweeps"], sweeps_schema())
    assert document["sweeps"]["kinds"] == ["rank", "pairs"]  # type: ignore[index]
    assert document["tasks"] == ["digits", "shapes"]
    (here / "stopped").mkdir()
    (here / "whole" / "sweeps").rename(here / "stopped" / "sweeps")
    points = next((here / "stopped" / "sweeps").glob("rank-*"))
    points.write_bytes(b"".join(points.read_bytes().splitlines(keepends=True)[:3]) + b'["torn')
    again = run(*SHORT, "--sweep", "rank,pairs", *grid, "-o", "stopped")
    assert again.code == 0, again.err
    assert documents(here / "stopped")[1] == content
    refused = run(*SHORT, "--sweep", "rank", "-o", "stopped")
    assert (refused.code, "holds files already" in refused.err) == (6, True)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--sweep", "rnak", "-o", "out"), 2, "did you mean `rank`?"),
        (("--sweep", "rank"), 2, "stores its points in a folder"),
        (("--sweep", "rank", "--sweep-rank", "1.5", "-o", "out"), 2, "--sweep-rank: rank 1.5 is outside (0, 1]"),
        (("--sweep", "rank", "--sweep-rank", "0.5,4", "-o", "out"), 2, "no order that holds for every matrix"),
        (("--sweep", "rank", "--split", "adapt", "-o", "out"), 2, "has no labels"),
        (("--sweep", "rank", "--loss-labels", "mine", "-o", "out"), 2, "unknown labels `mine`"),
        (("--sweep-rank", "0.5"), 2, "says nothing without --sweep"),
        (("--limit", "3"), 2, "says nothing without --sweep"),
    ],
)  # fmt: skip
def test_what_is_refused(here: Path, words: tuple[str, ...], code: int, message: str) -> None:
    outcome = run("spectrum", "--suite", str(EXAMPLE), "--tasks", "digits", "--quiet", *words)
    assert (outcome.code, outcome.out) == (code, "")
    assert message in outcome.err


def test_options_of_suites_need_one(here: Path) -> None:
    outcome = run("spectrum", str(EXAMPLE / "digits.safetensors"), "--tasks", "digits")
    assert outcome.code == 2
    assert "says nothing without --suite" in outcome.err


def test_a_file_is_no_folder(here: Path) -> None:
    (here / "out").write_text("mine")
    outcome = run(*SHORT, "--sweep", "rank", "-o", "out")
    assert (outcome.code, (here / "out").read_text()) == (6, "mine")
