"""Options of `spectrum` for sweeps with data, each declared once. Imports no torch."""

from pathlib import Path
from typing import Annotated

from taskmerge.cli.options import ITEMS, NAMES, Names, option

Suite = Annotated[
    Path | None,
    option("Suite file, or the name of one in the package: its experts, base and data.", "--suite", "-s",
           completed="suites"),
]  # fmt: skip
Sweep = Annotated[
    str | None,
    option("Merge and score at many points: rank, coefficient, routing, subsets, components, landscape, pairs."),
]
Tasks = Annotated[Names, option("Only these tasks of the suite, such as mnist,digits."), NAMES]
Split = Annotated[str | None, option("Split that is scored (default: test).")]
Limit = Annotated[int | None, option("At most so many items of each task, drawn by --seed."), ITEMS]
SweepRank = Annotated[str | None, option("Ranks of sweeps: 0.04,0.08 or 4,8 (default: ten from 0.01 to 1.0).")]
SweepCoefficient = Annotated[str | None, option("Coefficients of sweeps: 0.5,1 or 0.1:1.0:0.1.")]
SweepMatrix = Annotated[list[str] | None, option("Matrices whose components are added (glob, repeatable).")]
LossLabels = Annotated[str | None, option("Losses against: true (labels), expert (its predictions), auto.")]
BatchSize = Annotated[int | None, option("Items encoded at once (default: 64)."), ITEMS]
Seed = Annotated[int, option("Of --limit and of intervals (default: 0).")]
Cache = Annotated[Path | None, option("Folder that keeps decoded items.")]
NoCache = Annotated[bool, option("Decode everything again.", "--no-cache")]
FIELDS = (
    "suite", "sweep", "tasks", "split", "limit", "sweep_rank", "sweep_coefficient", "sweep_matrix", "loss_labels",
    "batch_size", "seed", "cache", "no_cache", "device",
)  # fmt: skip
"""What of a command's words is for sweeps alone."""
