"""How good choices without labels are: each criterion's regret against the best grid point by test labels.

    python benchmarks/choice.py [--suite examples/tiny/suite.yaml] [--subsets 0]

Merges a grid (CART 2-32% x 0.5-2.0, task arithmetic 0.1-0.7), ranks it by every criterion on the unlabelled adapt
split, and compares the normalised test scores of the choices. `--subsets N` does so for N seeded subsets of 3 to 6
tasks too: defaults are settled on the embedded example that way.
"""

import argparse
import random
import tempfile
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import torch

import taskmerge
from taskmerge.checkpoint.hub import resolve
from taskmerge.evaluation.criteria import CRITERIA
from taskmerge.evaluation.label_free import judge
from taskmerge.specs.suite import Suite
from taskmerge.specs.suite_file import find_suite, load_suite
from taskmerge.workflows.choose import criterion_means, ordered

GRIDS = {
    "cart": {"rank": (0.02, 0.04, 0.08, 0.16, 0.32), "coefficient": (0.5, 1.0, 1.5, 2.0)},
    "task_arithmetic": {"coefficient": (0.1, 0.2, 0.3, 0.4, 0.5, 0.7)},
}
DEFAULT = "cart-coefficient1.0-rank0.08"


def regrets(suite: Suite, folder: Path) -> dict[str, tuple[str, float, float]]:
    """By criterion (and for CART's default): the choice, its normalised test score, and what the best has more."""
    experts = {task.name: resolve(task.expert) for task in suite.tasks if task.expert is not None}
    paths: list[str] = []
    for method, grid in GRIDS.items():
        out = folder / f"{method}.safetensors"
        base = None if suite.base is None else resolve(suite.base)
        paths += taskmerge.merge(experts, method=method, base=base, output=out, digests=False, **grid).paths
    report = taskmerge.evaluate([*paths, "experts"], suite=suite)
    scores = {one.encoder: one.normalised or 0.0 for one in report.averages if one.encoder != "experts"}
    judged = judge(paths, suite=suite, batch_size=64, device=torch.device("cpu"))
    chosen = {"default": DEFAULT} | {name: ordered(criterion_means(judged, name), name)[0] for name in CRITERIA}
    best = max(scores.values())
    return {name: (choice, scores[choice], best - scores[choice]) for name, choice in chosen.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", type=Path, default=Path("examples/tiny/suite.yaml"))
    parser.add_argument("--subsets", type=int, default=0)
    said = parser.parse_args()
    whole, draw = load_suite(find_suite(said.suite)[0]), random.Random(0)
    sizes = [draw.randint(3, min(6, len(whole.tasks))) for _ in range(said.subsets)]
    subsets = [whole.tasks, *(tuple(draw.sample(whole.tasks, size)) for size in sizes)]
    every: dict[str, list[float]] = defaultdict(list)
    for tasks in subsets:
        print(", ".join(task.name for task in tasks))
        with tempfile.TemporaryDirectory() as folder:
            for name, (choice, score, regret) in regrets(replace(whole, tasks=tasks), Path(folder)).items():
                print(f"  {name:10} {choice:32} {100 * score:6.1f}  regret {100 * regret:5.2f}", flush=True)
                every[name].append(regret)
    print("mean regret: " + ", ".join(f"{name} {100 * sum(one) / len(one):.2f}" for name, one in every.items()))


if __name__ == "__main__":
    main()
