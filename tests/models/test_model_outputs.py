"""The loop of all that looks at outputs: one encoding for all heads, maps by the batch, memory, and who is to blame."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from model_cases import saved
from torch import Tensor, nn

from taskmerge.checkpoint.checkpoint import open_checkpoint
from taskmerge.errors import BadFile, BadNumber, NotEnough
from taskmerge.models.contract import Backbone
from taskmerge.models.outputs import Forward
from taskmerge.specs.suite import Task, TaskKind
from taskmerge.types import Inputs

CPU = torch.device("cpu")
PIXELS = {"pixels": torch.arange(14, dtype=torch.float32).reshape(7, 2)}


class Scale(nn.Module):
    """Features are inputs times a weight; remembers the sizes of its batches, and fails where it is told to."""

    def __init__(self, fails: Callable[[int], bool] = lambda size: False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2), requires_grad=False)
        self.fails, self.sizes = fails, list[int]()

    def forward(self, inputs: Inputs) -> Tensor:
        self.sizes.append(len(inputs["pixels"]))
        if self.fails(len(inputs["pixels"])):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return inputs["pixels"] * self.weight


def forward_of(module: Scale, batch_size: int = 4, **options: Any) -> Forward:
    class Prepare:
        key = "as they are"

        def __call__(self, raw: object) -> Inputs:
            raise AssertionError("nothing is prepared here")

    return Forward(Backbone(module, Prepare(), 2, normalised=False), CPU, batch_size, **options)


def task(name: str, kind: TaskKind = "classification") -> Task:
    return Task(name, None, Path("head"), kind, "accuracy")


def fails_once() -> Callable[[int], bool]:
    waiting = [True]
    return lambda size: bool(waiting and waiting.pop())


def double(features: Tensor) -> Tensor:
    return 2 * features


def test_all_heads_share_one_encoding_of_the_filled_checkpoint(tmp_path: Path) -> None:
    module, told = Scale(), list[tuple[int, int | None, str]]()
    forward = forward_of(module, total=21, progress=lambda *now: told.append(now))
    with open_checkpoint(saved(tmp_path / "a.safetensors", {"weight": torch.tensor([1.0, 3.0])})) as checkpoint:
        forward.fill("mine", checkpoint)
    found = list(forward.outputs(PIXELS, [(task("plain"), lambda features: features), (task("doubled"), double)]))
    assert module.sizes == [4, 3]
    assert [(part.place, part.start) for part in found] == [(0, 0), (1, 0)]
    wanted = PIXELS["pixels"] * torch.tensor([1.0, 3.0])
    assert torch.equal(found[0].values, wanted)
    assert torch.equal(found[1].values, 2 * wanted)
    assert told == [(4, 21, "mine"), (7, 21, "mine")]
    assert (forward.done, forward.where(task("cars"))) == (7, "checkpoint `mine` on task `cars`")
    assert all(forward.seconds[phase] > 0 for phase in ("filling", "encoding", "scoring"))


def test_maps_come_a_batch_at_a_time(tmp_path: Path) -> None:
    module = Scale()
    heads = [(task("plain"), lambda features: features), (task("maps", "depth"), double)]
    seen = []
    for part in forward_of(module).outputs(PIXELS, heads):
        seen.append((part.place, part.start, len(part.values), len(module.sizes)))
        assert torch.equal(part.values, (1 + part.place) * PIXELS["pixels"][part.start : part.start + 4])
    assert seen == [(0, 0, 4, 1), (1, 0, 4, 1), (0, 4, 3, 2), (1, 4, 3, 2)], "the next is encoded when it is asked for"


def test_outputs_are_ordinary_tensors() -> None:
    (part,) = forward_of(Scale()).outputs(PIXELS, [(task("plain"), double)])
    weight = torch.ones(2, requires_grad=True)
    (part.values * weight).sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, part.values.sum(0))


def test_memory_that_runs_out_halves_the_batch_which_then_stays() -> None:
    module, notes, told = Scale(fails_once()), list[str](), list[int]()
    forward = forward_of(module, note=notes.append, progress=lambda done, *_: told.append(done))
    for _ in range(2):
        (part,) = forward.outputs(PIXELS, [(task("plain"), double)])
        assert torch.equal(part.values, 2 * PIXELS["pixels"])
    assert module.sizes == [4, *[2, 2, 2, 1] * 2]
    assert notes == ["the device's memory ran out: batches of 2 from there on"]
    assert (forward.done, told[-1]) == (14, 14), "what was encoded twice counts once"


@pytest.mark.parametrize("batch_size", [1, 4])
def test_memory_that_half_a_batch_exceeds_too_is_an_error(batch_size: int) -> None:
    forward = forward_of(Scale(lambda size: True), batch_size)
    with pytest.raises(NotEnough, match=f"too little memory for batches of {max(batch_size // 2, 1)}") as caught:
        list(forward.outputs(PIXELS, [(task("plain"), double)]))
    assert caught.value.where == "--batch-size"


def test_a_head_that_needs_too_much_memory_is_the_same_error() -> None:
    def greedy(features: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(NotEnough, match="too little memory"):
        list(forward_of(Scale()).outputs(PIXELS, [(task("plain"), greedy)]))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_damaged_checkpoint_is_to_blame_for_its_outputs(tmp_path: Path, value: float) -> None:
    file, forward = saved(tmp_path / "a.safetensors", {"weight": torch.tensor([1.0, value])}), forward_of(Scale())
    with open_checkpoint(file) as checkpoint:
        forward.fill("mine", checkpoint)
        with pytest.raises(BadFile, match="holds NaN or infinity") as caught:
            list(forward.outputs(PIXELS, [(task("plain"), double)]))
    assert caught.value.where == f"{file}: `weight`"


def test_finite_weights_are_not_to_blame(tmp_path: Path) -> None:
    forward = forward_of(Scale())
    with open_checkpoint(saved(tmp_path / "a.safetensors", {"weight": torch.full((2,), 3e38)})) as checkpoint:
        forward.fill("mine", checkpoint)
        with pytest.raises(BadNumber, match="outputs hold NaN or infinity") as caught:
            list(forward.outputs(PIXELS, [(task("cars"), double)]))
    assert caught.value.where == "checkpoint `mine` on task `cars`"
    assert "its tensors are finite" in str(caught.value.hint)


def test_of_weights_that_others_put_there_only_what_is_known_is_said() -> None:
    model = Scale()
    model.weight.data.fill_(float("inf"))
    forward = forward_of(model)
    forward.holds("cart at 1e+30")
    with pytest.raises(BadNumber, match="outputs hold NaN or infinity") as caught:
        list(forward.outputs(PIXELS, [(task("cars"), double)]))
    assert caught.value.where == "checkpoint `cart at 1e+30` on task `cars`"
    assert "its tensors are finite" not in str(caught.value.hint)
