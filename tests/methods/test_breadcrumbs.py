"""Model Breadcrumbs against its definition, and the rows where a slice would be empty."""

import math

import pytest
import torch
from elementwise_cases import PROPERTY, share, stacks
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from taskmerge.methods.breadcrumbs import breadcrumbs


def row_by_hand(row: list[float], drop_top: float, density: float) -> list[float]:
    """Drop the floor(drop_top n) largest, keep the next floor(density n), or one; equal magnitudes stay together."""
    ordered = sorted((abs(value) for value in row), reverse=True)
    rest = ordered[share(drop_top, len(row)) :]
    if not rest:
        return [0.0] * len(row)
    kept = rest[: max(1, share(density, len(row)))]
    return [value if kept[-1] <= abs(value) <= kept[0] else 0.0 for value in row]


@PROPERTY
@given(
    stacks(),
    st.sampled_from([0.0, 0.1, 0.29, 0.5, 1.0]),
    st.sampled_from([0.01, 0.2, 0.58, 1.0]),
    st.sampled_from(["row", "tensor"]),
)
def test_breadcrumbs_is_its_definition(stack: Tensor, drop_top: float, density: float, scope: str) -> None:
    found = breadcrumbs(stack, drop_top=drop_top, density=density, scope=scope)
    assert found.shape == stack.shape
    assert found.dtype == stack.dtype
    if stack.dim() == 1:
        assert torch.equal(found, stack)
        return
    width = stack.shape[-1] if scope == "row" else math.prod(stack.shape[1:])
    expected = [row_by_hand(row, drop_top, density) for row in stack.double().reshape(-1, width).tolist()]
    assert found.double().reshape(-1, width).tolist() == expected


@pytest.mark.parametrize("scope", ["row", "tensor"])
@pytest.mark.parametrize(("width", "drop_top"), [(64, 0.01), (3, 0.1), (1, 0.1), (200, 0.0)])
def test_nothing_to_drop_is_no_reason_to_drop_everything(width: int, drop_top: float, scope: str) -> None:
    """mergekit sliced `[n_bot:-n_top]`, which is empty when n_top is 0, so small tensors lost their whole delta."""
    stack = torch.arange(1.0, 1 + width).view(1, 1, width)
    found = breadcrumbs(stack, drop_top=drop_top, density=0.2, scope=scope)
    assert int((found != 0).sum()) == max(1, width // 5)
    assert float(found.max()) == width


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_a_short_row_keeps_at_least_one_entry(width: int) -> None:
    """int(0.2 * 3) is 0: the authors' code zeroes 3-wide kernels."""
    kernels = torch.randn(2, 5, 4, width, width, generator=torch.Generator().manual_seed(width))
    assert ((breadcrumbs(kernels) != 0).sum(-1) == 1).all()


def test_scalars_are_untouched_and_empty_tensors_stay_empty() -> None:
    assert breadcrumbs(torch.tensor([2.0, 3.0])).tolist() == [2.0, 3.0]
    assert breadcrumbs(torch.empty(2, 0, 3)).shape == (2, 0, 3)
    assert breadcrumbs(torch.empty(2, 3, 0)).shape == (2, 3, 0)


def test_position_decides_nothing_between_equal_magnitudes() -> None:
    row = torch.tensor([[9.0, 2.0, -2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]])
    assert breadcrumbs(row).tolist() == [[0.0, 2.0, -2.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]]
    assert torch.equal(breadcrumbs(row.flip(1)), breadcrumbs(row).flip(1))


def test_shares_count_as_the_decimals_were_meant() -> None:
    """0.29 * 100 is 28.999... in binary."""
    row = torch.arange(1.0, 101.0)[None, None]
    assert float(breadcrumbs(row, drop_top=0.29, density=0.58).max()) == 71
    assert int((breadcrumbs(row, drop_top=0.29, density=0.58) != 0).sum()) == 58


def test_counts_are_of_the_whole_row_not_of_what_is_left() -> None:
    row = torch.arange(1.0, 101.0)[None]
    found = breadcrumbs(row, drop_top=0.5, density=0.2)[0]
    assert found.nonzero().flatten().tolist() == list(range(30, 50))
