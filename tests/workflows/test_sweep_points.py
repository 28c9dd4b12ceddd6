"""Points on disk: stored as they are found, taken over by the same sweep, and by no other."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskmerge.errors import BadOutput
from taskmerge.workflows.sweeps.points import Points, code_version, digest_of_values

KEY = "0123456789abcdef" * 4
VALUES = st.dictionaries(st.text(max_size=5), st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9))


def test_points_come_back_to_the_last_digit(tmp_path: Path) -> None:
    @settings(deadline=None, max_examples=30)
    @given(st.lists(st.tuples(VALUES, VALUES), max_size=4))
    def holds(entries: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
        folder = tmp_path / digest_of_values(entries)[:16]
        found = Points(folder, "rank", KEY)
        for point, result in entries:
            if point not in found:
                found.add(point, result)
        again = Points(folder, "rank", KEY)
        for point, _ in entries:
            assert point in again
            assert again[point] == found[point]

    holds()


def test_what_a_kill_left_is_cut_off(tmp_path: Path) -> None:
    found = Points(tmp_path, "rank", KEY)
    found.add({"rank": "0.1"}, {"score": 0.5})
    found.add({"rank": "0.2"}, {"score": 0.25})
    whole = found.path.read_bytes()
    for cut in (len(whole) - 1, len(whole) - 20):
        found.path.write_bytes(whole[:cut])
        again = Points(tmp_path, "rank", KEY)
        assert {"rank": "0.1"} in again
        assert {"rank": "0.2"} not in again
        again.add({"rank": "0.2"}, {"score": 0.25})
        assert again.path.read_bytes() == whole


@pytest.mark.parametrize("line", [b"{}\n", b"[1, 2]\n", b"\xff\n", b'["other", {"rank": "0.3"}, {"score": 1}]\n'])
def test_foreign_lines_are_no_points(tmp_path: Path, line: bytes) -> None:
    found = Points(tmp_path, "rank", KEY)
    found.add({"rank": "0.1"}, {"score": 0.5})
    whole = found.path.read_bytes()
    found.path.write_bytes(whole + line)
    again = Points(tmp_path, "rank", KEY)
    assert {"rank": "0.1"} in again
    assert {"rank": "0.3"} not in again
    assert again.path.read_bytes() == whole


def test_other_inputs_are_other_files(tmp_path: Path) -> None:
    Points(tmp_path, "rank", KEY).add({"rank": "0.1"}, {"score": 0.5})
    assert {"rank": "0.1"} not in Points(tmp_path, "rank", "f" * 64)
    assert {"rank": "0.1"} not in Points(tmp_path, "pairs", KEY)


def test_a_file_in_the_place_of_the_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "sweeps").write_text("")
    with pytest.raises(BadOutput, match="cannot be written"):
        Points(tmp_path / "sweeps", "rank", KEY)


def test_the_code_has_one_version() -> None:
    assert code_version() == code_version()
    assert len(code_version()) == 64
