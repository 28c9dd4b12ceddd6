"""One task while the shared encoder learns: its items, its expert's word on them, and what is its own."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from taskmerge.adaptation.objectives import ExpertView, TaskObjective
from taskmerge.adaptation.prefix import Shortened
from taskmerge.adaptation.teachers import Teacher
from taskmerge.data.batches import places
from taskmerge.data.items import Items
from taskmerge.models.adapters import ProbAdapter
from taskmerge.specs.suite import Task
from taskmerge.types import Inputs

SHARD = 8
"""Items that go through the encoder at a time: shards run side by side, and their number depends on the batch alone."""


@dataclass(frozen=True)
class Features:
    """Features [N, D] of all of a task's items under an encoder that does not change."""

    values: Tensor


@dataclass(frozen=True)
class TaskSide:
    """A task: `module` is the encoder it sees (the shared one, or one with a block of its own), `head` and `adapter`
    follow; `own` are those of their parameters that learn, by name. `frozen` features spare the encoder, `short` what
    of it lies below an own block.

    `places` [N] are its training items among `items`.
    """

    task: Task
    items: Items
    places: Tensor
    teacher: Teacher
    objective: TaskObjective
    module: nn.Module
    head: nn.Module
    adapter: nn.Module | None = None
    own: Mapping[str, nn.Parameter] = field(default_factory=dict)
    frozen: Features | None = None
    short: Shortened | None = None
    penalty: float = 0.0

    @property
    def name(self) -> str:
        return self.task.name

    def batch(self, seed: int, iteration: int, batch_size: int) -> Tensor:
        """The places, among all items, of the batch of one iteration."""
        return self.places[places(seed, self.name, iteration, count=len(self.places), batch_size=batch_size)]

    def shards(self, batch: Tensor, processes: int = 1) -> Iterator[Tensor]:
        """The batch in pieces of `SHARD`, smaller ones for more processes; whole where there is no encoder to run."""
        size = min(SHARD, -(-len(batch) // processes))
        yield from torch.split(batch, len(batch) if self.frozen is not None else size)

    def features(self, places: Tensor, device: torch.device) -> Tensor:
        """Features of some items, with a graph where the encoder learns."""
        if self.frozen is not None:
            return self.frozen.values[places].to(device)
        inputs = inputs_at(self.items.inputs, places, device)
        if self.short is not None:
            return self.short.features(inputs, places, device)
        features: Tensor = self.module(inputs)
        return features

    def outputs(self, features: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(features as the head sees them, outputs)."""
        if self.adapter is not None:
            features = (
                self.adapter(features, noise) if isinstance(self.adapter, ProbAdapter) else self.adapter(features)
            )
        outputs: Tensor = self.head(features)
        return features, outputs

    def over(self, items: Items) -> "TaskSide":
        """The same model over other items: of the encoder as it is, for it may be frozen on these."""
        return replace(self, items=items, places=torch.arange(len(items)), frozen=None, short=None)

    def expert(self, places: Tensor, device: torch.device) -> ExpertView:
        """What the expert makes of some items."""
        return self.teacher.view(places, device)


def inputs_at(inputs: Inputs, places: Tensor, device: torch.device) -> Inputs:
    """Some items as a batch; texts are cut to their longest."""
    batch = {name: whole[places] for name, whole in inputs.items()}
    mask = batch.get("attention_mask")
    if mask is not None:
        ends = (mask.ne(0) * torch.arange(1, mask.shape[1] + 1)).amax()
        longest = max(int(ends), 1)
        batch = {name: whole[:, :longest] if whole.dim() > 1 else whole for name, whole in batch.items()}
    return {name: whole.to(device) for name, whole in batch.items()}
