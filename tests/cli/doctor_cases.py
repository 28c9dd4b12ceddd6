"""Experts, a base and what can be wrong with them: each trouble changes files the way real ones are odd."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from merge_cases import load, model, save
from torch import Tensor

from taskmerge.checkpoint.dtypes import DTYPES

CONFIG = {"model_type": "tiny", "hidden_size": 8, "num_attention_heads": 2, "rope_theta": 10000.0}


@dataclass
class World:
    """Models in a folder, as single files or as model folders, and what `merge` and `doctor` are told of them."""

    home: Path
    chance: random.Random
    folders: bool
    based: bool = True
    tasks: tuple[str, ...] = ("cars", "dogs", "maps")
    more: list[str] = field(default_factory=list)

    def path(self, name: str) -> Path:
        return self.home / name if self.folders else self.home / f"{name}.safetensors"

    def weights(self, name: str) -> Path:
        return self.path(name) / "model.safetensors" if self.folders else self.path(name)

    def change(self, name: str, **tensors: Tensor) -> None:
        """Puts tensors in; `a__b` stands for `a.b`."""
        self.put(name, {**load(self.weights(name)), **{key.replace("__", "."): one for key, one in tensors.items()}})

    def put(self, name: str, tensors: dict[str, Tensor]) -> None:
        save(self.weights(name), tensors)

    def some(self) -> str:
        return self.chance.choice(self.tasks)

    def noise(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(self.chance.randrange(10**6)))

    def config(self, name: str, **entries: object) -> None:
        if self.folders:
            (self.path(name) / "config.json").write_text(json.dumps({**CONFIG, **entries}))

    @property
    def names(self) -> tuple[str, ...]:
        return ("base", *self.tasks) if self.based else self.tasks

    @property
    def arguments(self) -> list[str]:
        """Relative to the folder that they lie in."""
        base = ["--base", self.path("base").name] if self.based else []
        return [*base, *(self.path(task).name for task in self.tasks), *self.more]


def world(home: Path, seed: int) -> World:
    """Three fine-tunings of a base, which is known or not."""
    chance = random.Random(seed)
    found = World(home, chance, folders=chance.random() < 0.5, based=chance.random() < 0.7)
    origin = model(0)
    for index, name in enumerate(("base", *found.tasks)):
        if name in found.names:
            found.put(name, model(index, near=origin) if index else origin)
            found.config(name)
    return found


# --- troubles --------------------------------------------------------------------------------------------------


def nothing(world: World) -> None:
    """No trouble."""


def heads_of_other_sizes(world: World) -> None:
    for task, rows in zip(world.tasks, world.chance.sample(range(2, 9), 3), strict=True):
        world.change(task, classifier__weight=world.noise(rows, 8), classifier__bias=world.noise(rows))


def heads_of_one_size(world: World) -> None:
    for task in world.tasks:
        world.change(task, classifier__weight=world.noise(3, 8), classifier__bias=world.noise(3))


def a_larger_vocabulary(world: World) -> None:
    world.change(world.some(), embed__weight=world.noise(9, 8))


def a_missing_tensor(world: World) -> None:
    task = world.some()
    name = world.chance.choice(("norm.weight", "proj", "blocks.1.mlp.fc.bias"))
    world.put(task, {key: one for key, one in load(world.weights(task)).items() if key != name})


def what_only_the_base_has(world: World) -> None:
    if world.based:
        world.change("base", text__proj=world.noise(4, 4))


def a_prefix(world: World) -> None:
    for task in world.tasks:
        world.put(task, {f"net.{name}": one for name, one in load(world.weights(task)).items()})


def other_names(world: World) -> None:
    task = world.some()
    tensors = load(world.weights(task))
    world.put(task, {name.replace("blocks.", "stages."): one for name, one in tensors.items()})


def a_coarser_type(world: World) -> None:
    for task in world.chance.sample(world.tasks, 2):
        world.put(task, {name: one.bfloat16() for name, one in load(world.weights(task)).items()})


def buffers_that_differ(world: World) -> None:
    for place, task in enumerate(world.tasks):
        world.change(task, ids=torch.tensor([1, 2, place]))
    if world.based:
        world.change("base", ids=torch.tensor([1, 2, 0]))


def counters(world: World) -> None:
    for name in world.names:
        world.change(name, bn__num_batches_tracked=torch.tensor(world.chance.randrange(100)))


def a_value_that_is_none(world: World) -> None:
    task, value = world.some(), world.chance.choice((float("nan"), float("inf"), -float("inf")))
    bias = load(world.weights(task)).get("blocks.0.mlp.fc.bias", torch.zeros(16)).clone()
    bias[world.chance.randrange(16)] = value
    world.change(task, blocks__0__mlp__fc__bias=bias)


def a_file_that_was_cut(world: World) -> None:
    path = world.weights(world.some())
    path.write_bytes(path.read_bytes()[: -world.chance.randint(1, 200)])


def configurations_that_differ(world: World) -> None:
    world.config(world.some(), rope_theta=500000.0)


def tokenizers_that_differ(world: World) -> None:
    for task in world.tasks if world.folders else ():
        (world.path(task) / "tokenizer.json").write_text(json.dumps({"of": world.chance.choice("abc")}))


def other_ends_of_text(world: World) -> None:
    for task in world.tasks:
        world.config(task, eos_token_id=world.chance.choice((1, 2)))


def quantised(world: World) -> None:
    task = world.some()
    packed = torch.randint(0, 255, (8, 4), dtype=torch.uint8)
    world.change(task, blocks__0__mlp__fc__weight_packed=packed, blocks__0__mlp__fc__weight_scale=world.noise(8, 1))


def a_stranger(world: World) -> None:
    world.put(world.some(), model(world.chance.randrange(1000, 2000)))


def twins(world: World) -> None:
    one, other = world.chance.sample(world.tasks, 2)
    world.put(one, load(world.weights(other)))


def the_base_itself(world: World) -> None:
    if world.based:
        world.put(world.some(), load(world.weights("base")))


def a_lora(world: World) -> None:
    """A peft adapter beside whole experts."""
    adapter = world.home / "lora"
    name = world.chance.choice(("blocks.0.mlp.fc", "blocks.1.mlp.fc"))
    pair = {"lora_A": world.noise(2, 8), "lora_B": 0.1 * world.noise(16, 2)}
    if world.chance.random() < 0.3:
        name = "elsewhere.fc"
    save(
        adapter / "adapter_model.safetensors",
        {f"base_model.model.{name}.{side}.weight": one for side, one in pair.items()},
    )
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "org/base"}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    world.more.append("lora")


def plain_fp8(world: World) -> None:
    """Weights that were cast, without scales."""
    task = world.some()
    tensors = {name: 0.1 * one for name, one in load(world.weights(task)).items()}
    world.put(task, {name: one.to(DTYPES["F8_E4M3"]) if one.dim() > 1 else one for name, one in tensors.items()})


Trouble = Callable[[World], None]
TROUBLES: tuple[Trouble, ...] = (
    nothing, heads_of_other_sizes, heads_of_one_size, a_larger_vocabulary, a_missing_tensor, what_only_the_base_has,
    a_prefix, other_names, a_coarser_type, buffers_that_differ, counters, a_value_that_is_none, a_file_that_was_cut,
    configurations_that_differ, tokenizers_that_differ, other_ends_of_text, quantised, a_stranger, twins,
    the_base_itself, a_lora, plain_fp8,
)  # fmt: skip
