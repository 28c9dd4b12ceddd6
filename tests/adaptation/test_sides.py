"""What every task has of its own: a block of the encoder, a head that starts somewhere, items that are held out."""

from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torchvision
from adaptation_cases import ITEMS, TASKS, Assembled, assembled, clip_suite
from safetensors.torch import load_file
from torch import Tensor, nn

from taskmerge.adaptation.sides import block_names, training_places
from taskmerge.adaptation.weights import with_own
from taskmerge.errors import UsageError
from taskmerge.specs.adapt import AdaptSpec
from taskmerge.specs.suite import Suite

TEXT_TOWER: dict[str, Any] = {"context_length": 8, "vocab_size": 16, "width": 16, "heads": 2, "layers": 1}


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    return clip_suite(tmp_path_factory.mktemp("sides"))


# --- blocks ------------------------------------------------------------------------------------------------------


class Blocks(nn.Module):
    """So many numbered blocks in each of its towers, and parameters outside."""

    def __init__(self, *towers: int) -> None:
        super().__init__()
        self.stem = nn.Linear(2, 2)
        for number, count in enumerate(towers):
            blocks = nn.ModuleList(nn.ModuleDict({"mlp": nn.Linear(2, 2)}) for _ in range(count))
            setattr(self, f"tower{number}", nn.ModuleDict({"blocks": blocks}))


def indices(module: nn.Module, layer: str) -> set[str]:
    return {name.partition(".mlp")[0] for name in block_names(module, layer)}


@pytest.mark.parametrize(("layer", "wanted"), [
    ("0", {0}), ("4", {4}), ("first", {0}), ("middle", {2}), ("last", {4}), ("early", {0, 1}), ("late", {2, 3, 4}),
    ("all", {0, 1, 2, 3, 4}),
])  # fmt: skip
def test_the_blocks_of_a_tower(layer: str, wanted: set[int]) -> None:
    assert indices(Blocks(5), layer) == {f"tower0.blocks.{index}" for index in wanted}
    names = block_names(Blocks(5), layer)
    assert len(names) == 2 * len(wanted)  # a weight and a bias each


def test_every_word_works_for_any_number_of_blocks() -> None:
    for count in range(1, 8):
        module = Blocks(count)
        assert indices(module, "first") == {"tower0.blocks.0"}
        assert indices(module, "last") == {f"tower0.blocks.{count - 1}"}
        assert len(indices(module, "middle")) == 1
        assert indices(module, "all") == {f"tower0.blocks.{index}" for index in range(count)}
        late = indices(module, "late")
        early = indices(module, "all") - late
        if count > 1:
            assert indices(module, "early") == early


@pytest.mark.parametrize(("module", "layer"), [
    (Blocks(), "first"), (Blocks(), "0"), (Blocks(3), "3"), (Blocks(3), "99"), (Blocks(1), "early"),
])  # fmt: skip
def test_no_such_block_is_wrong_usage(module: nn.Module, layer: str) -> None:
    with pytest.raises(UsageError) as error:
        block_names(module, layer)
    assert error.value.exit_code == 2
    assert error.value.where == "--layer"
    assert error.value.hint


def test_two_towers_have_their_own_numbers() -> None:
    assert indices(Blocks(3, 3), "1") == {"tower0.blocks.1", "tower1.blocks.1"}


class Stages(nn.Module):
    """So many blocks in each of the stages `layer1`, `layer2` ..., as ResNets have them, and a stem of three layers."""

    def __init__(self, *stages: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Linear(2, 2), nn.Linear(2, 2)
        for number, count in enumerate(stages, start=1):
            blocks = nn.Sequential(*(nn.ModuleDict({"mlp": nn.Linear(2, 2)}) for _ in range(count)))
            setattr(self, f"layer{number}", blocks)


@pytest.mark.parametrize(("layer", "wanted"), [
    ("0", ["layer1.0"]), ("2", ["layer2.0"]), ("4", ["layer2.2"]), ("first", ["layer1.0"]), ("last", ["layer3.0"]),
    ("middle", ["layer2.1"]), ("early", ["layer1.0", "layer1.1", "layer2.0"]),
    ("late", ["layer2.1", "layer2.2", "layer3.0"]),
    ("all", ["layer1.0", "layer1.1", "layer2.0", "layer2.1", "layer2.2", "layer3.0"]),
])  # fmt: skip
def test_stages_are_one_sequence(layer: str, wanted: list[str]) -> None:
    assert sorted(indices(Stages(2, 3, 1), layer)) == wanted


def test_the_tenth_stage_comes_after_the_ninth() -> None:
    assert indices(Stages(*[1] * 11), "last") == {"layer11.0"}
    with pytest.raises(UsageError) as error:
        block_names(Stages(2, 3, 1), "6")
    assert error.value.hint == "give 0 to 5"


@pytest.mark.parametrize(("layer", "wanted"), [("first", "layer1.0."), ("5", "layer2.2."), ("last", "layer4.2.")])
def test_real_resnets(layer: str, wanted: str) -> None:
    clip: Any = open_clip.CLIP(8, {"layers": [3, 4, 6, 3], "width": 8, "image_size": 32}, TEXT_TOWER)
    for module in (clip.visual, torchvision.models.resnet50()):
        names = block_names(module, layer)
        assert names
        assert all(name.startswith(wanted) for name in names)


def test_a_module_with_parameters_of_its_own_shares_all_others() -> None:
    module = Blocks(2)
    module.register_buffer("counter", torch.zeros(3))
    mine = nn.Parameter(torch.ones(2, 2))
    copy = with_own(module, {"tower0.blocks.1.mlp.weight": mine})
    own, shared = dict(copy.named_parameters()), dict(module.named_parameters())
    assert own["tower0.blocks.1.mlp.weight"] is mine
    assert all(own[name] is shared[name] for name in own if name != "tower0.blocks.1.mlp.weight")
    assert copy.counter is module.counter
    assert shared["tower0.blocks.1.mlp.weight"] is not mine


def test_a_block_follows_the_shared_weights_around_it(suite: Suite, tmp_path: Path) -> None:
    """The task's encoder has its own block, and every other tensor as it is formed."""
    found = assembled(suite, tmp_path / "out", method="symerge", layer="1")
    run, side = found.run, found.run.sides[0]
    assert set(side.own) == {f"block/{name}" for name in block_names(found.module, "1")}
    with torch.no_grad():
        before = side.features(torch.arange(3), torch.device("cpu"))
        run.on_weights.values["coefficients"].add_(0.1)
        run.form()
        after = side.features(torch.arange(3), torch.device("cpu"))
    assert not torch.equal(before, after)
    shared = dict(found.module.named_parameters())
    for name, parameter in side.module.named_parameters():
        assert (parameter is shared[name]) == (f"block/{name}" not in side.own)


# --- heads -----------------------------------------------------------------------------------------------------


def heads(found: Assembled) -> dict[str, Tensor]:
    return {side.name: side.head.weight.detach() for side in found.run.sides}  # type: ignore[union-attr, operator]  # linear ones


def originals(suite: Suite) -> dict[str, Tensor]:
    return {task: load_file(suite.folder / f"head_{task}.safetensors")["weight"] for task in TASKS}


def test_given_heads_are_copies(suite: Suite, tmp_path: Path) -> None:
    """What learns is not what the teacher was asked with."""
    found = assembled(suite, tmp_path / "out", method="tint")
    for task, head in heads(found).items():
        assert torch.equal(head, originals(suite)[task])
    for side, opened in zip(found.run.sides, found.opened.tasks, strict=True):
        assert side.head is not opened.head
        assert all(parameter.requires_grad for parameter in side.head.parameters())
        assert not any(parameter.requires_grad for parameter in opened.head.parameters())


def test_random_heads_are_a_function_of_seed_and_task_and_as_long_as_the_given_ones(
    suite: Suite, tmp_path: Path
) -> None:
    def random(seed: int) -> dict[str, Tensor]:
        options: dict[str, Any] = {"heads_start": "random", "seed": seed, "overwrite": True}
        return heads(assembled(suite, tmp_path / "out", method="tint", **options))

    one, again, other = random(0), random(0), random(1)
    for task, original in originals(suite).items():
        assert torch.equal(one[task], again[task])
        assert not torch.equal(one[task], other[task])
        assert not torch.equal(one[task], original)
        assert float(one[task].norm()) == pytest.approx(float(original.norm()), rel=1e-6)


def test_heads_that_do_not_learn_have_no_gradient(suite: Suite, tmp_path: Path) -> None:
    found = assembled(suite, tmp_path / "out", method="tint", train=("coefficients",))
    assert not any(side.own for side in found.run.sides)
    assert not any(parameter.requires_grad for side in found.run.sides for parameter in side.head.parameters())


# --- items -----------------------------------------------------------------------------------------------------


def test_held_out_items_are_no_training_items(suite: Suite, tmp_path: Path) -> None:
    found = assembled(suite, tmp_path / "out", method="adamerging", stop="agreement", held_out=0.3)
    for opened, side in zip(found.opened.tasks, found.run.sides, strict=True):
        train, held = training_places(opened, AdaptSpec(stop="agreement", held_out=0.3))
        assert len(held) == int(0.3 * ITEMS)
        assert sorted([*train.tolist(), *held.tolist()]) == list(range(ITEMS))
        assert torch.equal(train, train.sort().values)
        assert torch.equal(held, held.sort().values)
        assert torch.equal(side.places, train)
        seen = torch.cat([side.batch(0, iteration, 7) for iteration in range(6)])
        assert set(seen.tolist()) == set(train.tolist())
    others = [
        training_places(opened, AdaptSpec(stop="agreement", held_out=0.3, seed=1))[1] for opened in found.opened.tasks
    ]
    assert any(not torch.equal(one, training_places(opened, AdaptSpec(stop="agreement", held_out=0.3))[1])
               for one, opened in zip(others, found.opened.tasks, strict=True))  # fmt: skip


def test_without_a_stop_all_items_train(suite: Suite, tmp_path: Path) -> None:
    found = assembled(suite, tmp_path / "out", method="adamerging")
    assert all(torch.equal(side.places, torch.arange(ITEMS)) for side in found.run.sides)


@pytest.mark.parametrize("share", [0.01, 0.999])
def test_nothing_to_hold_out_is_wrong_usage(suite: Suite, tmp_path: Path, share: float) -> None:
    options = {"stop": "agreement", "held_out": share, "limit": 3 if share < 0.5 else None, "batch_size": 1}
    if share > 0.5:
        options["held_out"] = 0.96  # 19 of 20: one is left
        assembled(suite, tmp_path / "out", method="adamerging", **options)
        return
    with pytest.raises(UsageError, match="leave nothing to hold out") as error:
        assembled(suite, tmp_path / "out", method="adamerging", **options)
    assert error.value.exit_code == 2


def test_a_batch_of_more_than_there_is_is_wrong_usage(suite: Suite, tmp_path: Path) -> None:
    for options in ({"batch_size": ITEMS + 1}, {"batch_size": ITEMS, "stop": "agreement"}):
        with pytest.raises(UsageError, match="a batch of") as error:
            assembled(suite, tmp_path / "out", method="adamerging", **options)
        assert error.value.exit_code == 2
        assert error.value.where == "--batch-size"
    assembled(suite, tmp_path / "out", method="adamerging", batch_size=ITEMS + 1, iterations=0)
