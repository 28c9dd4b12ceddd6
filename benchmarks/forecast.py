"""What merges of subsets of a suite's experts keep of each expert, beside what their weights alone say.

    python benchmarks/forecast.py measure SUITE POINTS.jsonl [--subsets 12]

`measure` draws subsets of the tasks (seeded; all of them where there are few), merges each by every method of
`CANDIDATES` with the engine, scores the results, and writes a line for each merge and task: the scores, and inner
products of the merge's difference from the base with the task vector, over matrices and over the rest.
"""

import argparse
import itertools
import json
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

import taskmerge
from taskmerge.checkpoint.hub import resolve
from taskmerge.experts.classes import classify
from taskmerge.specs.suite import Suite
from taskmerge.specs.suite_file import load_suite

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
RANKS = (0.08, 0.16, 0.32)
State = dict[str, Tensor]


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


def points(suite: Suite, most: int) -> Iterator[dict[str, Any]]:
    """A line for each merge and task."""
    experts = {task.name: resolve(task.expert) for task in suite.tasks if task.expert is not None}
    assert suite.base is not None
    place = resolve(suite.base)
    base = loaded(place)
    vectors = {task: difference(loaded(path), base) for task, path in experts.items()}
    ends = scores(["base", "experts"], suite, list(experts))
    alone, own = ends["base"], {task: ends[f"expert:{task}"][task] for task in experts}
    leading = {task: factors(vector) for task, vector in vectors.items()}
    for subset in subsets(list(experts), most):
        merged: dict[str, State] = {}
        for index, (method, options) in enumerate(CANDIDATES):
            states = {task: loaded(experts[task]) for task in subset}
            merged[str(index)] = taskmerge.merge(states, base=base, method=method, **options)  # type: ignore[arg-type]
        found = scores(merged, suite, list(subset))
        for index, (method, options) in enumerate(CANDIDATES):
            step = difference(merged[str(index)], base)
            for task in subset:
                yield {
                    "suite": suite.name, "subset": list(subset), "method": method, "options": dict(options),
                    "task": task, "score": found[str(index)][task], "expert": own[task], "base": alone[task],
                    **moments(step, vectors[task], leading[task]),
                }  # fmt: skip


def loaded(path: Path) -> State:
    """The tensors of a file, or of a model's folder."""
    return load_file(path / "model.safetensors" if path.is_dir() else path)


def difference(state: State, base: State) -> State:
    """What floating tensors differ by, in float64."""
    return {name: one.double() - base[name].double() for name, one in state.items() if one.is_floating_point()}


def scores(states: Any, suite: Suite, tasks: list[str]) -> dict[str, dict[str, float]]:
    """Checkpoint -> task -> score on the test split."""
    report = taskmerge.evaluate(states, suite=suite, tasks=tuple(tasks), device="cpu", limit=LIMIT)
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for row in report.rows:
        found[row.encoder][row.task] = row.score.value
    return found


def is_matrix(name: str, one: Tensor) -> bool:
    """Whether spectral methods truncate it."""
    return classify(name, tuple(one.shape), floating=True) == "linear"


def factors(vector: State) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """The singular triplets of a task vector's matrices."""
    return {name: torch.linalg.svd(one, full_matrices=False) for name, one in vector.items() if is_matrix(name, one)}


def moments(step: State, vector: State, leading: Mapping[str, tuple[Tensor, Tensor, Tensor]]) -> dict[str, Any]:
    """Squares and products of a merge's step and a task vector: over matrices, over the rest, and in the task's leading
    subspaces, by the share of the full rank: ⟨SVD_k(τ), Δ⟩, ‖U_kᵀ Δ V_k‖², ‖SVD_k(τ)‖²."""
    found: dict[str, Any] = {}
    for part in ("matrices", "rest"):
        names = [name for name in vector if is_matrix(name, vector[name]) == (part == "matrices")]
        sums = torch.zeros(3, dtype=torch.float64)
        for name in names:
            d, t = step[name].flatten(), vector[name].flatten()
            sums += torch.stack([d @ t, d @ d, t @ t])
        found[part] = [float(f"{value:.6g}") for value in sums.tolist()]
    for share in RANKS:
        sums = torch.zeros(3, dtype=torch.float64)
        for name, (u, s, vt) in leading.items():
            k = max(1, int(share * len(s) + 1e-9))
            inside = u[:, :k].T @ step[name] @ vt[:k].T
            sums += torch.stack([inside.diagonal() @ s[:k], inside.square().sum(), s[:k] @ s[:k]])
        found[f"leading {share}"] = [float(f"{value:.6g}") for value in sums.tolist()]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["measure"])
    parser.add_argument("suite", type=Path)
    parser.add_argument("points", type=Path)
    parser.add_argument("--subsets", type=int, default=12)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with open(asked.points, "w", encoding="utf-8") as file:
        for point in points(load_suite(asked.suite), asked.subsets):
            file.write(json.dumps(point) + "\n")
            file.flush()


if __name__ == "__main__":
    main()
