"""Values as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskmerge.errors import UsageError
from taskmerge.specs.values import parse_items, parse_names, parse_size, parse_threads, parse_weights

UNITS = {"": 1, "B": 1, "k": 1000, "kB": 1000, "M": 1000**2, "GB": 1000**3, "T": 1000**4, "KiB": 1024, "gib": 1024**3}
NAME = st.text("abcxyz_.= ", min_size=1).map(str.strip).filter(bool)


@given(st.integers(1, 10**6), st.sampled_from(sorted(UNITS)))
def test_a_size_is_its_number_times_its_unit(count: int, unit: str) -> None:
    assert parse_size(f" {count}{unit} ", "--max-memory") == count * UNITS[unit]


def test_a_size_may_have_a_fraction() -> None:
    assert parse_size("1.5G", "--max-memory") == 1_500_000_000


@pytest.mark.parametrize("text", ["", "many", "0", "-1", "1XB", "1kk", "nan", "inf", "1e999", "0.1", "G"])
def test_what_is_no_size_is_refused_with_the_option(text: str) -> None:
    with pytest.raises(UsageError, match=r"--shard-size: `.*` is no size"):
        parse_size(text, "--shard-size")


@given(st.lists(st.text("abc-_", min_size=1), min_size=1))
def test_names_come_out_as_they_went_in(names: list[str]) -> None:
    assert parse_names(" , ".join(names) + ",", "--tasks") == tuple(names)


@pytest.mark.parametrize("text", ["", " ", ",", " , ,"])
def test_a_list_of_no_names_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--also: names nothing"):
        parse_names(text, "--also")


@given(st.dictionaries(NAME, st.floats(allow_nan=False)))
def test_weights_come_out_as_they_went_in(weights: dict[str, float]) -> None:
    """The last `=` counts: tasks may have one in their names."""
    assert parse_weights([f"{task}={value!r}" for task, value in weights.items()], "--weight") == weights


@pytest.mark.parametrize("pairs", [["cars"], ["=1"], ["cars="], ["cars=much"], ["dogs=1", "1"]])
def test_what_is_no_weight_is_refused(pairs: list[str]) -> None:
    with pytest.raises(UsageError, match=r"--weight: `.*` is no NAME=VALUE"):
        parse_weights(pairs, "--weight")


def test_a_task_has_one_weight() -> None:
    with pytest.raises(UsageError, match="`cars` has two weights"):
        parse_weights(["cars=1", "cars=1"], "--weight")


@pytest.mark.parametrize(("parse", "says"), [(parse_threads, "threads cannot work"), (parse_items, "cannot be taken")])
def test_counts_start_at_one(parse: object, says: str) -> None:
    assert callable(parse)
    assert parse(1, "--threads") == 1
    for count in (0, -1):
        with pytest.raises(UsageError, match=f"--threads: {count} .*{says}"):
            parse(count, "--threads")
