"""Reports made of random scores, by the metrics themselves, for tests of what reads reports."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch

from taskmerge.evaluation.analyses import correlations, discrepancy
from taskmerge.evaluation.averages import averages, normalised
from taskmerge.evaluation.estimates import reliability
from taskmerge.evaluation.metrics import METRICS, contributions, score
from taskmerge.evaluation.scores import Report, Row

VISION = {"mnist": "accuracy", "kana": "accuracy", "flags": "mean_per_class"}
TEXT = {"sentiment": "pearson+spearman", "isa": "matthews", "langid": "accuracy"}
DENSE = {"seg": "miou", "depth": "abs_error", "normal": "angle"}
CLASSES = 6


def classes_of(metric: str) -> int:
    return 2 if metric == "f1" else CLASSES


def labels_for(metric: str, n: int, generator: torch.Generator) -> torch.Tensor:
    match METRICS[metric].kind:
        case "classification":
            return torch.randint(0, classes_of(metric), (n,), generator=generator)
        case "regression":
            return torch.randn(n, generator=generator)
        case "segmentation":
            return torch.randint(-1, CLASSES, (n, 4, 4), generator=generator)
        case "depth":
            return (1 + torch.rand(n, 4, 4, generator=generator)) * (torch.rand(n, 4, 4, generator=generator) > 0.2)
        case _:
            return torch.randn(n, 3, 4, 4, generator=generator)


def outputs_for(metric: str, labels: torch.Tensor, skill: float, generator: torch.Generator) -> torch.Tensor:
    """Outputs that know `skill` of the labels."""
    match METRICS[metric].kind:
        case "classification":
            known = torch.nn.functional.one_hot(labels, classes_of(metric))
            return torch.randn(*known.shape, generator=generator) + skill * known
        case "segmentation":
            known = torch.nn.functional.one_hot(labels.clamp_min(0), CLASSES).movedim(-1, 1)
            return torch.randn(len(labels), CLASSES, 4, 4, generator=generator) + skill * known
        case _:
            return skill * labels + torch.randn(labels.shape, generator=generator)


def report(
    tasks: Mapping[str, str] = VISION,
    checkpoints: Sequence[str] = ("merged",),
    *,
    cross: bool = False,
    corruptions: Sequence[str] = (),
    compare: bool = False,
    n: int = 60,
    seed: int = 0,
    **changes: Any,
) -> Report:
    """The experts, the base and some checkpoints on every task."""
    found = made(tuple(tasks.items()), tuple(checkpoints), cross, tuple(corruptions), compare, n, seed)
    return replace(found, **changes)


@cache
def made(
    named: tuple[tuple[str, str], ...],
    checkpoints: tuple[str, ...],
    cross: bool,
    corruptions: tuple[str, ...],
    compare: bool,
    n: int,
    seed: int,
) -> Report:
    """`report` without changes, made once."""
    tasks = dict(named)
    generator = torch.Generator().manual_seed(seed)
    labels = {task: labels_for(metric, n, generator) for task, metric in tasks.items()}
    encoders = [*(f"expert:{task}" for task in tasks), "base", *checkpoints]
    rows, outputs = [], {}
    comparisons: list[dict[str, Any]] = []
    related: list[dict[str, Any]] = []
    for corruption in (None, *corruptions):
        where = {"corruption": corruption, "severity": 5 if corruption else None}
        for encoder in encoders:
            for task, metric in tasks.items():
                own = encoder == f"expert:{task}"
                if encoder.startswith("expert:") and not own and not cross:
                    continue
                skill = (3.0 if own else 0.5 if encoder == "base" else 1.5) / (2 if corruption else 1)
                found = outputs_for(metric, labels[task], skill, generator)
                outputs[encoder, task] = found
                value, correct = score(metric, found, labels[task])
                bins = reliability(contributions(metric, found, labels[task])) if correct is not None else None
                rows.append(Row(encoder, task, task, "test", metric, value, correct=correct, reliability=bins, **where))
                if compare and METRICS[metric].kind == "classification" and not encoder.startswith("expert:"):
                    said = {"encoder": encoder, "task": task, **where}
                    pair = found, outputs[f"expert:{task}", task], labels[task]
                    comparisons.append(said | discrepancy(*pair))
                    related += [said | one for one in correlations(*pair)]
    groups = {one: "experts" if one.startswith("expert:") else one for one in encoders}
    relative = normalised(rows)
    plain = {"split": "test", "n": n, "corruption": None, "severity": None}
    return Report(
        version="0.1.0",
        suite="small",
        split="test",
        checkpoints=tuple({"name": one, "kind": "checkpoint", "digest": "00"} for one in encoders),
        data=tuple({"task": task, "fingerprint": f"{task}{seed}", **plain} for task in tasks),
        rows=tuple(relative),
        averages=averages(relative, groups),
        comparisons=tuple(comparisons),
        correlations=tuple(related),
        timing={"total": 1.5},
    )
