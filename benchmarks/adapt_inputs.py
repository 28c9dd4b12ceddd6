"""What benchmarks/adapt.py compares on, and how its processes are asked: needs torch and open_clip, not taskmerge.

    python benchmarks/adapt_inputs.py FOLDER MODEL TASKS BATCH_SIZE

writes base, experts, items and heads. A worker answers lines on its standard input, each with one line behind `ANSWER`:
`iterate MODE` with wall and processor seconds, `peak` with bytes, `learned PATH` when it has written there what was
learnt.
"""

import json
import logging
import resource
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import open_clip
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from synthetic import task_vector

ANSWER = "answer: "
CLASSES = 20
RATES = {
    "adamerging": {"coefficients": 1e-3},
    "adarank": {"coefficients": 1e-3, "masks": 1e-3},
    "symerge": {"coefficients": 1e-2, "heads": 1e-2},
}
"""Adam's learning rates. At the masks' rate no component goes off before update 71: all stay in the products."""
START = 0.3


@dataclass(frozen=True)
class Inputs:
    """A base, experts and every task's items in `folder`. A task has as many items as a batch holds, so that all
    variants see the same items at every update, in whatever order."""

    folder: str
    model: str
    method: str
    tasks: int
    batch_size: int
    amp: bool
    threads: int

    @classmethod
    def parse(cls, text: str) -> "Inputs":
        return cls(**json.loads(text))

    def text(self) -> str:
        return json.dumps(asdict(self))

    @property
    def names(self) -> list[str]:
        return [f"task{index}" for index in range(self.tasks)]

    def state(self, name: str) -> dict[str, Tensor]:
        """The tensors of `base` or of a task's expert."""
        read = load_file(Path(self.folder) / f"{name}.safetensors")
        return {key: value.clone() for key, value in read.items()}  # in memory, not mapped

    def module(self) -> nn.Module:
        """The encoder with the base in it, without gradients."""
        module = visual(self.model)
        module.load_state_dict(self.state("base"))
        return module.requires_grad_(False)

    def pixels(self, name: str) -> Tensor:
        """The items of a task [B, 3, H, W]."""
        return load_file(Path(self.folder) / "items.safetensors")[name][: self.batch_size].clone()

    def head(self, name: str) -> Tensor:
        """The classifier of a task [C, D], for features of length 1."""
        return load_file(Path(self.folder) / "heads.safetensors")[name]

    def autocast(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.amp)


def visual(model: str) -> nn.Module:
    """open_clip's visual encoder of that name, or of a configuration file, with random weights."""
    if model.endswith(".json"):
        open_clip.add_model_config(model)
    logging.getLogger().setLevel(logging.ERROR)  # it warns that nothing is loaded
    return open_clip.create_model(Path(model).stem).visual.eval()


def write_inputs(folder: Path, model: str, tasks: int, batch_size: int) -> None:
    """base, experts = base + noise of a decaying spectrum, items and heads."""
    torch.manual_seed(0)
    module = visual(model)
    base = {name: value.contiguous() for name, value in module.state_dict().items()}
    save_file(base, folder / "base.safetensors")
    names = [f"task{index}" for index in range(tasks)]
    for index, name in enumerate(names):
        generator = torch.Generator().manual_seed(1 + index)
        tuned = {key: value + task_vector(tuple(value.shape), generator) for key, value in base.items()}
        save_file(tuned, folder / f"{name}.safetensors")
    size = module.image_size if isinstance(module.image_size, tuple) else (module.image_size,) * 2
    save_file({name: torch.randn(batch_size, 3, *size) for name in names}, folder / "items.safetensors")
    width = module.output_dim
    heads = {name: 100 * functional.normalize(torch.randn(CLASSES, width), dim=1) for name in names}
    save_file(heads, folder / "heads.safetensors")


def factors(name: str, task: int, shape: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """(left [r, m], values [r], right [r, n]): random numbers in place of one task's singular triplets of a matrix.

    Arithmetic takes as long on any numbers. `left.mT` is what torch.linalg.svd calls U, in the same layout.
    """
    rank = min(shape)
    generator = torch.Generator().manual_seed(hash_of(f"{name} {task}"))
    left, right = (torch.empty(rank, side).uniform_(-1, 1, generator=generator) * (3 / side) ** 0.5 for side in shape)
    return left, 0.1 * torch.arange(1, rank + 1).float().rsqrt(), right


def hash_of(text: str) -> int:
    return int.from_bytes(text.encode(), "little") % ((1 << 61) - 1)


def entropy(logits: Tensor) -> Tensor:
    """Mean over items of the entropy of their predictions."""
    log_p = logits.log_softmax(1)
    return -(log_p.exp() * log_p).sum(1).mean()


def scores(head: Tensor, features: Tensor) -> Tensor:
    return functional.linear(functional.normalize(features, dim=-1), head)


class Worker(Protocol):
    def iterate(self, mode: str) -> None:
        """One iteration: every task's batch once, in one update (`joint`) or one a task (`sequential`)."""
        ...

    def learned(self) -> dict[str, Tensor]:
        """`coefficients/NAME` [T] and whatever else learns, by name."""
        ...


def answer(make: Callable[[], Worker]) -> None:
    """Makes a worker and answers lines until there are no more. The peak is that of its iterations, with what it holds
    meanwhile, but without what the process had before it was made: libraries."""
    before = own_memory("VmRSS")
    worker = make()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    for line in sys.stdin:
        word, _, rest = line.strip().partition(" ")
        if word == "iterate":
            started, used = time.perf_counter(), processor_seconds()
            worker.iterate(rest)
            print(ANSWER, time.perf_counter() - started, processor_seconds() - used, flush=True)
        elif word == "learned":
            save_file({name: value.detach().contiguous() for name, value in worker.learned().items()}, rest)
            print(ANSWER, flush=True)
        else:
            print(ANSWER, own_memory("VmHWM") - before, flush=True)


def processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def own_memory(of: str) -> int:
    """Resident bytes now (`VmRSS`) or at the peak (`VmHWM`), without files that are mapped, as libraries are."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    kilobytes = {
        name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines) if "kB" in rest
    }
    return (kilobytes[of] - kilobytes["RssFile"]) * 1024


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    write_inputs(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
