"""`merge --choose`: merges every point of a grid, keeps the one that a criterion without labels likes best."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from taskmerge.checkpoint.ahead import Ahead
from taskmerge.checkpoint.staging import staging_folder
from taskmerge.errors import UsageError
from taskmerge.evaluation.criteria import CRITERIA
from taskmerge.evaluation.label_free import ADAPT, judge
from taskmerge.evaluation.run import BATCH, device_for
from taskmerge.merging.kernels import bind_points
from taskmerge.merging.merge import merge_requested
from taskmerge.merging.outputs import output_paths
from taskmerge.merging.prepare import prepare
from taskmerge.merging.record import MergeReceipt
from taskmerge.merging.request import Request
from taskmerge.specs.suite import Suite
from taskmerge.types import Note, Progress, unheard
from taskmerge.workflows.choose import check_criterion, choices

ONLY = "point.safetensors"


@dataclass(frozen=True)
class Chosen(MergeReceipt):
    """The merge that was kept, and every grid point's place by the criterion (`choices`, as in reports)."""

    choices: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Judging:
    """How grid points are judged: the criterion, on which suite's unlabelled split, and at what cost.

    `note` hears of tasks that no criterion judges before anything is judged.
    """

    by: str
    suite: Suite
    adapt_split: str = ADAPT
    limit: int | None = None
    batch_size: int = BATCH
    cache: Path | None = None
    progress: Progress | None = None
    note: Note = unheard


def carry_out_choice(request: Request, judging: Judging, ahead: Ahead | None = None) -> Chosen:
    """Merges the grid into a hidden folder beside the output, judges it, merges the best point into the output.

    That last merge is a replay of its grid point: the same bytes.
    """
    check_criterion(judging.by, "--choose")
    _check_tasks(judging.suite, judging.by)
    spec, points = request.spec, bind_points(request.spec)
    if len(points) < 2:
        raise UsageError(
            "there is nothing to choose from", where="--choose", hint="give a grid, such as --rank 0.04,0.08,0.16"
        )
    single = replace(spec, options={name: values[:1] for name, values in spec.options.items()})
    (final,) = output_paths(single, request.running.output, points[:1], request.inputs, request.opening.base)
    keeping = replace(request.running, output=final)
    prepare(request.inputs, single, request.opening, keeping).inputs.close()  # refuses before the whole grid is merged
    names, ranking = _ranked(request, judging, final)
    best = next(row["encoder"] for row in ranking if row["criterion"] == judging.by and row["rank"] == 1)
    point = points[names.index(best)].point
    kept = replace(spec, options={name: (value,) for name, value in point.items()}, grid=spec.options)
    receipt = merge_requested(replace(request, spec=kept, running=keeping), ahead)
    choices = tuple({**row, "encoder": row["encoder"].removeprefix("point-")} for row in ranking)
    return Chosen(**vars(receipt), choices=choices)


def _ranked(request: Request, judging: Judging, final: Path) -> tuple[list[str], tuple[dict[str, Any], ...]]:
    """Merges the grid beside `final` and judges it: the names of its points, in their order, and their places."""
    with staging_folder(final) as folder:
        aside = replace(request.running, output=folder / ONLY, shard_size=None, digests=False)
        merged = merge_requested(replace(request, running=aside)).paths
        judged = judge(
            list(merged), suite=judging.suite, split=judging.adapt_split, limit=judging.limit, seed=request.spec.seed,
            batch_size=judging.batch_size, device=device_for(aside.device), cache=judging.cache, map=request.spec.map,
            progress=judging.progress, note=judging.note,
        )  # fmt: skip
        return [Path(path).stem for path in merged], choices(judged, None, judging.by)


def _check_tasks(suite: Suite, by: str) -> None:
    """Refuses a criterion that judges none of the tasks, before anything is merged."""
    if not any(CRITERIA[by].judges(task.kind) for task in suite.tasks):
        complaint = f"no task of this suite can be judged by {by}"
        raise UsageError(complaint, where="--choose", hint="agreement judges classification and regression")
