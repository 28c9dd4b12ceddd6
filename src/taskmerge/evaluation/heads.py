"""Which head follows which encoder: the suite's, an adapted folder's own, or someone else's; each is loaded once."""

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from taskmerge.checkpoint.checkpoint import Checkpoint, open_plain
from taskmerge.checkpoint.hub import resolve
from taskmerge.errors import BadFile
from taskmerge.evaluation.checkpoints import Encoder
from taskmerge.models.contract import Backbone, Head
from taskmerge.models.heads import load_head
from taskmerge.specs.suite import Location, Suite, Task
from taskmerge.types import Note, unheard


@dataclass
class Heads:
    """The heads of one suite's tasks, on a device. `folder` replaces all of them; `note` hears what is odd.

    `base` is the suite's, opened here: it has the text tower that zero-shot heads come from, and completes experts.
    """

    suite: Suite
    backbone: Backbone
    device: torch.device
    stack: ExitStack
    folder: Path | None = None
    allow_pickle: bool = False
    note: Note = unheard
    base: Checkpoint | None = field(init=False, default=None)
    _loaded: dict[tuple[Path | None, str], Head] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.suite.base is not None:
            self.base = self._opened(self.suite.base)

    def load(self, encoders: Iterable[Encoder]) -> None:
        """Every head that will be used, before any data is read: what does not fit is said at once."""
        for encoder in encoders:
            for task in self.suite.tasks:
                if encoder.scored_on(task):
                    self.of(encoder, task)

    def of(self, encoder: Encoder, task: Task) -> Head:
        """The head that follows `encoder` on `task`. Raises what `load_head` raises, BadFile for a missing file."""
        folder = self._folder(encoder, task)
        key = (folder, task.name)
        if key not in self._loaded:
            self._loaded[key] = self._read(task if folder is None else replace(task, head=_file(folder, task)))
        return self._loaded[key]

    def _folder(self, encoder: Encoder, task: Task) -> Path | None:
        """The folder that the head comes from, None for the suite's own."""
        if self.folder is not None or encoder.heads is None:
            return self.folder
        if _path(encoder.heads, task).is_file():
            return encoder.heads
        self.note(f"{encoder.row} has no head of its own for `{task.name}`: the suite's is used")
        return None

    def _read(self, task: Task) -> Head:
        own = task.expert if task.head == "expert" else None
        expert = None if own is None else self._opened(own)
        head = load_head(task, self.backbone, resolve=resolve, base=self.base, expert=expert)
        return head.to(self.device) if isinstance(head, nn.Module) else head

    def _opened(self, location: Location) -> Checkpoint:
        return self.stack.enter_context(open_plain(resolve(location), allow_pickle=self.allow_pickle))


def _path(folder: Path, task: Task) -> Path:
    return folder / f"{task.name}.safetensors"


def _file(folder: Path, task: Task) -> Path:
    file = _path(folder, task)
    if not folder.is_dir():
        what = "is a file, not a folder of heads" if folder.exists() else "there is no such folder of heads"
        raise BadFile(what, where=str(folder), hint=f"name the folder that holds {file.name}")
    if not file.is_file():
        hint = f"put {file.name} there, or choose tasks with --tasks"
        raise BadFile(f"has no head for task `{task.name}`", where=str(folder), hint=hint)
    return file
