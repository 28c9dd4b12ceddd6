"""What lies below an own block is computed once an item, and the features are those of the whole encoder."""

from pathlib import Path

import pytest
import torch
from adaptation_cases import ITEMS, Assembled, assembled, clip_suite, text_suite
from torch import Tensor, nn

from taskmerge.adaptation import prefix
from taskmerge.adaptation.prefix import shortened
from taskmerge.adaptation.tasks import TaskSide, inputs_at
from taskmerge.specs.suite import Suite

CPU = torch.device("cpu")
BLOCKS = {"clip": "visual.transformer.resblocks", "bert": "encoder.layer", "gpt2": "h"}


@pytest.fixture(scope="module")
def suites(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Suite]:
    folder = tmp_path_factory.mktemp("prefix")
    return {"clip": clip_suite(folder / "clip")} | {
        family: text_suite(folder / family, family) for family in ("bert", "gpt2")
    }


def run_of(suite: Suite, tmp_path: Path, layer: str = "last", method: str = "blocks") -> Assembled:
    return assembled(suite, tmp_path / "out", method=method, layer=layer, compute_dtype="float64", overwrite=True)


def whole_features(side: TaskSide, places: Tensor) -> Tensor:
    features: Tensor = side.module(inputs_at(side.items.inputs, places, CPU))
    return features


@pytest.mark.parametrize("model", BLOCKS)
@pytest.mark.parametrize("at_once", [64, 3])
def test_features_are_those_of_the_whole_encoder(
    suites: dict[str, Suite], model: str, at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For any batch, of texts of any length, whatever batches the lower blocks were computed in."""
    monkeypatch.setattr(prefix, "AT_ONCE", at_once)
    generator = torch.Generator().manual_seed(1)
    for side in run_of(suites[model], tmp_path).run.sides:
        assert side.short is not None
        for count in (1, 2, 5, ITEMS):
            places = torch.randperm(ITEMS, generator=generator)[:count]
            with torch.no_grad():
                found, wanted = side.features(places, CPU), whole_features(side, places)
            torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("model", BLOCKS)
def test_lower_blocks_are_not_run_again(suites: dict[str, Suite], model: str, tmp_path: Path) -> None:
    found = run_of(suites[model], tmp_path)
    ran: list[int] = []
    for index, block in enumerate(found.module.get_submodule(BLOCKS[model]).children()):
        block.register_forward_hook(lambda *given, index=index: ran.append(index))
    list(found.run.updates().__next__().tasks)
    assert not ran  # the task has a block of its own, and what is below is kept


def test_an_update_changes_what_comes_out(suites: dict[str, Suite], tmp_path: Path) -> None:
    side = run_of(suites["clip"], tmp_path).run.sides[0]
    with torch.no_grad():
        before = side.features(torch.arange(4), CPU)
        for value in side.own.values():
            value.add_(0.1)
        after = side.features(torch.arange(4), CPU)
        torch.testing.assert_close(after, whole_features(side, torch.arange(4)), rtol=1e-10, atol=1e-10)
    assert not torch.equal(before, after)


def test_nothing_is_left_out_where_it_cannot_be(
    suites: dict[str, Suite], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first block has nothing below; coefficients change what is below; states may be too many."""
    assert all(side.short is None for side in run_of(suites["clip"], tmp_path, "first").run.sides)
    assert all(side.short is None for side in run_of(suites["clip"], tmp_path, method="symerge").run.sides)
    monkeypatch.setattr(prefix, "MOST", 100)
    assert all(side.short is None for side in run_of(suites["clip"], tmp_path).run.sides)


class Layer(nn.Module):
    """A block."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Linear(4, 4)

    def forward(self, hidden: Tensor) -> Tensor:
        mixed: Tensor = self.mlp(hidden)
        return mixed


class Plain(nn.Module):
    """An encoder whose blocks see what comes from the block below."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(3))

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        hidden = inputs["values"]
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden


class Skipping(Plain):
    """One that looks past them."""

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        return super().forward(inputs) + self.layers[0](inputs["values"])


class Uncalled(Plain):
    """One that runs the parts of its blocks itself."""

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        hidden = inputs["values"]
        for layer in self.layers:
            hidden = layer.mlp(hidden)
        return hidden


def test_an_encoder_that_sees_past_a_block_is_not_shortened() -> None:
    inputs = {"values": torch.randn(6, 4, generator=torch.Generator().manual_seed(0))}
    assert shortened(Plain(), ["layers.2.mlp.weight"], inputs, CPU) is not None
    assert shortened(Skipping(), ["layers.2.mlp.weight"], inputs, CPU) is None
    assert shortened(Uncalled(), ["layers.2.mlp.weight"], inputs, CPU) is None
    assert shortened(Plain(), ["elsewhere.weight"], inputs, CPU) is None
    assert shortened(Plain(), [], inputs, CPU) is None
    assert shortened(Plain(), ["layers.2.mlp.weight"], {"values": inputs["values"][:1]}, CPU) is None
