"""Real checkpoints, found by TASKMERGE_EXPERTS: the card's command as it is, loading by the libraries, known scores."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

import taskmerge
from taskmerge.cli.app import run

HOME = Path(os.environ.get("TASKMERGE_EXPERTS") or "none")
pytestmark = pytest.mark.skipif(not (HOME / "vision").is_dir(), reason="TASKMERGE_EXPERTS names no experts")
ROUNDING = 0.006  # of one task: three test pictures, where the fp16 file was rounded before it was scored


def copied(kind: str, folder: Path) -> Path:
    return Path(shutil.copytree(HOME / kind, folder / kind, ignore=shutil.ignore_patterns("make", "licenses")))


def test_the_card_works_where_the_experts_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied("vision", tmp_path)
    monkeypatch.chdir(folder)
    inputs = sorted(path.name for path in folder.glob("*.safetensors"))
    assert run(["merge", "--method", "cart", "--rank", "0.08", *inputs]) == 0
    assert capsys.readouterr().out == "merged-cart.safetensors\n"
    assert run(["verify", "merged-cart.safetensors"]) == 0


@pytest.mark.parametrize(
    ("method", "options", "known"),
    [
        pytest.param("average", {}, "average", marks=pytest.mark.slow),
        pytest.param("task_arithmetic", {"coefficient": 0.3}, "task_arithmetic_0.3", marks=pytest.mark.slow),
        ("task_arithmetic", {"coefficient": 0.2}, "task_arithmetic_0.2"),
    ],
)
def test_vision_merges_score_what_was_computed_independently(
    method: str, options: dict[str, float], known: str, tmp_path: Path
) -> None:
    out = tmp_path / "merged.safetensors"
    taskmerge.merge(sorted((HOME / "vision").glob("*.safetensors")), method=method, output=out, **options)
    report = taskmerge.evaluate([out], suite=HOME / "vision")
    found = {row.task: row.score.value for row in report.rows}
    wanted = json.loads((HOME / "vision" / "results.json").read_text())["merges"][known]["per_task"]
    assert found == pytest.approx(wanted, abs=ROUNDING)


def test_text_experts_without_embeddings_load_in_transformers(tmp_path: Path) -> None:
    import transformers

    tasks = [HOME / "text" / task for task in ("sentiment", "supersense", "isa", "langid")]
    out = tmp_path / "merged"
    receipt = taskmerge.merge(tasks, base=HOME / "text" / "base", method="cart", on_missing="base", output=out)
    assert receipt.paths == (str(out),)
    assert {"config.json", "tokenizer.json", "vocab.txt", "model.safetensors", "README.md"} <= {
        one.name for one in out.iterdir()
    }
    model, loading = transformers.AutoModel.from_pretrained(out, output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    with torch.no_grad():
        hidden = model(**tokenizer("a film worth seeing", return_tensors="pt")).last_hidden_state
    assert bool(torch.isfinite(hidden).all())
