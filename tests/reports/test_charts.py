"""Drawing: one specification for page and files, in known elements alone, without a request, the same each time."""

import re
from pathlib import Path
from xml.etree import ElementTree

import altair as alt
import pytest

from taskmerge.reports import charts, colours
from taskmerge.reports.figures import Figure
from taskmerge.reports.numbers import MOST, numbers
from taskmerge.reports.svg import ELEMENTS, rewritten

ROWS = [{"task": f"task {place}", "score": 10.0 * place + 0.123456, "model": "ab"[place % 2]} for place in range(6)]


def figure(rows: object = ROWS, name: str = "scores", **size: object) -> Figure:
    chart = alt.Chart(alt.InlineData(values=rows)).mark_point().encode(
        x=alt.X("score:Q", title="score (%)"), y=alt.Y("task:N", title=None), color=alt.Color("model:N", title="model"),
    ).properties(width=420, height=120)  # fmt: skip
    return Figure(name, "Scores", "score (%), n = 6", "six scores", {**chart.to_dict(), **size})


def test_colours_are_variables_on_a_page_and_light_in_a_file() -> None:
    drawing = charts.wide(figure())
    page, file = drawing.on_page('class="wide"'), charts.svg_file(drawing)
    assert 'fill="var(--s1)"' in page
    assert 'fill="var(--s2)"' in page
    assert colours.SERIES["light"][0] in file
    assert "var(" not in file
    for text in (page, file):
        assert not re.search("|".join(colours.MARKS.values()), text)
        assert {element.tag.rpartition("}")[2] for element in ElementTree.fromstring(text).iter()} <= ELEMENTS


def test_text_that_looks_like_a_colour_stays_text() -> None:
    name = f'fill="{colours.MARKS["s1"]}"'
    page = charts.wide(figure([{"task": name, "score": 1.0, "model": "a"}])).on_page("")
    words = [element.text for element in ElementTree.fromstring(page).iter() if element.tag.endswith("text")]
    assert name in words


def test_every_mark_tells_its_values() -> None:
    told = re.findall(r'data-t="([^"]*)"', charts.wide(figure()).on_page(""))
    assert len(told) == len(ROWS)
    for row, text in zip(ROWS, told, strict=True):
        assert f"task: {row['task']}" in text
        assert f"score (%): {row['score']}" in text


def test_a_narrow_plot_fits_a_phone_and_stays_readable() -> None:
    assert charts.wide(figure()).width > charts.NARROW
    for one in (figure(), figure(width=900)):
        narrow = charts.narrow(one)
        assert narrow.width <= charts.NARROW + 1
        sizes = [float(size) for size in re.findall(r'font-size="([\d.]+)"', narrow.inside)]
        assert min(sizes) >= 11
    own = alt.Chart(alt.InlineData(values=ROWS)).mark_line().encode(x="score:Q", y="score:Q")
    small = own.properties(width=150, height=80)
    facets = Figure("f", "f", "f", "f", small.facet("task:N", columns=4).to_dict())
    assert charts.narrow(facets).width <= charts.NARROW + 20
    beside = Figure("b", "b", "b", "b", alt.hconcat(*[own.properties(width=300)] * 2).to_dict())
    assert charts.narrow(beside).width <= charts.NARROW + 20


def test_drawn_twice_is_the_same_bytes() -> None:
    first, second = (charts.svg_file(charts.wide(figure())) for _ in range(2))
    assert first == second
    assert charts.png_file(first) == charts.png_file(second)


def test_a_png_is_twice_as_large_in_pixels() -> None:
    drawing = charts.wide(figure())
    png = charts.png_file(charts.svg_file(drawing))
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(png[16:20], "big") == charts.SCALE * drawing.width


def test_control_characters_are_shown() -> None:
    page = charts.wide(figure([{"task": "a\x00\x1b[31m\u202eb", "score": 1.0, "model": "a"}])).on_page("")
    assert "a\\x00\\x1b[31m\\u202eb" in page


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/x.json", "file:///etc/passwd", "x.csv"])
def test_data_that_lie_elsewhere_are_not_loaded(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.csv").write_text("task,score,model\na,1,b\n")
    spec = {**figure().spec, "data": {"url": url}}
    with pytest.raises(ValueError, match="cannot be drawn"):
        charts.wide(Figure("elsewhere", "x", "x", "x", spec))


def test_ids_are_of_their_own_drawing() -> None:
    rows = [{"x": str(place), "y": "a", "value": float(place)} for place in range(4)]
    chart = alt.Chart(alt.InlineData(values=rows)).mark_rect().encode(x="x:N", y="y:N", color="value:Q")
    pages = [charts.wide(Figure(name, "x", "x", "x", chart.to_dict())).on_page("") for name in ("one", "two")]
    ids = [set(re.findall(r' id="([^"]*)"', page)) for page in pages]
    assert ids[0]
    assert not ids[0] & ids[1]
    for own, page in zip(ids, pages, strict=True):
        assert set(re.findall(r"url\(#([^)]*)\)", page)) <= own


def test_elements_that_vega_never_draws_are_left_out() -> None:
    strange = (
        '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><script>alert(1)</script>'
        '<a href="x"><rect width="1" height="1" onload="alert(1)"/></a>'
        '<g onclick="alert(1)"><rect width="1" height="1" style="x" fill="#123"/></g></svg>'
    )
    assert rewritten(strange, {}, "x").inside == '<rect width="1" height="1" fill="#123"/>'


# --- numbers ---------------------------------------------------------------------------------------------------


def test_the_numbers_of_a_plot_stand_under_the_titles_of_its_axes() -> None:
    (table,) = numbers(figure())
    assert (table.corner, *table.columns) == ("task", "score (%)", "model")
    assert table.names == tuple(str(row["task"]) for row in ROWS)
    assert [row[0].text for row in table.cells] == [f"{row['score']:.4g}" for row in ROWS]


def test_of_many_numbers_the_first_are_told() -> None:
    (table,) = numbers(figure([{"task": str(place), "score": place} for place in range(MOST + 7)]))
    assert len(table.names) == MOST
    assert table.notes == (f"{MOST} of {MOST + 7} rows; the report holds all",)


def test_layers_with_data_of_their_own_have_tables_of_their_own() -> None:
    one, two = (alt.Chart(alt.InlineData(values=[{"x": value}])).mark_point().encode(x="x:Q") for value in (1, 2))
    assert len(numbers(Figure("x", "x", "x", "x", alt.layer(one, two).to_dict()))) == 2
    assert len(numbers(Figure("x", "x", "x", "x", alt.layer(one, one).to_dict()))) == 1
