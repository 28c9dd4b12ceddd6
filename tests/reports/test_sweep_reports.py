"""Tables, plots and sections of sweeps: every kind has its own, and each tells numbers that the document holds."""

import json
from typing import Any

import jsonschema
import pytest
from sweep_documents import document

from taskmerge.reports.charts import svg_file, wide
from taskmerge.reports.sweep_figures import sweep_figures
from taskmerge.reports.sweep_sections import sweep_sections
from taskmerge.reports.sweep_tables import sweep_tables
from taskmerge.workflows.sweeps.schema import schema

HOSTILE = ("<script>alert(1)</script>", "a\"b'\x1b[31m", "c" * 300)
FIGURES = ["rank", "coefficient", "routing", "subsets", "components", "landscape", "neighbourhoods", "pairs"]


@pytest.mark.parametrize("plain", [True, False], ids=["one metric", "unlike metrics"])
def test_the_documents_here_are_of_the_schema(plain: bool) -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.validate(document(plain=plain), schema())


def test_every_kind_has_its_plot() -> None:
    figures = sweep_figures({"sweeps": document()})
    assert [figure.name for figure in figures] == [f"sweep-{name}" for name in FIGURES]
    for figure in figures:
        assert "3 tasks of tiny, split test, 50 items a task" in figure.caption
        assert "config" not in figure.spec
        assert len(json.dumps(figure.spec)) < 40_000
    by_name = {figure.name: figure for figure in figures}
    assert "CART 60.0 at 0.1" in by_name["sweep-rank"].alternative
    assert "r 0.40 (0.10 to 0.70), p 0.03, n 6" in by_name["sweep-pairs"].caption
    assert "50.0% and 25.0%" in by_name["sweep-landscape"].caption
    assert "0.25 off the plane" in by_name["sweep-landscape"].caption


def test_names_on_the_landscape_cover_each_other_nowhere() -> None:
    """Ten models in one place: their names stand around it, and every name but the first has another place."""
    crowded = document(tuple(f"t{number}" for number in range(8)))
    for model in crowded["landscape"]["models"]:
        model["x"] = model["y"] = 1.0
    figure = next(one for one in sweep_figures(crowded) if one.name == "sweep-landscape")
    spec: Any = figure.spec
    labels = next(spec["datasets"][layer["data"]["name"]] for layer in spec["layer"] if layer["mark"]["type"] == "text")
    assert len({(label["x"], label["y"]) for label in labels}) == len(labels) == 10


def test_references_in_one_place_have_one_name() -> None:
    close = document()
    close["references"]["base"] = close["references"]["average"]
    (figure,) = (one for one in sweep_figures(close) if one.name == "sweep-rank")
    spec: Any = figure.spec
    (text,) = (layer for layer in spec["layer"] if layer["mark"]["type"] == "text")
    assert [row["reference"] for row in spec["datasets"][text["data"]["name"]]] == ["experts", "average, base"]


@pytest.mark.slow
@pytest.mark.parametrize("plain", [True, False], ids=["one metric", "unlike metrics"])
@pytest.mark.parametrize("tasks", [("ants", "bees", "cats"), HOSTILE], ids=["plain names", "hostile names"])
def test_every_plot_can_be_drawn(tasks: tuple[str, ...], plain: bool) -> None:
    for figure in sweep_figures(document(tasks, plain=plain)):
        svg = svg_file(wide(figure))
        assert "<script" not in svg
        assert "\x1b" not in svg


def test_a_kind_that_was_not_swept_has_nothing() -> None:
    alone = {key: value for key, value in document().items() if key not in FIGURES or key == "pairs"}
    assert [figure.name for figure in sweep_figures(alone)] == ["sweep-pairs"]
    assert [table.title for table in sweep_tables(alone)] == [
        "What sweeps are compared with", "Cross-task against merge performance",
    ]  # fmt: skip


def cells(title: str, **changes: Any) -> dict[str, list[str]]:
    table = next(table for table in sweep_tables(document(**changes)) if table.title == title)
    return {name: [cell.short for cell in row] for name, row in zip(table.names, table.cells, strict=True)}


def test_tables_tell_means_and_margins() -> None:
    assert cells("Score over rank")["CART"] == ["60.0 ±5.0", "60.0 ±5.0"]
    assert list(cells("Score over rank")) == [
        "CART", "CART, reversed", "truncated task arithmetic", "truncated task arithmetic, reversed",
    ]  # fmt: skip
    assert cells("What sweeps are compared with")["experts"] == ["90.0 ±10.0"] * 3 + ["90.0 ±5.0"]
    assert cells("Score over the number of merged tasks")["CART"] == ["50.0 ±10.0"] * 2
    assert cells("Loss change of the largest component")["ants"] == ["-0.1", "+0"]
    assert cells("Cross-task against merge performance")["models"] == ["–", "–", "–", "2"]


def test_unlike_metrics_are_told_relative_to_the_experts() -> None:
    assert cells("Score over rank", plain=False)["CART"] == ["66.7", "66.7"]
    assert cells("What sweeps are compared with", plain=False)["base"] == [
        "30.0 ±10.0", "30.0 ±10.0", "0.300 ±0.100", "33.3",
    ]  # fmt: skip
    assert cells("Score over the number of merged tasks", plain=False)["average"] == ["60.0", "60.0"]


def without(found: Any, keys: tuple[str, ...]) -> Any:
    """The same with None under these keys."""
    if isinstance(found, list):
        return [without(one, keys) for one in found]
    if isinstance(found, dict):
        return {key: None if key in keys else without(one, keys) for key, one in found.items()}
    return found


@pytest.mark.parametrize("plain", [True, False], ids=["one metric", "unlike metrics"])
def test_points_without_a_score_leave_gaps_and_a_word(plain: bool) -> None:
    """Outputs of merges that are no model are not finite; experts, average and base have their scores."""
    whole = document(plain=plain)
    gone = ("score", "low", "high", "average", "normalised", "change", "se", "proxy", "mean")
    gone += ("cross_normalised", "merged_normalised")
    kinds = ("rank", "coefficient", "routing", "subsets", "components", "pairs")
    broken = {**whole, **{kind: without(whole[kind], gone) for kind in kinds}}
    landscape = {**whole["landscape"], **without({key: whole["landscape"][key] for key in ("grid", "ways")}, gone)}
    broken["landscape"] = landscape
    jsonschema.validate(broken, schema())
    figures = {figure.name: figure for figure in sweep_figures(broken)}
    assert figures["sweep-rank"].alternative == "Highest: nothing, no point has a score."
    assert "NaN" in figures["sweep-landscape"].caption
    for table in sweep_tables(broken):
        if table.title in ("Score over rank", "Score over the number of merged tasks"):
            assert {cell.short for row in table.cells for cell in row} == {"–"}
            assert any("NaN" in note for note in table.notes)
    assert [section.lead for section in sweep_sections({"sweeps": broken})][:2] == ["", ""]


@pytest.mark.slow
def test_plots_with_gaps_can_be_drawn() -> None:
    whole = document()
    first, *others = whole["rank"]["points"]
    grid = whole["landscape"]["grid"]
    whole["rank"]["points"] = [without(first, ("average", "normalised", "score", "low", "high")), *others]
    whole["landscape"]["grid"] = [without(grid[0], ("mean", "se")), *grid[1:]]
    for figure in sweep_figures(whole):
        assert "NaN" not in svg_file(wide(figure)).replace("held NaN", "")


def test_unlike_losses_are_told_relative_to_the_experts() -> None:
    title = "Models on the plane of their first two principal components"
    assert cells(title)["average"][-1] == "2"
    assert cells(title, plain=False)["average"][-1] == "1"
    (figure,) = (one for one in sweep_figures(document(plain=False)) if one.name == "sweep-landscape")
    assert figure.caption.startswith("Mean loss relative to the experts' over 3 tasks")


def test_relative_scores_are_plotted_in_percent() -> None:
    figures = {figure.name: figure for figure in sweep_figures(document(plain=False))}
    assert "CART 66.7 at 0.1" in figures["sweep-rank"].alternative


def test_sections_answer_first() -> None:
    sections = sweep_sections({"sweeps": document()})
    assert [section.anchor for section in sections] == [f"sweep-{kind}" for kind in document()["kinds"]]
    assert sections[0].lead == (
        "Highest on these labels: CART 60.0% at rank 0.1; truncated task arithmetic 40.0% at rank 0.1."
    )
    assert sections[3].lead == "With all 2 tasks: average 50.0%; CART 50.0%."
    assert sections[4].lead == "Adding its largest component changes a task's own loss by -0.1 on average."
    assert all(section.parts for section in sections)
    assert sweep_sections({}) == []
