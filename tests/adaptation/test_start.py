"""Before the first update a method is the training-free one that it generalises (E14), live and as it is written."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from adaptation_cases import TASKS, State, adapt, assembled, clip_suite, text_suite
from safetensors.torch import load_file

import taskmerge
from taskmerge.methods.adaptive_registry import adaptive_methods
from taskmerge.specs.suite import Suite
from taskmerge.workflows.adapt_request import INIT

TOLERANCE = 2e-6
TIES = {"aggregate": "sum", "threshold": "next", "coefficient": 0.3}


@dataclass(frozen=True)
class Pair:
    """An adaptive method and the training-free one that it starts as, each with its options."""

    method: str
    static: str
    options: dict[str, Any] = field(default_factory=dict)
    static_options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        said = "_".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.method}{'-' + said if said else ''}-{self.static}"


TA = {"coefficient": 0.3}
LEFT = ("visual.conv1.*", "visual.class_embedding")
"""What the base lends: of other tensors the encoder would be incomplete."""
SEARCHED = {"rank": 0.16, "coefficient": 2.3}
"""What AdaRank's authors start from."""
PAIRS = (
    Pair("adamerging", "task_arithmetic", {}, TA),
    Pair("adamerging", "task_arithmetic", {"layout": "task", "coefficient": 0.7}, {"coefficient": 0.7}),
    Pair("adamerging", "task_arithmetic", {"parity": True}, TA),
    Pair("adamerging", "average", {"origin": "mean"}),
    Pair("adamerging", "task_arithmetic", {"exclude": LEFT}, {**TA, "exclude": LEFT}),
    Pair("adamerging_plus", "ties", {}, {**TIES, "density": 0.2}),
    Pair("adamerging_plus", "ties", {"density": 0.5}, {**TIES, "density": 0.5}),
    Pair("cart_plus", "cart"),
    Pair("cart_plus", "cart", {"rank": 0.3, "coefficient": 1.7}, {"rank": 0.3, "coefficient": 1.7}),
    Pair("cart_plus", "cart", {"rank": 0.3, "qkv": "split"}, {"rank": 0.3, "qkv": "split"}),
    Pair("cart_plus", "truncated_task_arithmetic", {"rank": 0.3, "origin": "base"}, {**TA, "rank": 0.3}),
    Pair("adarank", "task_arithmetic", {}, TA),
    Pair("adarank", "truncated_task_arithmetic", {"rank": 0.2}, {**TA, "rank": 0.2}),
    Pair("adarank", "truncated_task_arithmetic", {"rank": 3, "qkv": "split"}, {**TA, "rank": 3, "qkv": "split"}),
    Pair("adarank", "cart", {"origin": "mean"}),
    Pair("adarank", "cart", {"origin": "mean", **SEARCHED}, SEARCHED),
    Pair("adarank", "cart", {"origin": "mean", "rank": 0.16, "train": ("coefficients",)}, {"rank": 0.16}),
    Pair("adarank", "cart", {"origin": "mean", "train": ("masks",), **SEARCHED}, SEARCHED),
    Pair("adarank", "cart", {"origin": "mean", "rank": "energy:0.5"}, {"rank": "energy:0.5"}),
    Pair("concrete", "task_arithmetic", {}, TA),
    Pair("concrete", "average", {"origin": "mean", "coefficient": 0.9, "train": ("relaxed",)}),
    Pair("tint", "task_arithmetic", {}, TA),
    Pair("tint", "task_arithmetic", {"train": ("heads",), "coefficient": 0.2}, {"coefficient": 0.2}),
    Pair("tint_plus", "task_arithmetic", {}, TA),
    Pair("symerge", "task_arithmetic", {}, TA),
    Pair("symerge", "task_arithmetic", {"layer": "last"}, TA),
    Pair("symerge", "average", {"origin": "mean"}),
    Pair("heads", INIT),
    Pair("heads", "average", {"init": "average"}),
    Pair("blocks", INIT),
    Pair("surgery", INIT),
    Pair("surgery", "cart", {"init": "cart", "rank": 0.3}, {"rank": 0.3}),
    Pair("probsurgery", "task_arithmetic", {"init": "task_arithmetic"}, TA),
    Pair("supervised_heads", INIT),
)  # fmt: skip


OF_TEXTS = (
    Pair("adamerging", "task_arithmetic", {}, TA),
    Pair("adarank", "cart", {"origin": "mean", "qkv": "fused"}, {"qkv": "fused"}),
)


def far(got: State, wanted: State) -> float:
    """The largest relative distance of two models' tensors."""
    assert got.keys() == wanted.keys()
    distances = [float((got[n].double() - wanted[n].double()).norm() / wanted[n].double().norm()) for n in wanted]
    return max(distances)


def merged(suite: Suite, pair: Pair, folder: Path) -> State:
    """What `merge` makes of the suite's experts; each merge is made once."""
    said = "_".join(f"{name}={value}" for name, value in pair.static_options.items())
    output = folder / f"{pair.static} {said.replace('/', '')}".strip() / "m.safetensors"
    if not output.exists():
        taskmerge.merge(suite=suite, method=pair.static, output=output, **pair.static_options)
    return dict(load_file(output))


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    return clip_suite(tmp_path_factory.mktemp("start"))


def test_every_method_is_here() -> None:
    assert adaptive_methods().keys() == {pair.method for pair in PAIRS}


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_update_0_is_the_training_free_merge(pair: Pair, suite: Suite, tmp_path: Path) -> None:
    wanted = merged(suite, pair, suite.folder / "static")
    live = assembled(suite, tmp_path / "out", method=pair.method, iterations=0, goes_on=True, **pair.options).live()
    assert far({name: live[name] for name in wanted}, wanted) < TOLERANCE
    assert far(dict(load_file(tmp_path / "out" / "model.safetensors")), wanted) < TOLERANCE


def test_a_block_of_its_own_starts_at_the_merged_weights(suite: Suite, tmp_path: Path) -> None:
    adapt(suite, tmp_path / "out", method="symerge", layer="1", iterations=0)
    model = load_file(tmp_path / "out" / "model.safetensors")
    for task in TASKS:
        block = load_file(tmp_path / "out" / "blocks" / f"{task}.safetensors")
        assert set(block) == {name for name in model if ".resblocks.1." in name}
        for name, tensor in block.items():
            torch.testing.assert_close(tensor, model[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
@pytest.mark.parametrize("pair", OF_TEXTS, ids=str)
def test_experts_with_heads_of_their_own(pair: Pair, family: str, tmp_path: Path) -> None:
    """They are left out of the model, which has the encoder alone, under the experts' names."""
    suite = text_suite(tmp_path / "suite", family)
    adapt(suite, tmp_path / "out", method=pair.method, iterations=0, **pair.options)
    found = dict(load_file(tmp_path / "out" / "model.safetensors"))
    wanted = merged(suite, pair, tmp_path / "static")
    assert not any(name.startswith(("classifier", "score", "bert.pooler")) for name in found)
    assert far(found, wanted) < TOLERANCE


def test_tint_with_frozen_heads_is_adamerging(suite: Suite, tmp_path: Path) -> None:
    """By entropy, on all items, by joint updates, with the same batches and rate."""
    same = {"objective": "entropy", "filter": "none", "updates": "joint", "lr": 1e-2, "batch_size": 8, "iterations": 3}
    for method, options in (("tint", {"train": ("coefficients",)}), ("adamerging", {})):
        adapt(suite, tmp_path / method, method=method, **same, **options)
    one, other = (load_file(tmp_path / method / "coefficients.safetensors") for method in ("tint", "adamerging"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert any(bool((one[name] != 0.3).any()) for name in one)


def test_adarank_with_all_bits_frozen_is_adamerging_on_factored_vectors(suite: Suite, tmp_path: Path) -> None:
    same = {"batch_size": 8, "iterations": 3, "lr": 1e-2}
    adapt(suite, tmp_path / "adarank", method="adarank", train=("coefficients",), **same)
    adapt(suite, tmp_path / "adamerging", method="adamerging", **same)
    one, other = (load_file(tmp_path / method / "coefficients.safetensors") for method in ("adarank", "adamerging"))
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=1e-4)


def test_masks_that_another_method_adds_are_learnt(suite: Suite, tmp_path: Path) -> None:
    options = {"with_": "adarank", "iterations": 3, "mask_lr": 0.1, "lr": 0.05}
    adapt(suite, tmp_path / "out", method="adamerging", **options)
    assert (tmp_path / "out" / "masks.safetensors").exists()
    adapt(suite, tmp_path / "wanted", method="adarank", **{**options, "with_": None})
    for name in ("masks", "coefficients", "model"):
        one, other = (load_file(tmp_path / place / f"{name}.safetensors") for place in ("out", "wanted"))
        assert all(torch.equal(one[key], other[key]) for key in one)
