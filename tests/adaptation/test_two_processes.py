"""`adapt` in two processes: the result of one to float32 rounding, one trace, and a run that is continued."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from process_cases import torchrun
from taskmerge.errors import UsageError
from taskmerge.workflows.adapt import adapt

pytestmark = pytest.mark.slow
SUITE = Path(__file__).parents[2] / "examples/tiny/suite.yaml"
COMMON = {"tasks": ["digits", "letters", "shapes"], "iterations": 3, "limit": 80, "scores": False, "device": "cpu"}
CASES: Mapping[str, dict[str, Any]] = {
    "adamerging": {"method": "adamerging"},
    "adarank": {"method": "adarank"},
    "symerge": {"method": "symerge", "filter": "code", "batch_size": 20},
    "joint filter": {"method": "symerge", "filter": "paper", "updates": "joint", "batch_size": 12},
    "block": {"method": "symerge", "layer": "last"},
    "surgery": {"method": "surgery", "batch_size": 8},
    "stop": {"method": "tint", "stop": "agreement", "every": 1},
    "solved heads": {"method": "heads"},
}
CACHED = {"method": "adamerging", "cache": "cache"}
TOLERANCE = {"solved heads": 1e-3}
"""What the solver's own tolerance makes of rounding; elsewhere some units in the last place of float32."""
ADAPT = """
import json, os, sys
from pathlib import Path
import taskmerge.adaptation.running as running
from taskmerge.workflows.adapt import adapt

running.SAVED_EVERY = 0.0  # a state after every update
receipts = []
for name, options in json.loads(sys.argv[2]).items():
    receipts.append(adapt(suite=sys.argv[1], output=Path(sys.argv[3], name), **options).to_dict())
Path(sys.argv[3], f"receipts {os.environ['RANK']}").write_text(json.dumps(receipts))
"""
STOPPED = """
import taskmerge.adaptation.running as running
tell = running.Running._tell

def told(self, trace, record):
    tell(self, trace, record)
    if record.update == 5 and self.group.rank == 1:
        raise SystemExit(9)

running.Running._tell = told
"""


def in_two(folder: Path, cases: Mapping[str, Mapping[str, Any]], before: str = "") -> Any:
    """Runs the cases in two processes; each writes into the folder of its name."""
    script = folder / "adapt.py"
    script.write_text(before + ADAPT)
    given = json.dumps({name: {**COMMON, **options} for name, options in cases.items()})
    return torchrun([script, SUITE, given, folder])


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes have written one folder a case."""
    folder = tmp_path_factory.mktemp("two")
    cached = {**CACHED, "cache": str(folder / "cache")}
    outcome = in_two(folder, {**CASES, "cached": cached, "cached again": cached})
    assert outcome.code == 0, outcome.err
    return folder


def files(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """What was learnt, by file; blocks without the keys' biases, whose gradients are rounding alone (softmax)."""
    found = {str(path.relative_to(folder)): load_file(path) for path in sorted(folder.rglob("*.safetensors"))}
    found.pop("model.safetensors")  # made of the others; tested by its own
    for tensors in (own for file, own in found.items() if file.startswith("blocks/")):
        for name in [name for name in tensors if name.endswith("attn.in_proj_bias")]:
            query, _, value = tensors[name].chunk(3)
            tensors[name] = torch.cat([query, value])
    return found


def trace(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "trace.jsonl").read_text().splitlines()]


def assert_near(ours: object, theirs: object, place: str, tolerance: float = 1e-5) -> None:
    """The same up to rounding, which Adam's first steps enlarge: of a thousand weights one may have no other gradient,
    and go where rounding says."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        assert ours.keys() == theirs.keys(), place
        for name in ours:
            assert_near(ours[name], theirs[name], f"{place} {name}", tolerance)
    elif isinstance(ours, float) and isinstance(theirs, float):
        assert ours == pytest.approx(theirs, rel=tolerance, abs=tolerance), place
    elif isinstance(ours, torch.Tensor) and isinstance(theirs, torch.Tensor):
        apart = ~torch.isclose(ours, theirs, rtol=tolerance, atol=tolerance)
        assert int(apart.sum()) <= apart.numel() // 1000, place
    else:
        assert ours == theirs, place


def assert_equal(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """The same bits."""
    assert ours.keys() == theirs.keys()
    for file in ours:
        assert ours[file].keys() == theirs[file].keys(), file
        assert all(torch.equal(ours[file][name], theirs[file][name]) for name in ours[file]), file


@pytest.mark.parametrize("name", CASES)
def test_two_processes_give_the_result_of_one(two: Path, tmp_path: Path, name: str) -> None:
    adapt(suite=SUITE, output=tmp_path / "one", **{**COMMON, **CASES[name]})
    ours, theirs = files(two / name), files(tmp_path / "one")
    assert_near(ours, theirs, name, TOLERANCE.get(name, 1e-5))
    assert {path.name for path in (two / name).iterdir()} == {path.name for path in (tmp_path / "one").iterdir()}
    counts = [json.loads((place / "report.json").read_text())["processes"] for place in (two / name, tmp_path / "one")]
    assert counts == [2, 1]
    records, expected = trace(two / name), trace(tmp_path / "one")
    assert len(records) == len(expected)
    for ours, theirs in zip(records, expected, strict=True):
        ours.pop("seconds")
        theirs.pop("seconds")
        assert_near(ours, theirs, f"{name}: update {theirs['update']}")


def test_both_processes_get_the_receipt(two: Path) -> None:
    first, second = (json.loads((two / f"receipts {rank}").read_text()) for rank in range(2))
    assert first == second
    assert [Path(one["path"]).name for one in first] == [*CASES, "cached", "cached again"]


def test_the_filter_leaves_something_out_of_tasks_that_are_divided(two: Path) -> None:
    kept = [own["kept"] for record in trace(two / "symerge") for own in record["tasks"].values()]
    assert min(kept) < 1


def test_a_run_is_continued_by_as_many_processes(two: Path, tmp_path: Path) -> None:
    case = {"symerge": CASES["symerge"]}
    stopped = in_two(tmp_path, case, STOPPED)
    assert stopped.code != 0
    assert (tmp_path / "symerge/state").is_dir()
    with pytest.raises(UsageError, match="`processes`"):
        adapt(suite=SUITE, output=tmp_path / "symerge", resume=True, **{**COMMON, **CASES["symerge"]})
    outcome = in_two(tmp_path, {"symerge": {**CASES["symerge"], "resume": True}})
    assert outcome.code == 0, outcome.err
    assert_equal(files(tmp_path / "symerge"), files(two / "symerge"))
    assert len(trace(tmp_path / "symerge")) == len(trace(two / "symerge"))


def test_experts_outputs_are_kept_once_for_all_processes(two: Path) -> None:
    assert len(list((two / "cache").glob("*.teacher"))) == 3
    for name in ("cached", "cached again"):
        assert_equal(files(two / name), files(two / "adamerging"))
