"""Which head follows which encoder: the suite's, an adapted folder's own, or someone else's; each is loaded once.

Between an adapted folder's encoder and a head stands the task's adapter, if the folder has one.
"""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from taskmerge.checkpoint.adapted import Part
from taskmerge.checkpoint.checkpoint import Checkpoint, open_plain
from taskmerge.checkpoint.hub import resolve
from taskmerge.errors import BadFile
from taskmerge.evaluation.checkpoints import Encoder
from taskmerge.models.adapters import Adapted, read_adapter
from taskmerge.models.contract import Backbone, Head
from taskmerge.models.heads import load_head
from taskmerge.specs.suite import Location, Suite, Task
from taskmerge.types import Note, unheard

WITHOUT: Mapping[Part, str] = {
    "heads": "no head of its own for `{}`: the suite's is used",
    "adapters": "no adapter for `{}`: its features stay as they are",
    "blocks": "no block of its own for `{}`: the shared encoder is used",
}
"""What happens on a task that an adapted folder has no file for, in a part that it has for others."""


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
    _files: list[Checkpoint] = field(init=False, default_factory=list)
    _loaded: dict[tuple[Path | None, str], Head] = field(init=False, default_factory=dict)
    _following: dict[tuple[str, str], Head] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        if self.suite.base is not None:
            self.base = self._opened(self.suite.base)

    def load(self, encoders: Iterable[Encoder]) -> None:
        """Every head that will be used, before any data is read: what does not fit is said at once."""
        for encoder in encoders:
            for task in self.suite.tasks:
                if encoder.scored_on(task):
                    self._note_missing(encoder, task)
                    self.of(encoder, task)

    def of(self, encoder: Encoder, task: Task) -> Head:
        """What follows `encoder` on `task`. Raises as `load_head` and `read_adapter`; BadFile for a missing file."""
        key = (encoder.row, task.name)
        if key not in self._following:
            head = self._head(encoder, task)
            file = encoder.folder.file("adapters", task.name) if encoder.folder else None
            adapter = None if file is None else read_adapter(file, self.backbone.width).to(self.device)
            self._following[key] = head if adapter is None else Adapted(adapter, head)
        return self._following[key]

    def check_unchanged(self, encoders: Iterable[Encoder]) -> None:
        """Raises BadFile where a file of the encoders, of what heads were made from, or the base was rewritten since it
        was opened; to be asked after the last read."""
        for encoder in encoders:
            encoder.check_unchanged()
        for file in self._files:
            file.check_unchanged()

    def _head(self, encoder: Encoder, task: Task) -> Head:
        own = encoder.folder.file("heads", task.name) if encoder.folder else None
        file = own if self.folder is None else _file(self.folder, task)
        key = (file, task.name)
        if key not in self._loaded:
            self._loaded[key] = self._read(task if file is None else replace(task, head=file))
        return self._loaded[key]

    def _note_missing(self, encoder: Encoder, task: Task) -> None:
        for part, words in WITHOUT.items():
            if encoder.folder is None or (part == "heads" and self.folder is not None):
                continue
            if encoder.folder.place(part) and not encoder.folder.file(part, task.name):
                self.note(f"{encoder.row} has {words.format(task.name)}")

    def _read(self, task: Task) -> Head:
        own = task.expert if task.head == "expert" else None
        expert = None if own is None else self._opened(own)
        head = load_head(task, self.backbone, resolve=resolve, base=self.base, expert=expert)
        return head.to(self.device) if isinstance(head, nn.Module) else head

    def _opened(self, location: Location) -> Checkpoint:
        file = self.stack.enter_context(open_plain(resolve(location), allow_pickle=self.allow_pickle))
        self._files.append(file)
        return file


def _file(folder: Path, task: Task) -> Path:
    file = folder / f"{task.name}.safetensors"
    if not folder.is_dir():
        what = "is a file, not a folder of heads" if folder.exists() else "there is no such folder of heads"
        raise BadFile(what, where=str(folder), hint=f"name the folder that holds {file.name}")
    if not file.is_file():
        hint = f"put {file.name} there, or choose tasks with --tasks"
        raise BadFile(f"has no head for task `{task.name}`", where=str(folder), hint=hint)
    return file
