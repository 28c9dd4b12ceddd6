"""The time that a dry run says: by method, against what merges took, and as its parts say."""

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import taskmerge
from taskmerge.merging import duration
from taskmerge.merging.duration import DIGESTED, READ, STARTING, WRITTEN
from taskmerge.methods.contract import Method
from taskmerge.methods.registry import methods
from taskmerge.numerics import durations
from taskmerge.numerics.speed import REFERENCE, Speed, speed

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from synthetic import shapes, write

# Processor seconds of one core, to start and to import left aside: what `--threads 1 --no-digest` took on the machine
# that the constants are of, for benchmarks/synthetic.py's base and eight experts of the size of CLIP's ViT-B/32
TOOK = {"average": 0.8, "task_arithmetic": 0.7, "ties": 4.9, "cart": 17.2, "iso_c": 10.0, "tsv_m": 33.6}
NEAR = 1.5


@pytest.fixture
def like_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duration, "speed", lambda *, factoring: REFERENCE)


def headers(folder: Path, experts: int, layers: int = 12, width: int = 768) -> Path:
    """Files of synthetic encoders with headers alone: their numbers are holes on the disk."""
    folder.mkdir()
    entries, place = {}, 0
    for name, shape in shapes(layers, width).items():
        size = 4 * math.prod(shape)
        entries[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [place, place + size]}
        place += size
    header = json.dumps(entries).encode()
    for name in ("base", *(f"expert{index}" for index in range(experts))):
        with (folder / f"{name}.safetensors").open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(8 + len(header) + place)
    return folder


def plan(folder: Path, method: str, **options: Any) -> taskmerge.MergePlan:
    usual = {"digests": False, "threads": 1, "device": "cpu", "output": folder / "none.safetensors"}
    return taskmerge.merge(f"{folder}/[be]*.safetensors", method=method, dry_run=True, **{**usual, **options})


def working(found: taskmerge.MergePlan) -> float:
    """The seconds of a plan without the start and the disk."""
    return found.seconds - STARTING - WRITTEN * found.bytes_written


@pytest.mark.parametrize("method", TOOK)
def test_every_method_is_told_about_what_it_took(method: str, tmp_path: Path, like_the_reference: None) -> None:
    said = working(plan(headers(tmp_path / "vit", 8), method))
    assert TOOK[method] / NEAR < said < TOOK[method] * NEAR


def test_workers_share_the_work_but_not_one_tensor(tmp_path: Path, like_the_reference: None) -> None:
    folder = headers(tmp_path / "vit", 8)
    alone, both, many = (working(plan(folder, "tsv_m", threads=threads)) for threads in (1, 2, 10_000))
    assert both == pytest.approx(alone / 2, rel=0.02)
    assert alone / 100 < many < alone / 10, "the longest job is one worker's"


def test_a_grid_shares_what_its_points_share(tmp_path: Path, like_the_reference: None) -> None:
    folder = headers(tmp_path / "vit", 8, layers=2)
    one = working(plan(folder, "cart", rank=0.08))
    assert working(plan(folder, "cart", rank=0.08, coefficient=[0.5, 1.0, 1.5])) < 1.5 * one
    common = [working(plan(folder, "iso_cts", common_fraction=share)) for share in (0.8, [0.7, 0.8])]
    assert common[1] > 1.5 * common[0], "nothing is shared between these"


def test_parts_are_what_they_say(tmp_path: Path, like_the_reference: None) -> None:
    folder = headers(tmp_path / "vit", 2, layers=1)
    without, digested = plan(folder, "average"), plan(folder, "average", digests=True)
    assert digested.seconds - without.seconds == pytest.approx(without.bytes_read * DIGESTED, abs=0.11)
    ties = [working(plan(folder, "ties", scope=scope)) for scope in ("tensor", "model")]
    assert ties[1] - ties[0] == pytest.approx(2 * READ * plan(folder, "ties").bytes_read, abs=0.11)
    single, double = (working(plan(folder, "cart", compute_dtype=kind)) for kind in ("float32", "float64"))
    assert 1.5 < double / single < 2.1


@pytest.mark.parametrize(
    "method", [own for own in methods().values() if own.on_matrices], ids=lambda method: method.name
)
def test_more_work_takes_longer(method: Method) -> None:
    """Larger matrices, and more tasks; transposed ones are alike; never nothing, nor NaN."""
    options = method.defaults()
    for sizes in (
        ((4, 4, 2), (64, 48, 2), (768, 768, 2), (768, 768, 8), (4096, 4096, 8)),
        ((64, 16, 2), (3072, 768, 2), (3072, 768, 8), (14336, 4096, 8)),
    ):
        times = [method.matrix_seconds(*size, options) for size in sizes]
        assert all(0 < one < math.inf for one in times)
        assert times == sorted(times)
        turned = [method.matrix_seconds(n, m, tasks, options) for m, n, tasks in sizes]
        assert turned == pytest.approx(times, rel=0.5)


def test_this_machine_is_measured_once_and_only_for_long_merges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def twice(*, factoring: bool) -> Speed:
        asked.append(factoring)
        return Speed(2.0, 2.0, 2.0, 2.0)

    monkeypatch.setattr(duration, "speed", twice)
    folder = headers(tmp_path / "vit", 8)
    plan(headers(tmp_path / "small", 2, layers=1, width=64), "cart")
    assert asked == []
    slow = working(plan(folder, "cart"))
    assert asked == [True]
    monkeypatch.setattr(duration, "speed", lambda *, factoring: REFERENCE)
    assert slow == pytest.approx(2 * working(plan(folder, "cart")), rel=0.1)


def test_the_measurement_is_short_and_about_right() -> None:
    speed.cache_clear()
    before = time.process_time()
    found = speed(factoring=True)
    assert time.process_time() - before < 2.0
    assert all(0.02 < part < 50 for part in (found.sweeps, found.digests, found.products, found.eigenpairs))
    assert speed(factoring=True) is found


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One layer of the encoders, with numbers."""
    import torch

    folder = tmp_path_factory.mktemp("real")
    write(folder, 8, 1, 768, torch.float32)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ties", "cart", "iso_c", "tsv_m", "truncated_task_arithmetic", "iso_cts"])
def test_merges_take_about_what_is_said_here_too(method: str, real: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In processor time, whatever else this machine does, by its own measured speed."""
    monkeypatch.setattr(duration, "LONG", 0.0)
    said = working(plan(real, method))
    out = real / "out.safetensors"
    options: dict[str, Any] = {"method": method, "threads": 1, "digests": False, "device": "cpu", "overwrite": True}
    inputs = sorted(path for path in real.glob("*.safetensors") if path != out)
    taskmerge.merge(inputs, **{**options, "method": "average"}, output=out)  # what is made once
    before = time.process_time()
    taskmerge.merge(inputs, **options, output=out)
    took = time.process_time() - before
    assert took < 1.7 * (said + 0.15), (said, took)
    assert said < 1.7 * (took + 0.15), (said, took)


def test_constants_add_up() -> None:
    assert durations.leading(768, 768, 0) < durations.leading(768, 768, 8)
    assert durations.polar(768, 3072) == pytest.approx(durations.polar(3072, 768))
    assert durations.truncated(100, 100, 3, None) > durations.truncated(100, 100, 1, None)
