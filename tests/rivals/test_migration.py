"""The options that docs/migration.md gives for a mergekit method must make mergekit's numbers, on the command line."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from taskmerge.cli import app

pytestmark = pytest.mark.rivals

PAGE = Path(__file__).parents[2] / "docs" / "migration.md"
SHAPES = {"blocks.0.weight": (40, 30), "blocks.0.bias": (33,), "blocks.1.weight": (12, 5, 3)}
WEIGHTS = {"a": 0.5, "b": 1.0, "c": 2.5}
WEIGHTED = [word for name, weight in WEIGHTS.items() for word in ("--weight", f"{name}={weight}")]
VALUES = {"D": "0.6", "P": "1.0", "GAMMA": "0.05", "LAMBDA": "0.7", "T": "0.3"}

SCRIPT = """
from mergekit.merge_methods import merge_tensors

names = sorted({name.split("/")[1] for name in given})
weights = options["weights"]

def put(method, label=None, tasks="abc", base=True, **parameters):
    for name in names:
        tensors = [given[f"{task}/{name}"] for task in (["base", *tasks] if base else tasks)]
        index = None if method == "linear" else 0
        result[f"{label or method}/{name}"] = merge_tensors(tensors, method, parameters=parameters, base_index=index)

put("linear", base=False, weight=weights)
put("task_arithmetic", weight=weights)
put("ties", weight=1.0, density=0.6)
put("ties", "ties with normalize: false", weight=weights, density=0.6, normalize=False, **{"lambda": 0.7})
put("dare_linear", weight=weights, density=1.0)
put("dare_ties", weight=weights, density=1.0)
put("breadcrumbs", weight=weights, density=0.6, gamma=0.05)
put("breadcrumbs_ties", weight=weights, density=0.6, gamma=0.05)
put("slerp", tasks="ab", base=False, t=0.3)
put("model_stock")
put("nuslerp", tasks="ab", weight=weights[:2])
put("nuslerp", "nuslerp with nuslerp_flatten: false", tasks="ab", weight=weights[:2], nuslerp_flatten=False)
put("karcher", base=False, tol=1e-7)
"""


def rows() -> dict[str, str]:
    """mergekit's method -> the options beside it; `the same with` goes on from the row before."""
    found: dict[str, str] = {}
    before = ""
    for name, given in re.findall(r"^\| (`[a-z_]+`(?: with `[^`]+`)?) \| ([^|]+) \|", PAGE.read_text("utf-8"), re.M):
        options = " ".join(re.findall(r"`([^`]+)`", given))
        if options.startswith("--"):
            before = f"{before} {options}" if given.startswith("the same with") else options
            found.setdefault(name.replace("`", ""), before)
    return found


ROWS = rows()
UNWEIGHTED = ("ties", "slerp", "model_stock", "karcher")
PAIRED = ("nuslerp", "nuslerp with nuslerp_flatten: false")


@pytest.fixture(scope="module")
def given() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    base = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    shared = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    found = {f"base/{name}": tensor for name, tensor in base.items()}
    for task in WEIGHTS:
        for name, shape in SHAPES.items():
            found[f"{task}/{name}"] = base[name] + shared[name] + torch.randn(shape, generator=generator)
    return found


@pytest.fixture(scope="module")
def theirs(rival: Callable[..., dict[str, Tensor]], given: dict[str, Tensor]) -> dict[str, Tensor]:
    return rival(SCRIPT, given, weights=list(WEIGHTS.values()))


@pytest.mark.parametrize("method", [
    "linear", "task_arithmetic", "ties", "ties with normalize: false", "dare_linear", "dare_ties", "breadcrumbs",
    "breadcrumbs_ties", "slerp", "model_stock", *PAIRED, "karcher",
])  # fmt: skip
def test_the_options_give_what_mergekit_gives(
    method: str, given: dict[str, Tensor], theirs: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for task in ("base", *WEIGHTS):
        save_file({name: given[f"{task}/{name}"] for name in SHAPES}, f"{task}.safetensors")
    tasks = ["a", "b"] if method in PAIRED else [] if method == "slerp" else list(WEIGHTS)
    files = [f"{task}.safetensors" for task in ([*tasks, "base"] if tasks and method != "karcher" else tasks)]
    words = ROWS[method].replace("FIRST", "a.safetensors").replace("SECOND", "b.safetensors").split()
    words = [VALUES.get(word, word) for word in words] + ([] if method in UNWEIGHTED else WEIGHTED[: 2 * len(tasks)])
    assert app.run(["merge", "--quiet", *words, *files, "-o", "merged.safetensors"]) == 0
    merged = load_file("merged.safetensors")
    for name in SHAPES:
        expected = theirs[f"{method}/{name}"]
        assert float((merged[name] - expected).norm() / expected.norm()) < 1e-6, name
