"""A run of `adapt` on a small suite beside its formula, from one set of values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from adaptation_cases import Assembled, State
from naive import Answer, Form, Merged, answer, task_loss
from torch import Tensor

from taskmerge.adaptation.tasks import inputs_at
from taskmerge.seeds import uniform_at

MASKS = ("masks/", "relaxed/")
WRAPPERS = {"clip": "", "bert": "bert.", "gpt2": "transformer."}


@dataclass(frozen=True)
class Case:
    """A method on a model: the keywords of `adapt`, and the formula."""

    method: str
    form: Form
    options: Mapping[str, Any] = field(default_factory=dict)
    model: str = "clip"
    train: tuple[str, ...] = ()

    def __str__(self) -> str:
        said = "_".join(f"{name}={value}" for name, value in {**self.options, "train": self.train}.items() if value)
        return "-".join(part for part in (self.method, said, self.model if self.model != "clip" else "") if part)


@dataclass(frozen=True)
class Both:
    """A run, and its formula."""

    found: Assembled
    merged: Merged

    def values(self) -> State:
        """All that may be learnt, by the loop's names, as leaves of a new graph."""
        return {
            name: value.detach().clone().requires_grad_(value.requires_grad)
            for name, value in self.found.run.optimised.values.items()
        }

    def answers(self, values: State, update: int = 0) -> dict[str, tuple[Answer, Answer]]:
        """What the model, as a graph of the values, and the expert make of each task's batch of one update."""
        run, answers = self.found.run, {}
        logits = {name.partition("/")[2]: value for name, value in values.items() if name.startswith(MASKS)}
        uniform = {
            name: uniform_at(run.horizon.seed, f"relaxed/{name}", f"update {update}", 0, len(own)).double()
            for name, own in logits.items()
        }
        shared = self.merged.weights(values["coefficients"], logits, uniform)
        iteration, turn = run.horizon.turn(update, run.sides)
        for side in turn:
            places = side.batch(run.horizon.seed, iteration, run.horizon.batch_size)
            inputs = inputs_at(side.items.inputs, places, torch.device("cpu"))
            ours = self._answer(side.name, {**shared, **own(values, side.name, "block")}, inputs, values)
            answers[side.name] = ours, self._answer(side.name, self.merged.expert(side.name), inputs, {})
        return answers

    def loss(
        self, answers: Mapping[str, tuple[Answer, Answer]], objective: str, on: str, filter_: str
    ) -> Tensor | None:
        """Σ over tasks of the mean over kept items; None where no item of any task is kept."""
        losses = [task_loss(objective, on, filter_, *both) for both in answers.values()]
        kept = [loss for loss in losses if loss is not None]
        return torch.stack(kept).sum() if kept else None

    def _answer(self, task: str, weights: State, inputs: State, values: State) -> Answer:
        """The task's model; without values its expert, with the original head."""
        opened = next(one for one in self.found.opened.tasks if one.task.name == task)
        head = {name: tensor.detach() for name, tensor in opened.head.state_dict().items()}
        head = {**head, **own(values, task, "head")}
        normalise = self.found.place.backbone.normalised
        adapter = own(values, task, "adapter") or None
        with torch.set_grad_enabled(bool(values)):
            return answer(self.found.module, weights, inputs, head, normalise=normalise, adapter=adapter)


def own(values: State, task: str, kind: str) -> State:
    """A task's own parameters of one kind."""
    start = f"tasks/{task}/{kind}/"
    return {name.removeprefix(start): value for name, value in values.items() if name.startswith(start)}
