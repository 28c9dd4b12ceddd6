"""Models of very many tensors: time grows with their number, not with its square, whatever is done with them."""

import json
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import taskmerge
from taskmerge.checkpoint.header import read_header
from taskmerge.errors import BadFile, TaskmergeError

FEW, MANY = 1_000, 8_000
GROWTH = 20.0
"""Times as long as for few may it take for many, eight times as many: what begins every command is not taken off."""


def name_of(number: int, stem: str = "layers") -> str:
    part = ("gate", "up", "down")[number % 3]
    return f"model.{stem}.{number // 300}.mlp.experts.{number % 300 // 3}.{part}_proj.weight"


def written(path: Path, count: int, seed: int, *, side: int = 2, stem: str = "layers") -> Path:
    """A checkpoint of so many small matrices."""
    size = 4 * side * side
    header = {
        name: {"dtype": "F32", "shape": [side, side], "data_offsets": [size * place, size * (place + 1)]}
        for place, name in enumerate(sorted(name_of(number, stem) for number in range(count)))
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    numbers = np.random.default_rng(seed).standard_normal(count * side * side, dtype=np.float32)
    path.write_bytes(struct.pack("<Q", len(text)) + text + numbers.tobytes())
    return path


def seconds(work: Callable[[], object]) -> float:
    """Of all processors."""
    started = time.process_time()
    work()
    return time.process_time() - started


def refused(work: Callable[[], object]) -> None:
    with pytest.raises(TaskmergeError) as caught:
        work()
    assert len(caught.value.message) < 20_000


def made(folder: Path, count: int) -> dict[str, Callable[[], object]]:
    """What is done with checkpoints of so many tensors."""
    folder.mkdir()
    base, a, b = (written(folder / f"{name}.safetensors", count, seed) for seed, name in enumerate(("base", "a", "b")))
    other = written(folder / "c.safetensors", count, 3, stem="blocks")
    wide = written(folder / "d.safetensors", count, 4, side=3)

    def merge(*paths: Path, method: str = "average", name: str = "m", **options: Any) -> None:
        output = folder / f"{name}.safetensors"
        taskmerge.merge(paths, method=method, output=output, overwrite=True, threads=2, **options)

    merge(a, b)
    return {
        "merge": lambda: merge(a, b, base=base, method="task_arithmetic", name="t"),
        "ties": lambda: merge(a, b, base=base, method="ties", name="i"),
        "shards": lambda: merge(a, b, name="s", shard_size=count * 2),
        "inspect": lambda: taskmerge.inspect(a),
        "diff": lambda: taskmerge.diff(a, b),
        "verify": lambda: taskmerge.verify(folder / "m.safetensors"),
        "other names": lambda: refused(lambda: merge(a, other, name="n")),
        "other shapes": lambda: refused(lambda: merge(a, wide, name="n")),
    }


@pytest.mark.slow
def test_time_grows_with_the_number_of_tensors(tmp_path: Path) -> None:
    few, many = made(tmp_path / "few", FEW), made(tmp_path / "many", MANY)
    grown = {}
    for what, work in few.items():
        work()  # what is imported, once
        short, long = min(seconds(work) for _ in range(3)), seconds(many[what])
        grown[what] = long / max(short, 0.01)
    assert {what: round(times, 1) for what, times in grown.items() if times > GROWTH} == {}


@pytest.mark.slow
def test_a_header_of_sixty_megabytes_is_read_in_seconds(tmp_path: Path) -> None:
    path = written(tmp_path / "large.safetensors", 540_000, 0, side=1)
    assert int.from_bytes(path.read_bytes()[:8], "little") > 55_000_000
    assert seconds(lambda: read_header(path)) < 20


@pytest.mark.slow
@pytest.mark.parametrize(
    "content",
    [
        b'{"a":"' + b"x" * 60_000_000 + b'"}', b"[" * 60_000_000, b"[" + b"0," * 30_000_000 + b"0]",
        b'{"__metadata__":{"a":"' + b"\\u0041" * 10_000_000 + b'"}}x', b'{"a":1' + b"0" * 60_000_000 + b"}",
        b'{"a":{"dtype":"U8","shape":[' + b"1," * 30_000_000 + b'1],"data_offsets":[0,1]}}',
    ],
    ids=["text", "lists", "numbers", "escapes", "digits", "sides"],
)  # fmt: skip
def test_sixty_megabytes_of_anything_else_are_refused_in_seconds(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(content)) + content + b"\0")

    def refuse() -> None:
        with pytest.raises(BadFile) as caught:
            read_header(path)
        assert len(caught.value.message) < 6_000

    assert seconds(refuse) < 20
