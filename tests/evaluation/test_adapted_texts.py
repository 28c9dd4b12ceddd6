"""`eval` of an adapted folder of text tasks by hand in float64: hidden heads, a regression, names with a prefix."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import yaml
from safetensors.torch import save_file
from scipy import stats
from torch import Tensor, nn

from letter_cases import LETTERS, letter_config, save_letters
from taskmerge import evaluate
from taskmerge.checkpoint.adapted import Manifest, write_manifest
from taskmerge.models.adapters import SurgeryAdapter, write_adapter
from taskmerge.models.head_files import write_head
from taskmerge.models.heads import HiddenHead, LinearHead

TEXTS = [" ".join(LETTERS[start : start + 1 + start % 4]) for start in range(10)] * 3
LABELS: dict[str, list[Any]] = {
    "sort": np.random.default_rng(0).integers(0, 3, len(TEXTS)).tolist(),
    "rate": np.random.default_rng(1).normal(size=len(TEXTS)).tolist(),
}
KINDS: dict[str, dict[str, Any]] = {
    "sort": {"kind": "classification", "metric": "accuracy", "classes": ["a", "b", "c"]},
    "rate": {"kind": "regression", "metric": "pearson"},
}


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def bert(seed: int) -> Any:
    model = transformers.BertModel(letter_config(), add_pooling_layer=False)
    with torch.no_grad():
        for place, tensor in enumerate(model.parameters()):
            tensor.copy_(drawn(1000 * seed + place, *tensor.shape) / 2)
    return model.eval()


def hidden_head(outputs: int) -> HiddenHead:
    inner = nn.Linear(8, 6)
    with torch.no_grad():
        inner.weight.copy_(drawn(70, 6, 8))
        inner.bias.copy_(drawn(71, 6))
    output = LinearHead(drawn(72, outputs, 6), drawn(73, outputs), normalise=False, regression=outputs == 1)
    return HiddenHead(inner, "gelu", output)


HEADS = {"sort": hidden_head(3), "rate": hidden_head(1)}
ADAPTER = SurgeryAdapter(drawn(80, 4, 8), drawn(81, 8, 4))


def own_part() -> dict[str, Tensor]:
    """The second half of the only layer, of another model."""
    return {name: tensor for name, tensor in bert(2).state_dict().items() if "layer.0.output" in name}


def suite_in(folder: Path) -> Path:
    (folder / "base").mkdir()
    letter_config().save_pretrained(folder / "base")
    save_letters(folder / "base")
    for task, labels in LABELS.items():
        lines = [json.dumps({"text": text, "label": label}) for text, label in zip(TEXTS, labels, strict=True)]
        (folder / f"{task}.jsonl").write_text("\n".join(lines))
    tasks = {
        task: {
            "head": f"adapted/heads/{task}.safetensors", **kind,
            "data": {"test": {"file": f"{task}.jsonl", "x": "text", "y": "label"}},
        }
        for task, kind in KINDS.items()
    }  # fmt: skip
    backbone = {"library": "transformers", "model": "base", "tokenizer": "base"}
    suite = {"taskmerge": 1, "name": "texts", "backbone": backbone, "tasks": tasks}
    (folder / "suite.yaml").write_text(yaml.safe_dump(suite, sort_keys=False))
    return folder / "suite.yaml"


def adapted_in(folder: Path) -> Path:
    """Everything under `bert.`: a block for the regression, an adapter for the classification, heads for both."""
    home = folder / "adapted"
    (home / "blocks").mkdir(parents=True)
    for file, tensors in (("model", bert(1).state_dict()), ("blocks/rate", own_part())):
        save_file({f"bert.{name}": tensor for name, tensor in tensors.items()}, home / f"{file}.safetensors")
    for task, head in HEADS.items():
        write_head(home / "heads" / f"{task}.safetensors", head)
    write_adapter(home / "adapters" / "sort.safetensors", ADAPTER)
    manifest = Manifest(method="symerge", needs_task_index=True, parts=("heads", "adapters", "blocks"))
    write_manifest(home, manifest)
    return home


def by_hand(folder: Path, task: str) -> Tensor:
    """float64 outputs [N, C] or [N]."""
    model = bert(1)
    if task == "rate":
        model.load_state_dict({**model.state_dict(), **own_part()})
    given = transformers.AutoTokenizer.from_pretrained(folder / "base")(TEXTS, padding=True, return_tensors="pt")
    head = {name: tensor.double() for name, tensor in HEADS[task].state_dict().items()}
    with torch.no_grad():
        z = model.double()(**given).last_hidden_state[:, 0]
        if task == "sort":
            z = z - (z @ ADAPTER.down.double().T).clamp(min=0) @ ADAPTER.up.double().T
        inner = z @ head["hidden.weight"].T + head["hidden.bias"]
        active = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))
        return (active @ head["output.weight"].T + head["output.bias"]).squeeze(1)


def test_text_tasks_are_scored_as_by_hand(tmp_path: Path) -> None:
    suite, home = suite_in(tmp_path), adapted_in(tmp_path)
    found = {row.task: row for row in evaluate([home], suite=suite, batch_size=8).rows}
    wanted = by_hand(tmp_path, "sort").argmax(1).numpy() == np.array(LABELS["sort"])
    assert found["sort"].correct is not None
    assert found["sort"].correct.tolist() == wanted.tolist()
    correlation = stats.pearsonr(by_hand(tmp_path, "rate").numpy(), LABELS["rate"]).statistic
    assert found["rate"].score.value == pytest.approx(float(correlation), abs=1e-5)
    shared = {row.task: row for row in evaluate([home / "model.safetensors"], suite=suite, batch_size=8).rows}
    assert abs(shared["rate"].score.value - found["rate"].score.value) > 1e-3, "the block makes a difference"


def test_other_encoders_take_the_hidden_heads_of_a_folder(tmp_path: Path) -> None:
    """`--heads adapted/heads`: someone else's heads, whatever the encoder."""
    suite, home = suite_in(tmp_path), adapted_in(tmp_path)
    save_file(bert(1).state_dict(), tmp_path / "bare.safetensors")
    found = evaluate([tmp_path / "bare.safetensors"], suite=suite, heads=home / "heads", batch_size=8)
    shared = evaluate([home / "model.safetensors"], suite=suite, batch_size=8)
    assert [row.score.value for row in found.rows] == [row.score.value for row in shared.rows]
