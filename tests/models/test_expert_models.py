"""Real experts, found by TASKMERGE_EXPERTS: zero-shot heads made of their base are the heads that lie beside them."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from model_cases import local

from taskmerge.checkpoint.checkpoint import open_checkpoint
from taskmerge.models.backbones import build
from taskmerge.models.heads import load_head
from taskmerge.specs.suite_file import load_suite

HOME = Path(os.environ.get("TASKMERGE_EXPERTS") or "none")


@pytest.mark.skipif(not (HOME / "vision").is_dir(), reason="TASKMERGE_EXPERTS names no experts")
def test_zero_shot_heads() -> None:
    suite = load_suite(HOME / "vision" / "suite.yaml")
    backbone, base = build(suite.backbone, resolve=local), open_checkpoint(HOME / "vision" / "base.safetensors")
    for task in suite.tasks:
        stored: Any = load_head(task, backbone, resolve=local)
        made: Any = load_head(replace(task, head="zero_shot"), backbone, resolve=local, base=base)
        torch.testing.assert_close(made.weight, stored.weight, atol=1e-4, rtol=0)
