"""The one loop of all that looks at outputs: fill a backbone, encode items, put heads on their features, check them."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import Tensor

from taskmerge.checkpoint.checkpoint import Checkpoint
from taskmerge.checkpoint.dtypes import is_float
from taskmerge.errors import BadFile, BadNumber, NotEnough, located
from taskmerge.models.contract import Backbone, Head
from taskmerge.models.encode import encode
from taskmerge.models.fill import exchange, fill
from taskmerge.models.heads import DAMAGED
from taskmerge.specs.suite import DENSE, Task
from taskmerge.types import Inputs, Note, Progress, unheard, unwatched

Blocks = Mapping[str, Checkpoint]
"""Task -> the part of the encoder that is its own, under the encoder's names; other tasks have none."""
NO_BLOCKS: Blocks = MappingProxyType({})
PHASES = ("reading", "filling", "encoding", "scoring")
"""What the time of a run goes to; heads are a part of scoring."""


@dataclass(frozen=True, slots=True)
class Outputs:
    """What the head at `place` makes of the items from `start` on: `values` [B, …], finite, on the CPU; `features` are
    what it was given, on the device."""

    place: int
    start: int
    values: Tensor
    features: Tensor


def passes(tasks: Sequence[Task], blocks: Blocks) -> dict[Checkpoint | None, list[int]]:
    """Places of the tasks whose items go through the same weights, by the block that stands in them."""
    found: dict[Checkpoint | None, list[int]] = {}
    for place, task in enumerate(tasks):
        found.setdefault(blocks.get(task.name), []).append(place)
    return found


@dataclass
class Forward:
    """A backbone on a device, through which items are passed, filled with one checkpoint after another.

    `base` completes checkpoints that lack embeddings. `batch_size` is halved once if the device's memory runs out,
    which `note` hears. `done` counts the samples that were encoded, `total` those there will be, if that is known;
    `progress` hears of both. `seconds` is where the time went.
    """

    backbone: Backbone
    device: torch.device
    batch_size: int
    base: Checkpoint | None = None
    progress: Progress = unwatched
    note: Note = unheard
    total: int | None = None
    done: int = field(init=False, default=0)
    seconds: dict[str, float] = field(init=False, default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    _label: str = field(init=False, default="")
    _checkpoint: Checkpoint | None = field(init=False, default=None)
    _blocks: Blocks = field(init=False, default_factory=dict)
    _block: Checkpoint | None = field(init=False, default=None)
    _halved: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        with self.room():
            self.backbone.module.to(self.device).eval()

    def fill(self, label: str, checkpoint: Checkpoint, blocks: Blocks = NO_BLOCKS) -> None:
        """Puts a checkpoint into the backbone; on the tasks of `blocks`, these will stand in it. `label` names it in
        messages and to `progress`."""
        with self.timed("filling"):
            fill(self.backbone, checkpoint, self.base)
        self._label, self._checkpoint, self._blocks, self._block = label, checkpoint, blocks, None

    def holds(self, label: str) -> None:
        """Says that others have put weights into the backbone, under which name messages and `progress` know them."""
        self._label, self._checkpoint, self._blocks, self._block = label, None, NO_BLOCKS, None

    def outputs(self, inputs: Inputs, heads: Sequence[tuple[Task, Head]]) -> Iterator[Outputs]:
        """What each task's head makes of the features of N items, which are encoded once for all tasks without a block
        and once for each block.

        One value a head; or, if maps are among them, one a batch and head: maps are too large to be kept. Raises
        BadFile or BadNumber for outputs that are not finite, NotEnough if half the batch is too much for the device.
        """
        count = len(next(iter(inputs.values())))
        for block, places in passes([task for task, _ in heads], self._blocks).items():
            at_once = self.batch_size if any(heads[place][0].kind in DENSE for place in places) else count
            for start in range(0, count, at_once):
                self._put(block)
                features = self._encoded({name: whole[start : start + at_once] for name, whole in inputs.items()})
                for place in places:
                    yield Outputs(place, start, self._headed(features, *heads[place]), features)
        self._put(None)

    def where(self, task: Task) -> str:
        """What is under way, for messages."""
        return f"checkpoint `{self._label}` on task `{task.name}`"

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Adds the time that is spent inside to one of `PHASES`; on a GPU until its work is done."""
        started = time.perf_counter()
        try:
            yield
        finally:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self.seconds[phase] += time.perf_counter() - started

    def _put(self, block: Checkpoint | None) -> None:
        """Puts a block into the encoder, or the encoder's own tensors where the last one stood."""
        if self._checkpoint is not None and block is not self._block:
            with self.timed("filling"):
                exchange(self.backbone, self._checkpoint, self._block, block)
            self._block = block

    def _encoded(self, inputs: Inputs) -> Tensor:
        """Features; if the device's memory runs out, once more with half the batch, which then stays."""
        before = self.done
        try:
            with self.timed("encoding"):
                return encode(
                    self.backbone.module, inputs, batch_size=self.batch_size, device=self.device, progress=self._count
                )
        except torch.OutOfMemoryError:
            if self._halved or self.batch_size < 2:
                raise self._too_small() from None
        self._halved, self.batch_size, self.done = True, self.batch_size // 2, before
        self.note(f"the device's memory ran out: batches of {self.batch_size} from there on")
        return self._encoded(inputs)

    def _headed(self, features: Tensor, task: Task, head: Head) -> Tensor:
        """A head's outputs, which must be finite."""
        with torch.no_grad(), self.timed("scoring"), self.room(), located(self.where(task)):
            outputs = head(features)
            if not bool(torch.isfinite(outputs).all()):
                raise _not_finite([one for one in (self._checkpoint, self._block) if one is not None])
            return outputs.cpu()

    def _count(self, samples: int) -> None:
        self.done += samples
        self.progress(self.done, self.total, self._label)

    @contextmanager
    def room(self) -> Iterator[None]:
        """Where a device that has too little memory is said to have."""
        try:
            yield
        except torch.OutOfMemoryError:
            raise self._too_small() from None

    def _too_small(self) -> NotEnough:
        what = f"the device has too little memory for batches of {self.batch_size}"
        return NotEnough(what, where="--batch-size", hint="give a smaller one, or --device cpu")


def _not_finite(filled: Sequence[Checkpoint]) -> BadNumber | BadFile:
    """What to say of outputs that are not finite: the tensor of what was filled that is not, or that none is to blame.

    Reads whole checkpoints; without any, others have put the weights there.
    """
    for checkpoint in filled:
        for name, spec in checkpoint.specs.items():
            if is_float(spec.dtype) and not bool(torch.isfinite(checkpoint.tensor(name).float()).all()):
                return BadFile("holds NaN or infinity", where=f"{checkpoint.path}: `{name}`", hint=DAMAGED)
    if not filled:
        hint = "weights, or numbers between them, are damaged or too large: `taskmerge inspect` the experts"
        return BadNumber("outputs hold NaN or infinity", hint=hint)
    hint = "its tensors are finite, so the numbers grow too large in between: is it of this architecture, and trained?"
    return BadNumber("outputs hold NaN or infinity", hint=hint)
