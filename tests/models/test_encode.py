"""Encoding in batches is one forward pass over everything, in the items' own order."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from taskmerge.models.encode import encode
from taskmerge.models.heads import LinearHead

CPU = torch.device("cpu")


class Recorder(nn.Module):
    """Remembers the batches that it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[dict[str, Tensor]] = []

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        self.batches.append(dict(inputs))
        return self.features(inputs)

    def features(self, inputs: dict[str, Tensor]) -> Tensor:
        raise NotImplementedError


class Pixels(Recorder):
    def features(self, inputs: dict[str, Tensor]) -> Tensor:
        return inputs["pixels"].float().flatten(1)[:, :5] / 255


class MaskedMean(Recorder):
    """What a padding-blind text encoder does: the mean over the mask."""

    def features(self, inputs: dict[str, Tensor]) -> Tensor:
        ids, mask = inputs["input_ids"].float(), inputs["attention_mask"].float()
        return torch.stack([(ids * mask).sum(1) / mask.sum(1).clamp(min=1), mask.sum(1)], dim=1)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_pictures_are_slices_of_what_was_loaded(batch_size: int) -> None:
    pixels = torch.randint(0, 256, (7, 3, 4, 4), dtype=torch.uint8)
    module, steps = Pixels(), []
    found = encode(module, {"pixels": pixels}, batch_size=batch_size, device=CPU, progress=steps.append)
    assert found.dtype == torch.float32
    assert torch.equal(found, pixels.float().flatten(1)[:, :5] / 255)
    assert sum(steps) == 7
    assert max(steps) <= batch_size
    storage = pixels.untyped_storage().data_ptr()
    for batch in module.batches:
        assert batch["pixels"].untyped_storage().data_ptr() == storage, "no copy on the way to the module"
        assert batch["pixels"].is_contiguous()


@pytest.mark.parametrize(("batch_size", "threads"), [(8, 4), (4, 2), (3, 1), (1, 1)])
def test_batches_share_the_threads_that_there_are(batch_size: int, threads: int) -> None:
    """One batch alone has all of them; the setting is what it was afterwards."""
    counts: list[int] = []

    class Counting(nn.Module):
        def forward(self, inputs: dict[str, Tensor]) -> Tensor:
            counts.append(torch.get_num_threads())
            return inputs["pixels"].flatten(1).float()

    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        pixels = torch.randint(0, 256, (8, 3, 2, 2), dtype=torch.uint8)
        found = encode(Counting(), {"pixels": pixels}, batch_size=batch_size, device=CPU)
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)
    assert set(counts) == {threads}
    assert torch.equal(found, pixels.flatten(1).float())


@given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=20), batch_size=st.integers(1, 25))
@settings(max_examples=60, deadline=None)
def test_texts_come_back_in_their_order_and_no_batch_is_longer_than_its_longest(
    lengths: list[int], batch_size: int
) -> None:
    width = 9
    mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(1, 50, (len(lengths), width)) * mask
    module = MaskedMean()
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    found = encode(module, inputs, batch_size=batch_size, device=CPU)
    torch.testing.assert_close(found, MaskedMean().features({"input_ids": ids, "attention_mask": mask}))
    for batch in module.batches:
        longest = max(int(batch["attention_mask"].sum(1).max()), 1)
        assert {one.shape[1] for one in batch.values()} == {longest}
    padded = sum(batch["input_ids"].numel() for batch in module.batches)
    if batch_size == 1:
        assert padded == sum(max(one, 1) for one in lengths)


def test_left_padding_is_not_cut_off() -> None:
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1], [0, 1, 1, 0]])
    ids = torch.arange(12).reshape(3, 4)
    found = encode(MaskedMean(), {"input_ids": ids, "attention_mask": mask}, batch_size=2, device=CPU)
    torch.testing.assert_close(found, MaskedMean().features({"input_ids": ids, "attention_mask": mask}))


def test_nothing_records_gradients() -> None:
    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, inputs: dict[str, Tensor]) -> Tensor:
            return inputs["pixels"].float() * self.weight

    found = encode(Linear(), {"pixels": torch.ones(4, 3)}, batch_size=2, device=CPU)
    assert not found.requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_features_are_float32_or_the_float64_of_a_module_that_is(dtype: torch.dtype) -> None:
    class Cast(nn.Module):
        def forward(self, inputs: dict[str, Tensor]) -> Tensor:
            return inputs["pixels"].to(dtype) / 3

    pixels = torch.arange(8).reshape(4, 2)
    found = encode(Cast(), {"pixels": pixels}, batch_size=3, device=CPU)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(found, (pixels.to(dtype) / 3).to(found.dtype))


@pytest.mark.parametrize("batch_size", [2, 5])
@pytest.mark.parametrize("texts", [True, False])
def test_a_head_without_normalisation_learns_from_features(texts: bool, batch_size: int) -> None:
    """The gradient of a linear head's sum of squares: 2 (H z) zᵀ, summed over items."""
    numbers = torch.arange(1, 11).reshape(5, 2)
    inputs = {"input_ids": numbers, "attention_mask": torch.ones_like(numbers)} if texts else {"pixels": numbers}
    module = MaskedMean() if texts else Pixels()
    features = encode(module, inputs, batch_size=batch_size, device=CPU)
    head = LinearHead(torch.tensor([[1.0, -1.0], [0.5, 2.0]]), None, normalise=False, regression=False)
    head.requires_grad_(True)
    head(features).square().sum().backward()
    wanted = 2 * features.T @ features @ head.weight.detach().T
    assert head.weight.grad is not None
    torch.testing.assert_close(head.weight.grad, wanted.T)


@pytest.mark.cuda
def test_a_gpu_gives_the_same_features_in_the_same_order() -> None:
    generator = torch.Generator().manual_seed(0)
    mask = (torch.arange(9) < torch.randint(1, 10, (50, 1), generator=generator)).long()
    inputs = {"input_ids": torch.randint(1, 50, (50, 9), generator=generator) * mask, "attention_mask": mask}
    found = encode(MaskedMean(), inputs, batch_size=8, device=torch.device("cuda"))
    assert found.device.type == "cuda"
    torch.testing.assert_close(found.cpu(), encode(MaskedMean(), inputs, batch_size=8, device=CPU))
