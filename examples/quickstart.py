"""Prints how well checkpoints do on the tasks of a suite: quickstart.py SUITE [base | experts | CHECKPOINT]...

`base` is the suite's base and `experts` each task's own expert. Labels serve this count alone.
"""

import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import yaml
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import normalize

Suite = dict[str, Any]


def read_suite(path: Path) -> Suite:
    """The suite as it is written, with the folder that its paths start from under `folder`."""
    return yaml.safe_load(path.read_text(encoding="utf-8")) | {"folder": path.parent}


def build(suite: Suite) -> nn.Module:
    """The suite's open_clip model, untrained."""
    config = suite["folder"] / suite["backbone"]["model"]
    open_clip.add_model_config(config)
    return open_clip.create_model(config.stem).eval()


def load_visual(model: nn.Module, checkpoint: Path) -> None:
    """Fills the visual tower; a tensor too few or too many is an error. A text tower is passed over."""
    tensors = load_file(checkpoint).items()
    visual = {name.removeprefix("visual."): value.float() for name, value in tensors if name.startswith("visual.")}
    model.visual.load_state_dict(visual, strict=True)


def pixels(pictures: np.ndarray, suite: Suite) -> Tensor:
    """uint8 [N, H, W, 3] to normalised float [N, 3, H, W]."""
    mean, std = (torch.tensor(suite["backbone"]["preprocess"][key])[:, None, None] for key in ("mean", "std"))
    return (torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255 - mean) / std


@torch.no_grad()
def accuracy(model: nn.Module, suite: Suite, task: str) -> float:
    """The share of the task's test pictures whose class has the largest logit."""
    spec = suite["tasks"][task]
    split = spec["data"]["test"]
    data = np.load(suite["folder"] / split["file"])
    head = load_file(suite["folder"] / spec["head"])["weight"]  # [classes, embedding]
    logits = normalize(model.encode_image(pixels(data[split["x"]], suite)), dim=1) @ head.T
    return float((logits.argmax(dim=1).numpy() == data[split["y"]]).mean())


def scores(model: nn.Module, suite: Suite, checkpoint: str) -> list[float]:
    """Accuracy of a checkpoint file, of `base` or of `experts` on every task."""
    found = []
    for task, spec in suite["tasks"].items():
        named = {"base": suite["folder"] / suite["base"], "experts": suite["folder"] / spec["expert"]}
        load_visual(model, named.get(checkpoint, Path(checkpoint)))
        found.append(accuracy(model, suite, task))
    return found


def table(suite: Suite, columns: dict[str, list[float]]) -> Table:
    """Percent: tasks down, checkpoints across, the average last."""
    result = Table("accuracy, %", title=suite["name"])
    for name in columns:
        result.add_column(name, justify="right")
    last = len(suite["tasks"]) - 1
    for row, task in enumerate(suite["tasks"]):
        cells = (f"{100 * column[row]:.1f}" for column in columns.values())
        result.add_row(task, *cells, end_section=row == last)
    result.add_row("average", *(f"{100 * sum(column) / len(column):.1f}" for column in columns.values()))
    return result


def main(suite_file: str, *checkpoints: str) -> None:
    """Measures the base and every checkpoint and prints one table."""
    logging.disable(logging.WARNING)  # open_clip says that a new model is untrained
    suite = read_suite(Path(suite_file))
    model = build(suite)
    columns = {Path(name).stem.removeprefix("merged-"): scores(model, suite, name) for name in checkpoints}
    Console(width=80).print(table(suite, columns))


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
