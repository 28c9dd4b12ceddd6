"""What lies between tasks against its definitions, written with whole matrices in float64."""

import pytest
import torch
from torch import Tensor

from taskmerge.numerics.rank import Rank
from taskmerge.spectra.between import overlaps
from taskmerge.spectra.entries import counts
from taskmerge.spectra.matrices import Asked, measure, solve_cores, solve_dense

ASKED = Asked(Rank.parse("4"), (Rank.parse("0.5"),))


def matrices(tasks: int = 3, m: int = 14, n: int = 20, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(m, n, generator=generator, dtype=torch.float64)
    return common + torch.randn(tasks, m, n, generator=generator, dtype=torch.float64)


def test_overlaps_are_their_definitions() -> None:
    stack = matrices()
    found = overlaps([one.factors for one in solve_dense(stack, ASKED, "delta")], (14, 20))
    parts = [torch.linalg.svd(one, full_matrices=False) for one in stack]
    u, s, v = ([part[side] for part in parts] for side in (0, 1, 2))
    u, s, v = [one[:, :4] for one in u], [one[:4] for one in s], [one[:4].mT for one in v]
    for first in range(3):
        for second in range(3):
            left, right = u[first].mT @ u[second], v[first].mT @ v[second]
            torch.testing.assert_close(found.left.value[first, second], left.square().sum() / 4)
            torch.testing.assert_close(found.right.value[first, second], right.square().sum() / 4)
            cut = u[first] @ s[first].diag() @ v[first].mT
            inside = u[second] @ u[second].mT @ cut @ v[second] @ v[second].mT
            share = inside.square().sum() / cut.square().sum()
            torch.testing.assert_close(found.interference.value[first, second], share)
    every_u, every_s, every_v = torch.cat(u, 1), torch.cat(s), torch.cat(v, 1)
    whole = torch.eye(12).double()
    by_hand = ((every_u.mT @ every_u - whole) @ every_s.diag() @ (every_v.mT @ every_v - whole)).abs().sum()
    torch.testing.assert_close(found.singular.value * found.total, by_hand)


def test_a_subspace_overlaps_itself_whole_and_a_foreign_one_not() -> None:
    eye = torch.eye(8, dtype=torch.float64)
    first, second = eye.clone(), eye.clone()
    first[4:] = 0
    second[:4] = 0
    found = overlaps([one.factors for one in solve_dense(torch.stack([first, second, first]), ASKED, "delta")], (8, 8))
    expected = torch.tensor([[1.0, 0, 1], [0, 1, 0], [1, 0, 1]], dtype=torch.float64)
    torch.testing.assert_close(found.left.value, expected)
    torch.testing.assert_close(found.interference.value, expected)
    assert float(found.left.chance[0, 1]) == 0.5


def test_cosines_zeros_and_conflicts_are_counted_entry_by_entry() -> None:
    generator = torch.Generator().manual_seed(1)
    stack = torch.randn(3, 7, 9, generator=generator)
    stack[torch.rand(3, 7, 9, generator=generator) < 0.3] = 0
    found = counts(stack)
    for first in range(3):
        assert float(found.zeros[first]) == pytest.approx(float((stack[first] == 0).double().mean()))
        for second in range(3):
            x, y = stack[first].double().flatten(), stack[second].double().flatten()
            torch.testing.assert_close(found.cosines(centred=False).value[first, second], x @ y / (x.norm() * y.norm()))
            differ = float((x * y < 0).double().mean())
            conflict = found.conflicts(torch.zeros(3, 3))
            assert float(conflict.value[first, second]) == pytest.approx(differ)
            both = float(((x != 0) & (y != 0)).double().mean())
            assert float(conflict.chance[first, second]) == pytest.approx(both / 2)


def test_a_zero_vector_has_no_cosine_and_no_subspace() -> None:
    stack = matrices()
    stack[1] = 0
    found = measure(stack, solve_dense(stack, ASKED, "delta"), (14, 20), ASKED, "delta", None)
    assert found.cosine is not None
    assert found.overlaps is not None
    assert found.cosine.value[0, 1].isnan()
    assert found.overlaps.left.value[0, 1].isnan()
    assert found.overlaps.left.chance[0, 1].isnan()
    assert found.overlaps.interference.value[1, 0].isnan()
    assert not found.overlaps.left.value[0, 2].isnan()
    assert not found.overlaps.singular.value.isnan()


def test_cores_in_common_bases_tell_what_the_matrices_tell() -> None:
    generator = torch.Generator().manual_seed(2)
    left = torch.linalg.qr(torch.randn(30, 6, generator=generator, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(25, 6, generator=generator, dtype=torch.float64)).Q.mT
    cores = torch.randn(3, 6, 6, generator=generator, dtype=torch.float64)
    stack = left @ cores @ right
    shape = (30, 25)
    small = measure(stack, solve_cores(cores, 25, ASKED), shape, ASKED, "delta", None)
    dense = measure(stack, solve_dense(stack, ASKED, "delta"), shape, ASKED, "delta", None)
    assert small.spectra.components.tolist() == [6, 6, 6]
    torch.testing.assert_close(small.spectra.values, dense.spectra.values, rtol=1e-9, atol=1e-9)
    assert small.overlaps is not None
    assert dense.overlaps is not None
    for name in ("left", "right", "interference", "singular"):
        one, other = getattr(small.overlaps, name), getattr(dense.overlaps, name)
        torch.testing.assert_close(one.value, other.value, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(one.chance, other.chance, rtol=1e-6, atol=1e-9)


def test_the_alignment_is_the_share_inside_the_merged_space() -> None:
    stack = matrices()
    merged = stack.mean(0)
    found = measure(stack, solve_dense(stack, ASKED, "delta"), (14, 20), ASKED, "delta", merged).alignment
    assert found is not None
    u, s, _ = torch.linalg.svd(merged)
    rank = next(k for k in range(15) if s[k:].norm() <= 0.05 * s.norm())
    assert found.rank == rank
    for task, own in zip(stack, found.share.value, strict=True):
        torch.testing.assert_close(own, (u[:, :rank] @ u[:, :rank].mT @ task).square().sum() / task.square().sum())


def test_two_tasks_about_their_average_have_nothing_between_them() -> None:
    stack = matrices(tasks=2)
    centred = stack - stack.mean(0)
    solved = solve_dense(centred, ASKED, "centred")
    assert [len(one.factors.s) for one in solved] == [0, 0]  # nor are vectors computed for it
    found = measure(centred, solved, (14, 20), ASKED, "centred", None)
    assert found.cosine is None
    assert found.conflict is None
    assert found.overlaps is None
