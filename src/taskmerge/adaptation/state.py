"""Everything that an update changes: the values of the learnables, Adam's moments, the update's number."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from taskmerge.checkpoint.small_files import write_small
from taskmerge.documents import open_regular, parse_json
from taskmerge.errors import BadFile

FILE = "state.safetensors"
VALUE, MEAN, SQUARE, STEPS = "value:", "mean:", "square:", "steps:"
BETAS = (0.9, 0.999)


@dataclass(frozen=True)
class AdaptState:
    """A snapshot: `values` by name, Adam's `means`, `squares` and `steps` of those that have moved, and how many
    updates have been made. `counts` are the run's tallies (skipped updates, flips)."""

    update: int
    values: Mapping[str, Tensor]
    means: Mapping[str, Tensor] = field(default_factory=dict)
    squares: Mapping[str, Tensor] = field(default_factory=dict)
    steps: Mapping[str, Tensor] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)


class Optimised:
    """The learnables under one Adam: no weight decay, one learning rate a group, nothing that an update leaves out
    moves."""

    def __init__(self, groups: Mapping[str, Mapping[str, nn.Parameter]], rates: Mapping[str, float]) -> None:
        self.values = {name: value for group in groups.values() for name, value in group.items()}
        learnt = [
            {"params": [value for value in group.values() if value.requires_grad], "lr": rates.get(kind, 0.0)}
            for kind, group in groups.items()
        ]
        given = [group for group in learnt if group["params"]]
        self._adam = torch.optim.Adam(given, betas=BETAS) if given else None

    def clear(self) -> None:
        """Forgets gradients."""
        for value in self.values.values():
            value.grad = None

    def finite(self) -> bool:
        """Whether all gradients are finite."""
        return all(bool(torch.isfinite(value.grad).all()) for value in self.values.values() if value.grad is not None)

    def step(self) -> None:
        """One step of Adam on everything that has a gradient."""
        if self._adam is not None:
            self._adam.step()

    def snapshot(self, update: int, counts: Mapping[str, int]) -> AdaptState:
        """Copies of everything."""
        moments = {
            name: self._adam.state[value] for name, value in self.values.items()
            if self._adam is not None and value in self._adam.state
        }  # fmt: skip
        return AdaptState(
            update,
            {name: value.detach().clone() for name, value in self.values.items()},
            {name: own["exp_avg"].clone() for name, own in moments.items()},
            {name: own["exp_avg_sq"].clone() for name, own in moments.items()},
            {name: torch.as_tensor(own["step"]).clone() for name, own in moments.items()},
            dict(counts),
        )

    def misfit(self, state: AdaptState) -> str | None:
        """What keeps a snapshot from being one of these learnables, in words; None where it is one."""
        if state.values.keys() != self.values.keys():
            strange = sorted(state.values.keys() ^ self.values.keys())
            return f"it holds {len(state.values)} values, not {len(self.values)} ({strange[0]})"
        if not state.means.keys() == state.squares.keys() == state.steps.keys() <= self.values.keys():
            return "its moments are not those of its values"
        for kind in (state.values, state.means, state.squares):
            for name, tensor in kind.items():
                if tensor.shape != self.values[name].shape or tensor.dtype != self.values[name].dtype:
                    return f"`{name}` is {tensor.dtype} {list(tensor.shape)}"
                if not bool(torch.isfinite(tensor).all()):
                    return f"`{name}` holds NaN or infinity"
        return None

    def restore(self, state: AdaptState) -> None:
        """Back to a snapshot of these learnables."""
        with torch.no_grad():
            for name, value in self.values.items():
                value.copy_(state.values[name])
        if self._adam is None:
            return
        self._adam.state.clear()
        for name, mean in state.means.items():
            self._adam.state[self.values[name]] = {
                "step": state.steps[name].clone(),
                "exp_avg": mean.clone(),
                "exp_avg_sq": state.squares[name].clone(),
            }


def save_state(state: AdaptState, folder: Path, about: Mapping[str, object]) -> None:
    """Writes a snapshot and what it belongs to (`about`: plain values) into a folder, whole or not at all."""
    tensors = {
        prefix + name: tensor.detach().cpu().contiguous()
        for prefix, own in _kinds(state)
        for name, tensor in own.items()
    }
    record = {"update": state.update, "counts": dict(state.counts), "about": dict(about)}
    folder.mkdir(parents=True, exist_ok=True)
    write_small(folder / FILE, save(tensors, {"taskmerge": json.dumps(record, sort_keys=True)}))


def open_kept(path: Path) -> int:
    """Opens a file that a run has kept to be continued from. Raises BadFile for what is no regular file."""
    try:
        return open_regular(path)
    except BadFile as error:
        raise BadFile(error.what, where=error.where, hint="start again with --overwrite") from None


def load_state(folder: Path) -> tuple[AdaptState, dict[str, object]]:
    """A snapshot and what it belongs to. Raises BadFile for what is no such file."""
    path = folder / FILE
    os.close(open_kept(path))  # a pipe would be waited for
    try:
        with safe_open(path, framework="pt") as file:
            record = parse_json((file.metadata() or {})["taskmerge"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no mapping
        values, means, squares, steps = (_of(tensors, prefix) for prefix in (VALUE, MEAN, SQUARE, STEPS))
        counts = {str(name): int(count) for name, count in record["counts"].items()}
        state = AdaptState(int(record["update"]), values, means, squares, steps, counts)
        if state.update < 0:
            raise ValueError(f"update {state.update}")
        return state, dict(record["about"])
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        hint = "start again with --overwrite"
        raise BadFile(f"is no saved state: {error}", where=str(path), hint=hint) from None


def _kinds(state: AdaptState) -> Sequence[tuple[str, Mapping[str, Tensor]]]:
    return ((VALUE, state.values), (MEAN, state.means), (SQUARE, state.squares), (STEPS, state.steps))


def _of(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
