"""Real experts, found by TASKMERGE_EXPERTS: the scores that were computed independently of taskmerge."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

import taskmerge

HOME = Path(os.environ.get("TASKMERGE_EXPERTS") or "none")
pytestmark = pytest.mark.skipif(not (HOME / "vision").is_dir(), reason="TASKMERGE_EXPERTS names no experts")
CLOSE = 0.003


def known(kind: str) -> dict[str, dict[str, float]]:
    """Encoder -> task -> score."""
    found: dict[str, Any] = json.loads((HOME / kind / "results.json").read_text())
    return found["scores"] if kind == "text" else {"base": found["base"], **found["cross"]}


def scores(report: taskmerge.Report) -> dict[tuple[str, str], float]:
    return {(row.encoder.removeprefix("expert:"), row.task): row.score.value for row in report.rows}


@pytest.mark.parametrize("kind", ["vision", pytest.param("text", marks=pytest.mark.slow)])
def test_experts_and_the_base(kind: str) -> None:
    """The base on one task: the slow test has all."""
    wanted = known(kind)
    tasks = [name for name in wanted if name != "base"]
    report = taskmerge.evaluate(["experts"], suite=HOME / kind)
    assert scores(report) == {(task, task): pytest.approx(wanted[task][task], abs=CLOSE) for task in tasks}
    assert {row.normalised for row in report.rows} == {1.0}
    report = taskmerge.evaluate(["base"], suite=HOME / kind, tasks=tasks[-1:])
    assert scores(report) == {("base", tasks[-1]): pytest.approx(wanted["base"][tasks[-1]], abs=CLOSE)}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vision", "text"])
def test_every_encoder_with_every_head(kind: str) -> None:
    found, wanted = scores(taskmerge.evaluate(["base"], suite=HOME / kind, cross=True)), known(kind)
    tasks = [name for name in wanted if name != "base"]
    assert found == {(one, task): pytest.approx(wanted[one][task], abs=CLOSE) for one in wanted for task in tasks}
    diagonal = scores(taskmerge.evaluate(["experts"], suite=HOME / kind))
    assert all(found[key] == value for key, value in diagonal.items()), "not a bit of difference"
