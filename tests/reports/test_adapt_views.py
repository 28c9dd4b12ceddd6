"""The pictures of an adaptation: numbers as in the raw files, every plot drawn, folders that lack parts, any names."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from figure_cases import HOSTILE, check, rows_of
from taskmerge.adaptation.trace import StepRecord, TaskRecord
from taskmerge.checkpoint.adapted import Manifest, write_manifest
from taskmerge.checkpoint.learned import write_learned
from taskmerge.errors import BadFile
from taskmerge.evaluation.intervals import wilson
from taskmerge.methods.composed import Learned
from taskmerge.reports.adapt_figures import adapt_figures, read_view
from taskmerge.reports.candidate_figures import candidate_figures
from taskmerge.reports.depth_groups import MOST_ROWS, OUTSIDE, grouped
from taskmerge.reports.figures import Figure
from taskmerge.reports.joined import join
from taskmerge.reports.pilot_figures import pilot_figures, pilot_gains
from taskmerge.reports.runs import Run
from taskmerge.reports.trace_bins import binned, windows_of

TASKS = ("digits", "letters", "shapes")
UPDATES = 50
ROUNDED = 1e-3
"""Relative: figures hold four digits."""


def names_of(blocks: int) -> list[str]:
    """The tensors of a small tower."""
    inside = ("attn.in_proj_weight", "mlp.c_fc.weight", "ln_1.bias")
    return ["visual.proj", *(f"visual.blocks.{block}.{name}" for block in range(blocks) for name in inside)]


def learned(tasks: tuple[str, ...] = TASKS, blocks: int = 3, *, entries: bool = False, seed: int = 0) -> Learned:
    """Random coefficients, some of them zero, and random masks of the matrices."""
    torch.manual_seed(seed)
    coefficients = {name: torch.rand(len(tasks)) - 0.2 for name in names_of(blocks)}
    coefficients["visual.proj"][0] = 5e-6
    shape = (1, 1, 37) if entries else (1, len(tasks), 24)
    masks = {name: torch.rand(shape) < 0.6 for name in coefficients if name.endswith("weight")}
    return Learned(tuple(sorted(tasks)), coefficients, masks)


def records(tasks: tuple[str, ...] = TASKS, updates: int = UPDATES) -> list[StepRecord]:
    """A trace of falling losses in which every other update skips the first task."""
    random = np.random.default_rng(0)
    found = [StepRecord(0, 0, {}, {"mean": 0.3, "low": 0.3, "high": 0.3, "zero": 0.0}, kept_components=1.0)]
    for update in range(1, updates + 1):
        each = {
            task: TaskRecord(16, 0.5, float(random.uniform(0.2, 1)), 0.5, float(random.uniform(0, 1)), 0.3)
            for task in tasks[update % 2 :]
        }
        held = {task: int(random.integers(0, 21)) / 20 for task in tasks} if update % 10 == 0 else None
        watched = {"diagnostic": True, "split": "test", "scores": dict.fromkeys(tasks, 0.25)} if held else None
        spread = {"mean": 0.3 + update / 1000, "low": 0.1, "high": 0.6, "zero": 0.02}
        found.append(StepRecord(update, update, each, spread, update % 7, 1 - update / 100, None, 0.1, held, watched))
    return found


def document(tasks: tuple[str, ...] = TASKS, updates: int = UPDATES) -> dict[str, Any]:
    """What the views read of a report."""
    scores = [{"task": task, "metric": "accuracy", "score": 0.5, "low": 0.4, "high": 0.6, "n": 80} for task in tasks]
    return {
        "tasks": [{"name": task, "items": 100, "held_out": 20} for task in tasks],
        "protocol": {"updates": updates}, "stopped": {"update": 30}, "scores": {"split": "test", "rows": scores},
    }  # fmt: skip


def folder_of(path: Path, made: Learned | None, trace: list[StepRecord] | None) -> Path:
    """The parts of an adapted folder that views read."""
    parts: list[Any] = []
    (path / "model.safetensors").touch()
    if made is not None:
        write_learned(path, made)
        parts += ["coefficients", *(["masks"] if made.masks else [])]
    if trace is not None:
        (path / "trace.jsonl").write_text("".join(record.line() for record in trace))
        parts.append("trace")
    write_manifest(path, Manifest(method="adarank", needs_task_index=False, parts=tuple(parts)))
    return path


def figures(path: Path, about: Mapping[str, Any]) -> dict[str, Figure]:
    return {figure.name: figure for figure in adapt_figures(about, read_view(path, about))}


def test_every_plot_is_drawn(tmp_path: Path) -> None:
    found = figures(folder_of(tmp_path, learned(), records()), document())
    assert set(found) == {
        "trace-losses", "trace-agreement", "trace-filter", "trace-flips", "trace-coefficients", "curves-held-out",
        "curves-scores", "masks", "masks-depth", "masks-index", "coefficients", "coefficients-sparsity",
    }  # fmt: skip
    check(list(found.values()))


def test_masks_are_those_of_the_file(tmp_path: Path) -> None:
    """Bits are counted again from the packed bytes."""
    found = figures(folder_of(tmp_path, learned(), None), document())
    raw = load_file(tmp_path / "masks.safetensors")
    bits = {name: np.unpackbits(packed, axis=-1)[..., :24] for name, packed in raw.items()}
    for row in rows_of(found["masks"]):
        _, number, role = row["y"].split(" ")
        part = {"attention": "attn", "MLP": "mlp"}[role]
        (mask,) = (mask for name, mask in bits.items() if f".{number}.{part}." in name)
        own = mask[:, sorted(TASKS).index(row["x"])]
        assert (row["on"], row["of"]) == (own.sum(), own.size)
        assert row["share"] == pytest.approx(own.mean(), rel=ROUNDED)
    for row in rows_of(found["masks-depth"]):
        part = {"attention": "attn", "MLP": "mlp"}[row["role"]]
        (mask,) = (mask for name, mask in bits.items() if f".{row['depth']}.{part}." in name)
        each = mask.mean(axis=(0, 2))
        assert [row["share"], row["low"], row["high"]] == pytest.approx(
            [mask.mean(), each.min(), each.max()], rel=ROUNDED
        )
    rows = rows_of(found["masks-index"])
    edges = [int(20 * (place + 0.5) / 24) for place in range(24)]
    for row in rows:
        inside = [place for place, edge in enumerate(edges) if edge == round(row["index"] * 20 - 0.5)]
        share = np.mean([mask[..., inside].mean() for mask in bits.values()])
        assert row["share"] == pytest.approx(share, rel=ROUNDED)
    whole = np.concatenate([mask.reshape(-1) for mask in bits.values()])
    assert f"keep {100 * whole.mean():.1f}%" in found["masks"].alternative


def test_masks_of_entries_are_of_all_tasks(tmp_path: Path) -> None:
    found = figures(folder_of(tmp_path, learned(entries=True), None), document())
    assert "masks-index" not in found
    assert {row["x"] for row in rows_of(found["masks"])} == {"all tasks"}
    check(list(found.values()))


def test_coefficients_are_those_of_the_file(tmp_path: Path) -> None:
    found = figures(folder_of(tmp_path, learned(), None), document())
    raw = load_file(tmp_path / "coefficients.safetensors")
    parts = {"attention": ".attn.", "MLP": ".mlp.", "other": ".ln_1."}
    for row in rows_of(found["coefficients"]):
        outside = row["y"] == OUTSIDE
        words = row["y"].split(" ")
        names = ["visual.proj"] if outside else [name for name in raw if f".{words[1]}{parts[words[2]]}" in name]
        own = np.array([raw[name][sorted(TASKS).index(row["x"])] for name in names], dtype=np.float64)
        assert [row["mean"], row["low"], row["high"]] == pytest.approx([own.mean(), own.min(), own.max()], rel=ROUNDED)
        assert row["n"] == len(names)
    whole = np.stack(list(raw.values()))
    shares = {row["task"]: row["share"] for row in rows_of(found["coefficients-sparsity"])}
    for place, task in enumerate(sorted(TASKS)):
        assert shares[task] == pytest.approx((abs(whole[:, place]) < 1e-5).mean(), rel=ROUNDED)
    assert sum(share > 0 for share in shares.values()) == 1


def test_no_sparsity_is_drawn_where_nothing_is_zero(tmp_path: Path) -> None:
    made = learned()
    dense = replace(made, coefficients={name: value + 2 for name, value in made.coefficients.items()})
    found = figures(folder_of(tmp_path, dense, None), document())
    assert "coefficients-sparsity" not in found
    assert "0.0% of them nearer to zero" in found["coefficients"].caption


def test_curves_are_means_of_the_trace(tmp_path: Path) -> None:
    """Window by window from the lines of the file."""
    found = figures(folder_of(tmp_path, None, records()), document())
    lines = [json.loads(line) for line in (tmp_path / "trace.jsonl").read_text().splitlines()]
    width = -(-UPDATES // windows_of(len(TASKS)))
    for task in TASKS:
        rows = [row for row in rows_of(found["trace-losses"]) if row["task"] == task and row["what"] == "loss"]
        told = {}
        for line in lines[1:]:
            if task in line["tasks"]:
                told.setdefault((line["update"] - 1) // width, []).append(line)
        assert len(rows) == len(told)
        for row, inside in zip(rows, told.values(), strict=True):
            losses = [line["tasks"][task]["loss"] for line in inside]
            assert row["value"] == pytest.approx(np.mean(losses), rel=ROUNDED)
            assert row["update"] == pytest.approx(np.mean([line["update"] for line in inside]), rel=ROUNDED)
    flips = sum(line["flips"] for line in lines)
    assert f"{flips:,} flips in {UPDATES}" in found["trace-flips"].alternative
    windows: dict[int, int] = {}
    for line in lines[1:]:
        place = (line["update"] - 1) // width
        windows[place] = windows.get(place, 0) + line["flips"]
    bars = [row["value"] for row in rows_of(found["trace-flips"]) if row["value"] > 1]
    assert bars == [total for total in windows.values() if total > 1]


def test_learning_curves_have_wilson_intervals(tmp_path: Path) -> None:
    found = figures(folder_of(tmp_path, None, records()), document())
    for name, n in (("curves-held-out", 20), ("curves-scores", 80)):
        rows = rows_of(found[name])
        assert len(rows) == 5 * len(TASKS)
        for row in rows:
            low, high = wilson(round(row["value"] * n), n)
            assert (row["low"], row["high"]) == pytest.approx((low, high), rel=ROUNDED)
    assert "update 30" in found["curves-held-out"].caption


@pytest.mark.parametrize(("updates", "tasks"), [(100_000, 20), (3000, 8), (7, 1)])
def test_traces_of_any_length_stay_small(updates: int, tasks: int) -> None:
    """A line an update of a long run, without keeping them."""
    names = [f"task{place}" for place in range(tasks)]
    each = {name: TaskRecord(16, 1.0, 0.5, 0.5, 0.5) for name in names}
    lines = (StepRecord(update, update, each if update else {}) for update in range(min(updates, 4000) + 1))
    trace = binned(lines, updates, tasks)
    points = sum(len(curve) for curve in trace.of_tasks["loss"].values())
    assert points <= max(200, 12 * tasks) + tasks


def test_hundreds_of_tensors_become_few_rows() -> None:
    for blocks, most in ((1, MOST_ROWS), (12, MOST_ROWS), (24, 12), (48, MOST_ROWS), (100, 12)):
        groups = grouped(names_of(blocks), most)
        assert len(groups) <= most
        assert sorted(name for group in groups for name in group.names) == sorted(names_of(blocks))
        assert groups[0].label == OUTSIDE
    assert grouped(names_of(12))[1].label == "block 0 attention"
    assert grouped(names_of(24))[1].label == "block 0"
    assert [group.label for group in grouped(["a", "b"])] == ["a", "b"]
    towers = grouped([f"{tower}.blocks.{block}.mlp.fc.weight" for tower in ("text", "visual") for block in (0, 1)])
    assert [group.label for group in towers] == [
        f"{tower}.blocks block {block} MLP" for tower in ("text", "visual") for block in (0, 1)
    ]


def test_hostile_names_are_data(tmp_path: Path) -> None:
    tasks = tuple(sorted(HOSTILE))
    found = figures(folder_of(tmp_path, learned(tasks), records(tasks)), document(tasks))
    check(list(found.values()))
    shown = {row["x"] for row in rows_of(found["coefficients"])}
    assert len(shown) == len(tasks)
    assert all(name.isprintable() and len(name) <= 36 for name in shown)


@pytest.mark.slow
def test_twenty_tasks_and_a_large_model_stay_small(tmp_path: Path) -> None:
    tasks = tuple(f"task{place:02}" for place in range(20))
    found = figures(folder_of(tmp_path, learned(tasks, 32), records(tasks)), document(tasks))
    check(list(found.values()))


def test_what_a_folder_lacks_is_said(tmp_path: Path) -> None:
    view = read_view(folder_of(tmp_path, None, None), document())
    assert adapt_figures(document(), view) == []
    assert [text.partition(":")[0] for text in view.lacking] == ["no coefficients", "no masks", "no curve"]


def test_heads_that_were_solved_for_have_no_curves(tmp_path: Path) -> None:
    view = read_view(folder_of(tmp_path, None, records()[:1]), document(updates=0))
    assert adapt_figures(document(updates=0), view) == []
    assert any(text.startswith("no curve") for text in view.lacking)


def test_scores_that_are_no_shares_are_told_in_their_unit(tmp_path: Path) -> None:
    about = document()
    about["scores"]["rows"][0]["metric"] = "abs_error"
    figure = figures(folder_of(tmp_path, None, records()), about)["curves-scores"]
    assert "%" not in figure.alternative
    assert "0.25 → 0.25" in figure.alternative
    check([figure])


def test_another_version_is_refused(tmp_path: Path) -> None:
    folder_of(tmp_path, learned(), None)
    manifest = json.loads((tmp_path / "folder.json").read_text())
    (tmp_path / "folder.json").write_text(json.dumps({**manifest, "version": 2}))
    with pytest.raises(BadFile, match="version 2"):
        read_view(tmp_path, document())


@pytest.mark.parametrize("part", ["trace.jsonl", "masks.safetensors", "coefficients.safetensors"])
def test_a_part_that_is_listed_and_not_there_is_said(tmp_path: Path, part: str) -> None:
    folder_of(tmp_path, learned(), records())
    (tmp_path / part).unlink()
    with pytest.raises(BadFile, match=part):
        read_view(tmp_path, document())


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"update": 51, "tasks": 3}', '{"update": 51, "iteration": 1, "tasks": {}, "flips": "many"}',
             '{"update": 51, "iteration": 1, "tasks": {}, "held_out": [1]}',
             '{"update": 51, "iteration": 1, "tasks": {}, "watched": {"scores": {"a": "b"}}}',
             '{"update": 53, "iteration": 1, "tasks": {}}'],
)  # fmt: skip
def test_a_damaged_trace_is_refused(tmp_path: Path, line: str) -> None:
    folder_of(tmp_path, None, records())
    with (tmp_path / "trace.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(BadFile):
        read_view(tmp_path, document())


def test_candidates_are_drawn_as_they_were_tried() -> None:
    tried = [{"name": name, "agreement": 0.1 * place, "score": None} for place, name in enumerate(HOSTILE, 1)]
    tried[1]["score"] = 0.25
    chosen = {"candidate": HOSTILE[2], "tried": tried, "regret": None}
    (figure,) = candidate_figures({**document(), "chosen": chosen})
    check([figure])
    values = [row["value"] for row in rows_of(figure) if row["what"].startswith("agreement")]
    assert values == pytest.approx([0.1 * place for place in range(1, 7)])
    assert [row["value"] for row in rows_of(figure) if row["what"].startswith("average")] == [0.25]
    assert sum("(kept)" in row["candidate"] for row in rows_of(figure)) == 1
    assert candidate_figures(document()) == []


# --- the pilot study -------------------------------------------------------------------------------------------


def supervised(coefficient: object, score: float, **changes: Any) -> dict[str, Any]:
    """What the pilot's plot reads of an adaptation's report."""
    rows = [{"task": task, "metric": "accuracy", "score": score + 0.01 * place} for place, task in enumerate(TASKS)]
    return {
        "method": "supervised_heads", "suite": "tiny", "scores": {"split": "test", "rows": rows},
        "recipe": {"init": "task_arithmetic", "init_options": {"coefficient": coefficient}}, **changes,
    }  # fmt: skip


def merged(coefficient: object, score: float, suite: str = "tiny") -> dict[str, Any]:
    """What it reads of an evaluation."""
    recipe = {"method": "task_arithmetic", "options": {"coefficient": coefficient}}
    rows = [{"checkpoint": "m", "task": task, "score": score, "corruption": None} for task in TASKS]
    return {
        "suite": suite,
        "split": "test",
        "rows": rows,
        "checkpoints": [{"name": "base"}, {"name": "m", "recipe": recipe}],
    }


def test_gains_are_differences_of_the_same_merge() -> None:
    adapted = [
        supervised(0.1, 0.5),
        supervised("0.30", 0.4),
        supervised(0.9, 0.4),
        supervised(0.5, 0.4, method="heads"),
    ]
    evaluated = [merged(0.3, 0.45), merged("0.1", 0.2), merged(0.9, 0.1, suite="other"), merged(0.5, 0.1)]
    gains = pilot_gains(adapted, evaluated)
    assert set(gains) == {0.1, 0.3}
    for place, task in enumerate(TASKS):
        assert gains[0.1][task] == pytest.approx(30 + place)
        assert gains[0.3][task] == pytest.approx(-5 + place)
    (figure,) = pilot_figures(gains)
    check([figure])
    assert {(row["x"], row["y"]): row["gain"] for row in rows_of(figure)}["0.1", TASKS[0]] == pytest.approx(30)
    assert "0.1 +31.0; 0.3 -4.0" in figure.alternative
    assert pilot_figures({0.1: gains[0.1]}) == []


def test_adaptations_alone_can_be_joined() -> None:
    """They know no fingerprints of what they were scored on."""
    rows = [{"task": task, "metric": "accuracy", "score": 0.5, "low": 0.4, "high": 0.6, "n": 80} for task in TASKS]
    about = {"suite": "tiny", "protocol": {"words": "no updates"}, "scores": {"split": "test", "rows": rows}}
    (report,) = join([Run("one", "adapt", about), Run("two", "adapt", about)]).reports
    assert [average.encoder for average in report.averages] == ["one", "two"]
