"""Tiny checkpoints and a way to run the command line in this process: what it returned, printed and left behind."""

import contextlib
import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from taskmerge.cli import app

Tensors = Mapping[str, Tensor]
SHAPES = {
    "embed.weight": (7, 8),
    "blocks.0.attn.in_proj_weight": (24, 8),
    "blocks.0.mlp.fc.weight": (16, 8),
    "blocks.0.mlp.fc.bias": (16,),
    "blocks.1.attn.in_proj_weight": (24, 8),
    "blocks.1.mlp.fc.weight": (16, 8),
    "blocks.1.mlp.fc.bias": (16,),
    "proj": (8, 6),
    "norm.weight": (8,),
    "logit_scale": (),
}


@dataclass(frozen=True)
class Outcome:
    """One run: exit code and both streams."""

    code: int
    out: str
    err: str

    @property
    def words(self) -> str:
        """stderr as one line, so that line breaks don't matter."""
        return " ".join(self.err.split())

    @property
    def paths(self) -> list[str]:
        return self.out.split("\n")[:-1]


def run(*arguments: object) -> Outcome:
    """`taskmerge ARGUMENTS` in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = app.run([str(one) for one in arguments])
    return Outcome(code, out.getvalue(), err.getvalue())


def merge(*arguments: object) -> Outcome:
    """A merge that must succeed without a word about errors."""
    outcome = run("merge", *arguments)
    assert outcome.code == 0, outcome.err
    assert "error:" not in outcome.err
    return outcome


def refused(code: int, *arguments: object, folder: Path | None = None, says: tuple[str, ...] = ()) -> Outcome:
    """A command that must end with `code`, one message that says all of `says`, and nothing written in `folder`."""
    before = tree(folder) if folder else {}
    outcome = run(*arguments)
    assert outcome.code == code, f"{outcome.code}: {outcome.err}"
    assert outcome.out == "", "an error prints no result"
    assert len(re.findall(r"(?m)^error: ", outcome.err)) == 1, outcome.err
    assert "Traceback" not in outcome.err
    assert "defect" not in outcome.err
    for text in says:
        assert text in outcome.words, f"{text!r} is not in: {outcome.words}"
    if folder:
        assert tree(folder) == before, "an error leaves no file behind and changes none"
    return outcome


def refused_merge(code: int, *arguments: object, folder: Path, says: tuple[str, ...] = ()) -> Outcome:
    """A merge that must be refused; its message says what to do."""
    outcome = refused(code, "merge", *arguments, folder=folder, says=says)
    assert re.search(r"(?m)^hint: \S", outcome.err), f"no hint: {outcome.err}"
    return outcome


def tree(folder: Path) -> dict[str, str]:
    """Every file below a folder, hidden ones too, with the digest of its bytes; folders end in a slash."""
    return {
        str(path.relative_to(folder)) + ("/" if path.is_dir() else ""): "" if path.is_dir() else digest(path)
        for path in sorted(folder.rglob("*"))
    }


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return sha256(path.read_bytes()).hexdigest()


def model(
    seed: int, dtype: torch.dtype = torch.float32, near: Tensors | None = None, **extra: Tensor
) -> dict[str, Tensor]:
    """Random tensors of `SHAPES`, or small steps away from those of `near`."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in SHAPES.items():
        values = torch.randn(shape, generator=generator)
        found[name] = (values if near is None else near[name].float() + 0.1 * values).to(dtype)
    return {**found, **extra}


def save(path: Path, tensors: Tensors, metadata: Mapping[str, str] | None = None) -> Path:
    """Writes a safetensors file with the library."""
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = {name: tensor.contiguous() for name, tensor in tensors.items()}
    safetensors.torch.save_file(plain, path, dict(metadata) if metadata else None)
    return path


def load(path: Path | str) -> dict[str, Tensor]:
    """The tensors of a safetensors file."""
    return dict(safetensors.torch.load_file(path))


def provenance(path: Path | str) -> dict[str, object]:
    """What a merged file says about itself."""
    with safetensors.safe_open(path, "pt") as file:
        return dict(json.loads(file.metadata()["taskmerge"]))


def write_experts(folder: Path, *tasks: str, base: bool = True, dtype: torch.dtype = torch.float32) -> dict[str, Path]:
    """`TASK.safetensors` for every task (cars, dogs, maps), and `base.safetensors`."""
    origin = model(0, dtype)
    found = {"base": save(folder / "base.safetensors", origin)} if base else {}
    for index, task in enumerate(tasks or ("cars", "dogs", "maps"), start=1):
        found[task] = save(folder / f"{task}.safetensors", model(index, dtype, origin))
    return found


def same_tensors(one: Tensors, other: Tensors) -> bool:
    """Whether two checkpoints are equal, bit for bit."""
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )
