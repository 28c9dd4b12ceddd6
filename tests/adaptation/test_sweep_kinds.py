"""Sweeps of experts that are vectors, factors or adapters, and of tasks that are no classification."""

import json
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from adaptation_cases import TASKS, clip_suite, text_suite
from safetensors.torch import load_file, save_file
from test_expert_kinds import experts_of, lora_experts, replaced, written

import taskmerge
from taskmerge.errors import Mismatch
from taskmerge.numerics.rank import Rank
from taskmerge.specs.suite import Split, Suite
from taskmerge.workflows.sweeps.opening import Opened, open_sweep
from taskmerge.workflows.sweeps.request import SweepRequest
from taskmerge.workflows.sweeps.subsets import Running, cart
from taskmerge.workflows.sweeps.sweep import sweep_asked


def request(suite: Suite, folder: Path, *kinds: str, **more: Any) -> SweepRequest:
    given = {"limit": 4, "threads": 1, "device": "cpu", "coefficients": (0.5,), **more}
    ranks = tuple(map(Rank.parse, ("0.3", "1.0")))
    return SweepRequest(suite=suite, kinds=kinds, folder=folder, ranks=ranks, **given)  # type: ignore[arg-type]


def models(opened: Opened) -> list[torch.Tensor]:
    """An expert, the average, and CART of all, as the encoder holds them."""
    found, encoder = [], opened.encoder
    running = Running(encoder)
    for member in range(len(encoder.tasks)):
        running.toggle(member, range(member + 1))
    forms = (lambda: encoder.average(["digits"]), running.average, running.task_arithmetic, lambda: cart(running))
    for form in forms:
        form()
        found.append(torch.cat([encoder.slots[name].reshape(-1).float() for name in sorted(encoder.slots)]))
    return found


@pytest.mark.parametrize("options", [{}, {"rank": "1.0"}], ids=["vectors", "factors"])
def test_vectors_and_factors_are_the_experts_they_stand_for(tmp_path: Path, options: dict[str, Any]) -> None:
    suite = clip_suite(tmp_path / "clip")
    files = written(suite, tmp_path / "files", **options)
    with ExitStack() as stack:
        whole = models(open_sweep(request(suite, tmp_path / "one", "subsets"), stack))
        given = models(open_sweep(request(suite, tmp_path / "two", "subsets", inputs=files), stack))
    for one, other in zip(whole, given, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_centred_vectors_are_refused(tmp_path: Path) -> None:
    suite = clip_suite(tmp_path / "clip")
    files = written(suite, tmp_path / "files", centre=True)
    average = tmp_path / "average.safetensors"
    taskmerge.merge(experts_of(suite), method="average", output=average)
    suite = replace(suite, base=average)
    with pytest.raises(Mismatch, match="differences from an average"), ExitStack() as stack:
        open_sweep(request(suite, tmp_path, "rank", inputs=files), stack)


def test_adapters_are_the_experts_they_stand_for(tmp_path: Path) -> None:
    suite = text_suite(tmp_path / "bert", "bert")
    adapters, dense = lora_experts(tmp_path, load_file(tmp_path / "bert" / "base.safetensors"))
    heads = {}
    for task in TASKS:
        classifier = load_file(tmp_path / "bert" / f"{task}.safetensors")
        heads[task] = tmp_path / f"head_{task}.safetensors"
        save_file({"weight": classifier["classifier.weight"]}, heads[task])
    backbone = replace(suite.backbone, pooling="mean")
    tasks = tuple(replace(task, head=heads[task.name]) for task in suite.tasks)
    headed = replace(suite, tasks=tasks, backbone=backbone)
    options = {"split": "adapt", "labels": "expert"}
    with ExitStack() as stack:
        one = models(open_sweep(request(replaced(headed, dense), tmp_path / "one", "landscape", **options), stack))
        two = models(open_sweep(request(replaced(headed, adapters), tmp_path / "two", "landscape", **options), stack))
    for whole, given in zip(one, two, strict=True):
        torch.testing.assert_close(whole, given, rtol=1e-4, atol=1e-5)


def test_tasks_are_scored_by_their_own_metric(tmp_path: Path) -> None:
    """A regression among classifications: its metric, its loss, and no word of accuracy."""
    suite = text_suite(tmp_path / "bert", "bert")
    made = []
    for task in suite.tasks:
        lines = (tmp_path / "bert" / f"{task.name}.jsonl").read_text().splitlines()
        scored = task.name == "cars"
        rows = [{**json.loads(line), "y": index / 7 if scored else index % 4} for index, line in enumerate(lines)]
        file = tmp_path / f"{task.name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        splits = {"test": Split("jsonl", file, ("text",), "y")}
        head = tmp_path / f"{task.name}_head.safetensors"
        save_file({"weight": torch.randn(1, 16, generator=torch.Generator().manual_seed(0))}, head)
        own = {"kind": "regression", "metric": "pearson", "classes": (), "head": head} if scored else {}
        made.append(replace(task, splits=splits, **own))
    mixed = replace(suite, tasks=tuple(made))
    asked = request(mixed, tmp_path / "out", "rank", "components", limit=6)
    document = sweep_asked(replace(asked, matrices=("*layer.0.attention.self.query.weight",))).document
    assert {task["name"]: task["metric"] for task in document["tasks"]}["cars"] == "pearson"
    for point in document["rank"]["points"]:
        own = next(entry for entry in point["scores"] if entry["task"] == "cars")
        assert -1 <= own["low"] <= own["score"] <= own["high"] <= 1
    for point in document["components"]["points"]:
        assert all(change["proxy"] is not None for change in point["changes"])
