"""The forecast of `spectrum`: measured on subsets of a suite's tasks, its numbers fitted, and tested.

    python benchmarks/forecast.py measure SUITE POINTS.jsonl [--subsets 14]
    python benchmarks/forecast.py fit SUITE POINTS.jsonl
    python benchmarks/forecast.py test SUITE POINTS.jsonl

`measure` draws subsets of the tasks (seeded; all of them where there are few), merges each by every method of
`CANDIDATES` with the engine, scores the results on the test split with `taskmerge.evaluate`, and writes a line for each
merge. `fit` makes `NUMBERS` of taskmerge/spectra/forecast.py of such points: by least squares in scores, no number
below zero. `test` says how far forecasts with `NUMBERS` are from such points: rank correlations and errors with 95%
intervals over resampled subsets. The embedded example's points, on which form and numbers were made, are in
benchmarks/forecast/tiny.jsonl; those of two suites that were looked at once, afterwards, beside them.
"""

import argparse
import itertools
import json
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from scipy.optimize import nnls
from scipy.stats import spearmanr

import taskmerge
from taskmerge.checkpoint.hub import resolve
from taskmerge.specs.suite import Suite
from taskmerge.specs.suite_file import load_suite
from taskmerge.spectra.forecast import METHODS, NUMBERS, Ground, Merge, Numbers, reach

CANDIDATES: tuple[tuple[str, Mapping[str, float]], ...] = (
    ("average", {}),
    ("task_arithmetic", {"coefficient": 0.3}),
    ("task_arithmetic", {"coefficient": 0.6}),
    ("cart", {"rank": 0.08, "coefficient": 1.0}),
    ("cart", {"rank": 0.32, "coefficient": 2.0}),
    ("tsv_m", {}),
    ("iso_c", {}),
)
LIMIT = 128
"""Items of each task that are scored, always the same ones."""
GAIN = 0.05
"""What an expert must have more than the base, for what is kept of it to be a number."""
RESAMPLES = 1000
Floats = NDArray[np.float64]


# --- measuring -------------------------------------------------------------------------------------------------


def subsets(tasks: list[str], most: int) -> list[tuple[str, ...]]:
    """Sets of two tasks and more: all of them, or `most` drawn so that every size has its turn."""
    sizes = range(2, len(tasks) + 1)
    every = {size: list(itertools.combinations(sorted(tasks), size)) for size in sizes}
    chance, found = random.Random(0), list[tuple[str, ...]]()
    for size in sizes:
        chance.shuffle(every[size])
    while len(found) < most and any(every.values()):
        for size in reversed(sizes):
            if every[size] and len(found) < most:
                found.append(every[size].pop())
    return found


def measured(suite: Suite, most: int) -> Iterator[dict[str, Any]]:
    """The scores of base and experts, then a line for each merge."""
    experts, base = places(suite)
    ends = scores(["base", "experts"], suite, list(experts))
    yield {
        "suite": suite.name,
        "base": ends["base"],
        "experts": {task: ends[f"expert:{task}"][task] for task in experts},
    }
    origin = loaded(base)
    for subset in subsets(list(experts), most):
        states = {task: loaded(experts[task]) for task in subset}
        merged = {
            # options of any method: their keywords are not typed
            str(place): taskmerge.merge(states, base=origin, method=method, **options)  # type: ignore[arg-type]
            for place, (method, options) in enumerate(CANDIDATES)
        }
        found = scores(merged, suite, list(subset))
        for place, (method, options) in enumerate(CANDIDATES):
            yield {"method": method, "options": dict(options), "scores": found[str(place)]}


def places(suite: Suite) -> tuple[dict[str, Path], Path]:
    """Where experts and base lie."""
    assert suite.base is not None
    return {task.name: resolve(task.expert) for task in suite.tasks if task.expert is not None}, resolve(suite.base)


def loaded(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file, or of a model's folder."""
    return load_file(path / "model.safetensors" if path.is_dir() else path)


def scores(checkpoints: Any, suite: Suite, tasks: list[str]) -> dict[str, dict[str, float]]:
    """Checkpoint -> task -> score on the test split."""
    report = taskmerge.evaluate(checkpoints, suite=suite, tasks=tuple(tasks), device="cpu", limit=LIMIT)
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for row in report.rows:
        found[row.encoder][row.task] = row.score.value
    return found


# --- points beside forecasts -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Points:
    """What was measured, a row for each merge and task: what was kept, the expert's gain over the base, of which subset
    and which merge, which task; the merge as its task sees it, and how many tasks there are."""

    kept: Floats
    gain: Floats
    subset: NDArray[np.int64]
    merge: NDArray[np.int64]
    task: NDArray[np.str_]
    seen: Floats
    count: Floats

    def take(self, rows: NDArray[Any]) -> "Points":
        return Points(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


def read(suite: Suite, path: Path) -> Points:
    """The points of a file, beside the spectra of their experts, which are measured now."""
    ends, *lines = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    experts, base = places(suite)
    grounds: dict[tuple[str, ...], Ground] = {}
    rows: list[tuple[Any, ...]] = []
    for place, line in enumerate(lines):
        subset = tuple(sorted(line["scores"]))
        if line["method"] not in METHODS:
            continue
        if subset not in grounds:
            report = taskmerge.spectrum({task: experts[task] for task in subset}, base=base)
            ground = Ground.of(report.to_dict())
            assert ground is not None
            grounds[subset] = ground
        seen = reach(grounds[subset], Merge(line["method"], **line["options"]))
        for index, task in enumerate(grounds[subset].tasks):
            own, gain = ends["base"][task], ends["experts"][task] - ends["base"][task]
            if gain >= GAIN:
                left = (line["scores"][task] - own) / gain
                view = (seen.signal[index], seen.load[index], seen.spread[index])
                rows.append((left, gain, list(grounds).index(subset), place, task, view, len(subset)))
    return Points(*(np.array(column) for column in zip(*rows, strict=True)))


def forecast(points: Points, numbers: Numbers = NUMBERS) -> Floats:
    """What the forecast says of each point."""
    return columns(points) @ np.array([numbers.signal, numbers.load, numbers.spread])


def columns(points: Points) -> Floats:
    """What `kept` weighs with its numbers."""
    signal, load, spread = points.seen.T
    return np.column_stack([np.sqrt(np.maximum(signal, 0)), -load, -spread])


def fitted(points: Points) -> Numbers:
    """The numbers that come closest to some points' scores."""
    return Numbers(*nnls(columns(points) * points.gain[:, None], points.kept * points.gain)[0].tolist())


def left_out(points: Points) -> Floats:
    """Forecasts of each subset with numbers fitted on the others."""
    found = np.zeros_like(points.kept)
    for subset in np.unique(points.subset):
        own = points.subset == subset
        found[own] = forecast(points.take(own), fitted(points.take(~own)))
    return found


# --- how good --------------------------------------------------------------------------------------------------


def ranks(said: Floats, points: Points) -> float:
    """Spearman's correlation over merges and tasks."""
    return float(spearmanr(said, points.kept)[0])


def by_merge(said: Floats, points: Points) -> float:
    """Spearman's correlation of means over tasks, over merges of all subsets."""
    return float(spearmanr(*means(said, points))[0])


def in_subset(said: Floats, points: Points) -> float:
    """The same among the merges of one subset of three tasks and more, mean over subsets: how good choices are."""
    found = []
    for subset in np.unique(points.subset[points.count > 2]):
        own = points.subset == subset
        found.append(spearmanr(*means(said[own], points.take(own)))[0])
    return float(np.nanmean(found))


def error(said: Floats, points: Points) -> float:
    """Mean distance in scores."""
    return float(np.mean(np.abs(said - points.kept) * points.gain))


def choices(said: Floats, points: Points) -> dict[str, float]:
    """What is kept on average over subsets of three tasks and more by the merge of each that the forecast likes best,
    by the best of each, and by each one kind of merge throughout."""
    found: dict[str, list[float]] = defaultdict(list)
    for subset in np.unique(points.subset[points.count > 2]):
        own = points.subset == subset
        guesses, left = means(said[own], points.take(own))
        found["the forecast's choice"].append(left[int(np.argmax(guesses))])
        found["the best"].append(max(left))
        for place, value in enumerate(left):
            found[LABELS[place]].append(value)
    return {who: float(np.mean(values)) for who, values in found.items()}


LABELS = [" ".join([method, *map(str, options.values())]) for method, options in CANDIDATES if method in METHODS]


def means(said: Floats, points: Points) -> tuple[list[float], list[float]]:
    """Means over the tasks of every merge."""
    merges = [points.merge == merge for merge in np.unique(points.merge)]
    return [float(said[own].mean()) for own in merges], [float(points.kept[own].mean()) for own in merges]


def interval(of: Callable[[Floats, Points], float], said: Floats, points: Points) -> tuple[float, float]:
    """The 2.5% and 97.5% points of a measure over subsets drawn with replacement; a subset counts as often as drawn."""
    drawn, found = np.random.default_rng(0), []
    every = np.unique(points.subset)
    for _ in range(RESAMPLES):
        rows, new = [], []
        for copy, subset in enumerate(drawn.choice(every, len(every))):
            own = np.flatnonzero(points.subset == subset)
            rows.append(own)
            new.append(np.full(len(own), copy))
        index, copies = np.concatenate(rows), np.concatenate(new)
        some = points.take(index)
        apart = Points(
            some.kept, some.gain, copies, some.merge + 100_000 * copies, some.task, some.seen, some.count
        )  # fmt: skip
        found.append(of(said[index], apart))
    low, high = np.nanpercentile(found, [2.5, 97.5])
    return float(low), float(high)


def said_of(name: str, said: Floats, points: Points, plain: float) -> Iterator[str]:
    """Lines of a table, each number beside its interval and what no forecast gives."""
    few = -points.count
    yield f"{name}: {len(np.unique(points.subset))} subsets, {len(np.unique(points.merge))} merges, {len(said)} points"
    for title, of in (("merges and tasks", ranks), ("means of merges", by_merge), ("merges of one subset", in_subset)):
        low, high = interval(of, said, points)
        alone = f"{of(few, points):.2f}" if of is not in_subset else "–"
        own = f"{of(said, points):5.2f} [{low:.2f}, {high:.2f}]"
        yield f"  rank correlation, {title:<21} {own}  fewer tasks first {alone}"
    low, high = interval(error, said, points)
    always = error(np.full_like(points.kept, plain), points)
    own = f"{100 * error(said, points):6.1f} [{100 * low:.1f}, {100 * high:.1f}]"
    yield f"  mean error, points of score {own}  always {plain:.2f}: {100 * always:.1f}"
    yield "  kept on average by " + ", ".join(f"{who} {value:.3f}" for who, value in choices(said, points).items())
    for task in np.unique(points.task):
        own = points.task == task
        some = points.take(own)
        yield f"  {task:<14} rank correlation {ranks(said[own], some):5.2f}, error {100 * error(said[own], some):.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["measure", "fit", "test"])
    parser.add_argument("suite", type=Path)
    parser.add_argument("points", type=Path)
    parser.add_argument("--subsets", type=int, default=14)
    asked = parser.parse_args()
    suite = load_suite(asked.suite)
    if asked.action == "measure":
        with open(asked.points, "w", encoding="utf-8") as file:
            for line in measured(suite, asked.subsets):
                file.write(json.dumps(line) + "\n")
                file.flush()
        return
    points = read(suite, asked.points)
    usual = float(np.average(points.kept, weights=points.gain))
    if asked.action == "fit":
        print(f"{fitted(points)}, usually kept {usual:.2f}")
        print(
            "\n".join(said_of(f"{suite.name}, each subset by numbers of the others", left_out(points), points, usual))
        )
    else:
        print("\n".join(said_of(suite.name, forecast(points), points, USUAL)))


USUAL = 0.16
"""What merges of the embedded example keep on average: the forecast of those who have none."""

if __name__ == "__main__":
    main()
