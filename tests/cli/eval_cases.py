"""A small copy of the embedded example for `eval`, and ways to damage it."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

EXAMPLE = Path(__file__).parents[2] / "examples" / "tiny"
TASKS = ("digits", "shapes")
FILES = ("base.safetensors", "model.json", "bpe.txt.gz", *(f"{task}.safetensors" for task in TASKS))
HALVES = {"a": "digits", "b": "shapes"}


def prepared(
    folder: Path, change: Callable[[dict[str, Any]], None] | None = None, tasks: tuple[str, ...] = TASKS
) -> Path:
    """Two tasks of the example as links in `folder`, with a suite of their own that `change` may alter."""
    (folder / "data").mkdir(parents=True)
    (folder / "heads").mkdir()
    for name in (*FILES, *(f"data/{task}.npz" for task in TASKS), *(f"heads/{task}.safetensors" for task in TASKS)):
        (folder / name).symlink_to(EXAMPLE / name)
    suite = yaml.safe_load((EXAMPLE / "suite.yaml").read_text())
    suite["tasks"] = {task: suite["tasks"][task] for task in tasks}
    if change is not None:
        change(suite)
    path = folder / "suite.yaml"
    path.write_text(yaml.safe_dump(suite, sort_keys=False))
    return path


def rewritten(path: Path, **arrays: np.ndarray) -> None:
    """A .npz file of the copy with other arrays; the example's own stays as it is."""
    with np.load(path) as found:
        old = {name: found[name] for name in found.files}
    path.unlink()
    np.savez(path, **{**old, **arrays})


def own_copy(path: Path) -> Path:
    """The link replaced by a file."""
    source = path.resolve()
    path.unlink()
    shutil.copy(source, path)
    return path
