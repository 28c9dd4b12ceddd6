"""`taskmerge eval --features`: where they go, that the page draws them, and what is refused."""

from pathlib import Path

import pytest
from eval_cases import prepared
from merge_cases import refused, run

from taskmerge.evaluation.feature_files import read_features

LIMIT = ("--limit", "24", "--no-cache", "--quiet")


@pytest.fixture
def suite(here: Path) -> Path:
    """The suite of two tasks, in the working directory."""
    return prepared(here)


def test_features_are_kept_beside_the_report_and_drawn_on_its_page(suite: Path) -> None:
    outcome = run("eval", "base", "experts", "-o", "scores/", "--features", "12", *LIMIT)
    assert outcome.code == 0, outcome.err
    sets = read_features(Path("scores/features.safetensors"))
    assert [(own.encoder, own.task) for own in sets] == [
        ("base", "digits"), ("base", "shapes"), ("expert:digits", "digits"), ("expert:shapes", "shapes"),
    ]  # fmt: skip
    page = Path("scores/report.html").read_text()
    assert "Features of digits" in page
    assert "the nearest other item has the same label" in page
    again = run("report", "scores", "-o", "again.html", "--quiet")
    assert again.code == 0, again.err
    assert "Features of shapes" in Path("again.html").read_text()


def test_damaged_features_are_an_error_of_the_page(suite: Path) -> None:
    assert run("eval", "base", "-o", "scores/", "--features", "12", *LIMIT).code == 0
    Path("scores/features.safetensors").write_bytes(b"none")
    refused(3, "report", "scores", "-o", "page.html", says=("features.safetensors",))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("-o", "scores.json", "--features", "5"), "-o FOLDER/"),
        (("--features", "5"), "-o FOLDER/"),
        (("-o", "scores/", "--features", "501"), "1 to 500"),
        (("-o", "scores/", "--features", "0"), "--features"),
        (("-o", "scores/", "--features", "5", "--rank-by", "agreement"), "--rank-by"),
    ],
)
def test_what_cannot_be_kept_is_refused(suite: Path, arguments: tuple[str, ...], said: str) -> None:
    refused(2, "eval", "base", *arguments, *LIMIT, says=(said,))
    assert not Path("scores/report.json").exists()
