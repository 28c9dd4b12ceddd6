"""Real experts, found by TASKMERGE_EXPERTS: their known scores, and zero-shot heads equal to the ones stored."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from model_cases import local

from taskmerge.checkpoint.checkpoint import open_checkpoint
from taskmerge.models.backbones import build
from taskmerge.models.fill import fill
from taskmerge.models.heads import load_head
from taskmerge.specs.suite import BackboneSpec, Preprocess, Task, Tokenizer

HOME = Path(os.environ.get("TASKMERGE_EXPERTS") or "none")
pytestmark = pytest.mark.skipif(not (HOME / "vision").is_dir(), reason="TASKMERGE_EXPERTS names no experts")
TOLERANCE = 0.003


def suite(kind: str) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    folder = HOME / kind
    return (
        folder,
        yaml.safe_load((folder / "suite.yaml").read_text()),
        json.loads((folder / "results.json").read_text()),
    )


def task_of(folder: Path, name: str, entry: dict[str, Any]) -> Task:
    return Task(
        name, folder / entry["expert"], folder / entry["head"], entry["kind"], entry["metric"],
        tuple(entry.get("classes", ())), tuple(entry.get("templates", ())),
    )  # fmt: skip


def test_vision_scores_and_zero_shot_heads() -> None:
    folder, document, results = suite("vision")
    spec = BackboneSpec(
        "open_clip", folder / "model.json", Tokenizer(bpe=folder / "bpe_4096.txt.gz", context_length=16),
        Preprocess(32, (0.5,) * 3, (0.5,) * 3),
    )  # fmt: skip
    backbone, base = build(spec, resolve=local), open_checkpoint(folder / document["base"])
    for name, entry in document["tasks"].items():
        task = task_of(folder, name, entry)
        head: Any = load_head(task, backbone, resolve=local)
        made: Any = load_head(Task(**{**_fields(task), "head": "zero_shot"}), backbone, resolve=local, base=base)
        torch.testing.assert_close(made.weight, head.weight, atol=1e-4, rtol=0)
        data = np.load(folder / entry["data"]["test"]["file"])
        inputs, labels = backbone.prepare(data["test_x"]), torch.from_numpy(data["test_y"])
        for who, checkpoint in {"expert": open_checkpoint(folder / entry["expert"]), "base": base}.items():
            fill(backbone, checkpoint, base)
            with torch.inference_mode():
                right = head(backbone.module(inputs)).argmax(dim=1) == labels
            assert right.float().mean().item() == pytest.approx(results[who][name], abs=TOLERANCE)


def _fields(task: Task) -> dict[str, Any]:
    return {name: getattr(task, name) for name in task.__slots__}


def test_text_scores() -> None:
    from scipy.stats import pearsonr, spearmanr
    from sklearn.metrics import accuracy_score, matthews_corrcoef

    folder, document, results = suite("text")
    spec = BackboneSpec(
        "transformers", folder / "base", Tokenizer(folder=folder / "base"), pooling="mean", max_length=64
    )
    backbone, base = build(spec, resolve=local), open_checkpoint(folder / "base")
    for name, entry in document["tasks"].items():
        head = load_head(task_of(folder, name, entry), backbone, resolve=local)
        with gzip.open(folder / entry["data"]["test"]["file"], "rt") as lines:
            rows = sorted((json.loads(line) for line in lines), key=lambda row: len(row["text"]))
        inputs, labels = backbone.prepare([row["text"] for row in rows]), np.array([row["label"] for row in rows])
        for who in (name, "base") if name == "isa" else (name,):
            fill(backbone, open_checkpoint(folder / who), base)
            with torch.inference_mode():
                out = torch.cat([
                    head(backbone.module({key: one[start : start + 64] for key, one in inputs.items()}))
                    for start in range(0, len(rows), 64)
                ]).numpy()  # fmt: skip
            if entry["kind"] == "regression":
                found = (pearsonr(out, labels)[0] + spearmanr(out, labels)[0]) / 2
            else:
                metric = matthews_corrcoef if entry["metric"] == "matthews" else accuracy_score
                found = metric(labels, out.argmax(axis=1))
            assert found == pytest.approx(results["scores"][who][name], abs=TOLERANCE)
