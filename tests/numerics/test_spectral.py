"""Truncated factorisations against float64 singular value decompositions; what is kept, refused, cached, reported."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from taskmerge.errors import BadNumber
from taskmerge.numerics import lapack, leading, spectral
from taskmerge.numerics.rank import Rank
from taskmerge.numerics.spectral import Factors, TaskMatrices, energy_rank

PROPERTY = settings(max_examples=40, deadline=None)
SHAPES = [(1, 1), (1, 9), (9, 1), (2, 3), (12, 12), (40, 7), (7, 40), (60, 45), (45, 60)]
GOAL = {torch.float32: 1e-5, torch.float64: 1e-11}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    with lapack.single_threaded():
        yield


def truncated_by_hand(matrix: Tensor, k: int) -> np.ndarray:
    """Σ_{i<=k} s_i u_i v_iᵀ, one component after the other, in float64."""
    u, s, vt = np.linalg.svd(matrix.double().numpy(), full_matrices=False)
    total = np.zeros(matrix.shape)
    for i in range(min(k, len(s))):
        total += s[i] * np.outer(u[:, i], vt[i])
    return total


def off(found: Tensor, expected: np.ndarray) -> float:
    """Relative Frobenius error."""
    return float(np.linalg.norm(found.double().numpy() - expected) / max(np.linalg.norm(expected), 1e-300))


def with_values(s: Tensor, rows: int, columns: int, seed: int) -> Tensor:
    """A float64 matrix with given singular values."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.linalg.qr(torch.randn(rows, len(s), generator=generator, dtype=torch.float64)).Q
    v = torch.linalg.qr(torch.randn(columns, len(s), generator=generator, dtype=torch.float64)).Q
    return (u * s.double()) @ v.mT


def spectrum(kind: str, r: int) -> Tensor:
    """Singular values of a kind, descending."""
    index = torch.arange(1, r + 1, dtype=torch.float64)
    return {
        "mild": index**-0.5,
        "steep": index**-3.0,
        "cliff": torch.where(index <= (r + 1) // 2, 2.0 - index / r, 1e-4 / index),
        "deficient": torch.where(index <= (r + 2) // 3, 1 / index, 0.0),
        "repeated": torch.where(index <= (r + 1) // 2, 3.0, 1.0).double(),
        "equal": torch.ones(r, dtype=torch.float64),
        "zero": torch.zeros(r, dtype=torch.float64),
    }[kind]


@st.composite
def matrices(draw, kinds=("mild", "steep", "cliff", "deficient", "repeated", "equal", "zero")) -> Tensor:
    rows, columns = draw(st.sampled_from(SHAPES))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    s = spectrum(draw(st.sampled_from(kinds)), min(rows, columns))
    exponent = draw(st.sampled_from([0, 0, 0, -90, 90]))
    return (with_values(s, rows, columns, draw(st.integers(0, 99))) * 2.0**exponent).to(dtype)


def ranks(matrix: Tensor) -> list[int]:
    r = min(matrix.shape)
    return sorted({1, max(1, r // 8), (r + 1) // 2, r})


@PROPERTY
@given(matrix=matrices())
def test_every_truncation_is_the_best_of_its_rank(matrix):
    values = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
    for k in ranks(matrix):
        left = matrix.double() - TaskMatrices(matrix[None]).truncated_sum(k, [1.0]).double()
        least = float(np.sqrt(np.sum(values[k:] ** 2)))
        assert float(left.norm()) <= least * (1 + 1e-9) + GOAL[matrix.dtype] * float(matrix.double().norm())


@PROPERTY
@given(matrix=matrices(kinds=("mild", "steep", "cliff", "deficient")))
def test_truncations_are_those_of_a_float64_decomposition(matrix):
    for k in ranks(matrix):
        found = TaskMatrices(matrix[None]).truncated_sum(k, [1.0])
        assert off(found, truncated_by_hand(matrix, k)) <= GOAL[matrix.dtype]


@PROPERTY
@given(matrix=matrices())
def test_triplets_are_orthonormal_descending_and_give_the_product(matrix):
    for k in ranks(matrix):
        solver = TaskMatrices(matrix[None])
        u, s, vt = solver.top(k)[0]
        assert u.dtype == s.dtype == vt.dtype == matrix.dtype
        assert u.shape == (len(matrix), len(s))
        assert vt.shape == (len(s), matrix.shape[1])
        assert len(s) <= k
        assert (s > 0).all()
        assert (s[:-1] >= s[1:]).all()
        least = (s[-1] / s[0]).double().item() if len(s) else 1.0  # what a float64 Gram matrix cannot tell
        tolerance = 3e-5 + 1e-15 / least**2 if matrix.dtype == torch.float32 else 3e-8
        for vectors in (u.mT.double(), vt.double()):
            np.testing.assert_allclose((vectors @ vectors.mT).numpy(), np.eye(len(s)), atol=tolerance)
        expected = np.linalg.svd(matrix.double().numpy(), compute_uv=False)[: len(s)]
        top = expected[0] if len(s) else 0.0
        np.testing.assert_allclose(s.double().numpy(), expected, rtol=0, atol=GOAL[matrix.dtype] * top)
        product = (u.double() * s.double()) @ vt.double() - solver.truncated_sum(k, [1.0]).double()
        assert float(product.norm()) <= GOAL[matrix.dtype] * float(matrix.double().norm())


@PROPERTY
@given(matrix=matrices(kinds=("mild", "steep", "cliff", "deficient")))
def test_the_transpose_has_the_transposed_truncation(matrix):
    for k in ranks(matrix):
        found = TaskMatrices(matrix[None]).truncated_sum(k, [1.0])
        turned = TaskMatrices(matrix.mT.contiguous()[None]).truncated_sum(k, [1.0])
        assert off(turned.mT, found.double().numpy()) <= 2 * GOAL[matrix.dtype]


@PROPERTY
@given(matrix=matrices())
def test_values_alone_are_the_values(matrix):
    found = TaskMatrices(matrix[None]).singular_values()[0]
    expected = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
    assert found.dtype == matrix.dtype
    tolerance = 1e-7 if matrix.dtype == torch.float32 else 1e-10
    np.testing.assert_allclose(found.double().numpy(), expected, rtol=1e-4, atol=tolerance * expected[0])
    assert (found[:-1] >= found[1:]).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_small_values_of_a_float64_matrix_are_not_lost_in_its_gram_matrix(dtype):
    s = torch.tensor([1.0, 1e-3, 1e-9])
    found = TaskMatrices(with_values(s, 12, 3, 0)[None].to(dtype)).singular_values()[0]
    assert float(found[1]) == pytest.approx(1e-3, rel=1e-5)
    if dtype == torch.float64:
        assert float(found[2]) == pytest.approx(1e-9, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(96, 64), (64, 96), (64, 64)])
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_an_exact_low_rank_matrix_keeps_its_components_and_no_others(dtype, shape, scale):
    generator = torch.Generator().manual_seed(4)
    down = torch.randn(4, shape[1], generator=generator, dtype=torch.float64)
    up = torch.randn(shape[0], 4, generator=generator, dtype=torch.float64)
    matrix = ((up @ down) * scale).to(dtype)
    solver = TaskMatrices(matrix[None])
    assert len(solver.top(30)[0].s) == 4
    assert off(solver.truncated_sum(30, [1.0]), matrix.double().numpy()) <= (1e-6 if dtype == torch.float32 else 1e-13)
    assert len(solver.top(64)[0].s) == 4
    assert solver.solves[0].gap == 1.0
    assert solver.solves[0].means == "float64 Gram"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [2.0**-100, 2.0**60, 2.0**100])
def test_scaling_scales_the_result(dtype, scale):
    matrix = with_values(spectrum("mild", 20), 30, 20, 3).to(dtype)
    found = TaskMatrices((matrix * scale)[None]).truncated_sum(5, [1.0])
    assert off(found / scale, TaskMatrices(matrix[None]).truncated_sum(5, [1.0]).double().numpy()) <= GOAL[dtype]


def test_extreme_float64_scales():
    matrix = with_values(spectrum("mild", 20), 30, 20, 3)
    for exponent in (-900, 900):
        found = TaskMatrices((matrix * 2.0**exponent)[None])
        assert off(found.truncated_sum(5, [1.0]) * 2.0**-exponent, truncated_by_hand(matrix, 5)) <= 1e-11
        assert float(found.singular_values()[0][0] * 2.0**-exponent) == pytest.approx(1.0)


def test_zero_matrices_have_no_components_and_change_nothing():
    matrix = with_values(spectrum("mild", 8), 10, 8, 5).float()
    stack = torch.stack([torch.zeros(10, 8), matrix, torch.zeros(10, 8)])
    solver = TaskMatrices(stack)
    assert [len(found.s) for found in solver.top(3)] == [0, 3, 0]
    assert [found.u.shape for found in solver.top(3)] == [(10, 0), (10, 3), (10, 0)]
    assert torch.equal(solver.truncated_sum(3, [5.0, 1.0, 7.0]), TaskMatrices(matrix[None]).truncated_sum(3, [1.0]))
    assert [one.means for one in solver.solves] == ["zero", "float32 Gram", "zero"]
    empty = TaskMatrices(torch.zeros(2, 10, 8))
    assert torch.equal(empty.truncated_sum(Rank("energy", 0.9), [1.0, 1.0]), torch.zeros(10, 8))
    assert not empty.singular_values()[0].any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_are_refused(bad):
    matrix = torch.ones(4, 3)
    matrix[1, 1] = bad
    for call in (lambda one: one.top(2), lambda one: one.singular_values()):
        with pytest.raises(BadNumber, match="NaN or infinity"):
            call(TaskMatrices(matrix[None]))
    with pytest.raises(BadNumber, match="NaN or infinity"):
        leading.leading_batched(matrix[None], 2)


# ---------------------------------------------------------------------------------------------- precision


def noisy(kind: str, rows: int, columns: int, seed: int) -> Tensor:
    """A task matrix as fine-tuning leaves them: a power law and noise, or noise alone."""
    noise = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if kind == "gauss":
        return noise
    r = min(rows, columns)
    s = torch.arange(1, r + 1, dtype=torch.float64) ** -float(kind)
    return with_values(s, rows, columns, seed) + noise * s[r // 4] / max(rows, columns) ** 0.5


@pytest.mark.parametrize("kind", ["gauss", "0.3", "0.6", "1.0"])
@pytest.mark.parametrize(("rows", "columns"), [(180, 120), (120, 180), (150, 150)])
def test_the_sum_over_tasks_is_within_1e_5_of_float64(kind, rows, columns):
    stack = torch.stack([noisy(kind, rows, columns, seed) for seed in range(6)])
    stack = (stack - stack.mean(0)).float()
    for share in (0.03, 0.08, 0.2):
        k = int(share * min(rows, columns))
        expected = sum(truncated_by_hand(matrix, k) for matrix in stack)
        assert off(TaskMatrices(stack).truncated_sum(k, [1.0] * 6), expected) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gauss", "0.3", "0.6", "0.7", "0.8", "0.9", "1.0"])
def test_the_sum_over_tasks_is_within_1e_5_of_float64_at_full_size(kind):
    stack = torch.stack([noisy(kind, 768, 768, seed) for seed in range(4)])
    stack = (stack - stack.mean(0)).float()
    expected = sum((u[:, :61] * s[:61]) @ vt[:61] for u, s, vt in map(np.linalg.svd, stack.double().numpy()))
    assert off(TaskMatrices(stack).truncated_sum(61, [1.0] * 4), expected) <= 1e-5


@pytest.mark.parametrize(("smallest", "means"), [(0.05, "float32 Gram"), (0.02, "float64 Gram"), (1e-7, "SVD")])
def test_the_precision_follows_the_spectrum(smallest, means):
    s = torch.cat([torch.linspace(1, smallest, 6), torch.full((114,), smallest / 2)])
    dtype = torch.float64 if means == "SVD" else torch.float32
    matrix = with_values(s, 130, 120, 1).to(dtype)
    solver = TaskMatrices(matrix[None])
    assert off(solver.truncated_sum(6, [1.0]), truncated_by_hand(matrix, 6)) <= GOAL[dtype]
    assert solver.solves[0].means == means
    assert solver.solves[0].residual <= 1e-4


def test_a_cut_through_the_rounding_of_a_low_rank_update_needs_no_decomposition():
    s = torch.cat([torch.tensor([1.0, 0.8, 0.6, 0.5]), torch.linspace(8e-7, 7e-7, 60)])
    matrix = with_values(s, 96, 64, 2).float()
    solver = TaskMatrices(matrix[None])
    assert off(solver.truncated_sum(20, [1.0]), truncated_by_hand(matrix, 20)) <= 1e-5
    assert (solver.solves[0].means, solver.solves[0].components) == ("float64 Gram", 20)


def test_the_first_of_more_triplets_know_what_they_leave_out():
    matrix = with_values(spectrum("mild", 20), 30, 20, 1).float()
    found = leading.leading(matrix, 9).first(4)
    assert found.tail == pytest.approx(np.linalg.norm(matrix.double().numpy() - truncated_by_hand(matrix, 4)), rel=1e-4)
    assert found.beyond == pytest.approx(5**-0.5, rel=1e-5)
    assert not found.complete


def test_a_near_tie_behind_the_cut_asks_for_float64():
    s = torch.tensor([1.0, 0.9, 0.8, 0.8 * (1 - 1e-5), 0.5, 0.3])
    matrix = with_values(s, 40, 6, 1).float()
    solver = TaskMatrices(matrix[None])
    assert off(solver.truncated_sum(3, [1.0]), truncated_by_hand(matrix, 3)) <= 1e-5
    assert solver.solves[0].means == "float64 Gram"
    assert solver.solves[0].gap == pytest.approx(1e-5, rel=0.1)


NEAR_TIE = torch.cat([torch.tensor([1.0, 0.9, 0.8, 0.8 * (1 - 1e-5), 0.7]), torch.linspace(0.6, 0.3, 45)])


@pytest.mark.parametrize("shape", [(90, 50), (50, 90)])
def test_a_near_tie_behind_the_cut_is_sorted_again_where_the_spectrum_goes_on(shape):
    matrix = with_values(NEAR_TIE, *shape, 1).float()
    solver = TaskMatrices(matrix[None])
    assert off(solver.truncated_sum(3, [1.0]), truncated_by_hand(matrix, 3)) <= 2e-6
    (solve,) = solver.solves
    assert (solve.means, solve.components) == ("float32 Gram", 3)
    assert solve.gap == pytest.approx(1e-5, rel=0.2)
    assert off(solver.truncated_sum(2, [1.0]), truncated_by_hand(matrix, 2)) <= 2e-6
    assert solver.solves == [solve]  # nothing was factored again


def test_without_a_second_look_the_same_cut_is_wrong_or_goes_to_float64(monkeypatch):
    matrix = with_values(NEAR_TIE, 90, 50, 1).float()
    monkeypatch.setattr(leading, "_sorted_again", lambda matrix, near: None)
    assert leading.leading(matrix, 3).means == "float64 Gram"
    monkeypatch.setattr(leading, "LOOSEST", 1.0)
    loose = TaskMatrices(matrix[None])
    assert off(loose.truncated_sum(3, [1.0]), truncated_by_hand(matrix, 3)) > 1e-5


def test_where_rounding_turns_vectors_in_all_directions_a_second_look_is_not_enough(monkeypatch):
    stack = torch.stack([noisy("1.0", 768, 768, seed) for seed in range(4)])
    matrix = (stack[0] - stack.mean(0)).float()
    assert leading.leading(matrix, 61).means == "float64 Gram"
    monkeypatch.setattr(leading, "NEARBY", 1.0)
    assert leading.leading(matrix, 61).means == "float32 Gram"


def test_dependent_vectors_are_not_sorted_again():
    matrix = with_values(NEAR_TIE, 90, 50, 1).float()
    assert leading._sorted_again(matrix, torch.eye(50)[[0, 1, 1, 2]]) is None


def test_vectors_are_sorted_within_their_span_alone():
    matrix = torch.diag(torch.tensor([5.0, 4.0, 3.0, 2.0]))
    mixed = torch.tensor([[0.6, 0.8, 0, 0], [0.8, -0.6, 0, 0], [0, 0, 0, 1.0]])
    found = leading._sorted_again(matrix, mixed)
    assert torch.allclose(found.abs(), torch.eye(4)[[0, 1, 3]], atol=1e-6)


def test_a_tie_inside_what_is_kept_costs_nothing():
    s = torch.tensor([1.0, 0.9, 0.8, 0.8 * (1 - 1e-5), 0.5, 0.3])
    solver = TaskMatrices(with_values(s, 40, 6, 1).float()[None])
    solver.top(4)
    assert solver.solves[0].means == "float32 Gram"


def test_a_smaller_cut_at_a_near_tie_is_computed_again():
    s = torch.tensor([1.0, 0.9, 0.8, 0.8 * (1 - 1e-5), 0.5, 0.3])
    matrix = with_values(s, 40, 6, 1).float()
    solver = TaskMatrices(matrix[None])
    solver.top(4)
    assert off(solver.truncated_sum(3, [1.0]), truncated_by_hand(matrix, 3)) <= 1e-5
    assert (solver.solves[0].means, solver.solves[0].components) == ("float64 Gram", 4)


def test_after_a_steep_matrix_the_next_one_starts_in_float64(monkeypatch):
    used = []
    solve = leading.top_eigenpairs
    monkeypatch.setattr(leading, "top_eigenpairs", lambda gram, k: used.append(gram.dtype) or solve(gram, k))
    steep = with_values(spectrum("steep", 20), 30, 20, 1).float()
    mild = with_values(spectrum("mild", 20), 30, 20, 2).float()
    solver = TaskMatrices(torch.stack([steep, steep, mild, mild]))
    expected = sum(truncated_by_hand(matrix, 8) for matrix in solver.stack)
    assert off(solver.truncated_sum(8, [1.0] * 4), expected) <= 1e-5
    assert used == [torch.float32, torch.float64, torch.float64, torch.float64, torch.float32]


# ---------------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize(
    ("broken", "means"), [([torch.float32], "float64 Gram"), ([torch.float32, torch.float64], "SVD")]
)
@pytest.mark.parametrize("how", ["error", "wrong vectors", "wrong precision"])
def test_a_solver_that_fails_is_replaced_by_the_next(monkeypatch, broken, means, how):
    solve = leading.top_eigenpairs

    def sometimes(gram: Tensor, k: int) -> tuple[Tensor, Tensor]:
        if gram.dtype not in broken:
            return solve(gram, k)
        if how == "error":
            raise lapack.LapackError("info 1")
        values, vectors = solve(gram, k)
        if how == "wrong vectors":
            return values, vectors.roll(1, dims=1)
        return values, torch.linalg.qr((vectors + 3e-3 * vectors.roll(1, dims=1)).mT).Q.mT

    monkeypatch.setattr(leading, "top_eigenpairs", sometimes)
    matrix = with_values(spectrum("mild", 20), 30, 20, 3).float()
    solver = TaskMatrices(matrix[None])
    assert off(solver.truncated_sum(5, [1.0]), truncated_by_hand(matrix, 5)) <= 1e-6
    assert solver.solves[0].means == means


# ---------------------------------------------------------------------------------------------- ranks and reuse


@pytest.fixture
def solves(monkeypatch) -> list[int]:
    """The ranks for which single matrices were factored, in order."""
    asked: list[int] = []
    solve = spectral.leading

    def counting(matrix: Tensor, k: int, *, precise: bool = False) -> leading.Leading:
        asked.append(k)
        return solve(matrix, k, precise=precise)

    monkeypatch.setattr(spectral, "leading", counting)
    return asked


def three_tasks(rows: int = 30, columns: int = 20) -> Tensor:
    return torch.stack([with_values(spectrum("mild", 20), rows, columns, seed) for seed in range(3)]).float()


def test_a_grid_of_ranks_and_weights_factors_once(solves):
    stack = three_tasks()
    solver = TaskMatrices(stack)
    solver.top(9)
    assert solves == [9, 9, 9]
    for k in (9, 4, 2):
        for weight in (0.5, 1.0, -2.0):
            expected = sum(weight * truncated_by_hand(matrix, k) for matrix in stack)
            assert off(solver.truncated_sum(k, [weight] * 3), expected) <= 1e-5
    assert len(solves) == 3


def test_a_larger_rank_later_factors_again_and_stays(solves):
    stack = three_tasks()
    solver = TaskMatrices(stack)
    for k in (4, 9, 4, 9):
        assert off(solver.truncated_sum(k, [1.0] * 3), sum(truncated_by_hand(m, k) for m in stack)) <= 1e-5
    assert solves == [4, 4, 4, 9, 9, 9]


def test_a_complete_factorisation_answers_every_rank(solves):
    stack = torch.stack([with_values(spectrum("deficient", 20), 30, 20, seed) for seed in range(2)]).float()
    solver = TaskMatrices(stack)
    assert [len(found.s) for found in solver.top(10)] == [7, 7]
    assert [len(found.s) for found in solver.top(20)] == [7, 7]
    assert solves == [10, 10]


def test_weights_follow_the_tasks():
    stack = three_tasks()
    weights = [0.25, -1.0, 3.0]
    expected = sum(w * truncated_by_hand(matrix, 4) for w, matrix in zip(weights, stack, strict=True))
    assert off(TaskMatrices(stack).truncated_sum(4, weights), expected) <= 1e-5


@pytest.mark.parametrize(
    ("rank", "k"), [(Rank("ratio", 0.05), 5), (Rank("count", 5), 5), (Rank("ratio", 1.0), 8), (3, 3)]
)
def test_ratios_are_of_the_full_rank(rank, k):
    matrix = with_values(spectrum("mild", 8), 8, 8, 0)
    assert len(TaskMatrices(matrix[None], full=100).top(rank)[0].s) == k


def test_a_ratio_of_the_own_rank_by_default():
    solver = TaskMatrices(three_tasks(30, 20))
    assert [len(found.s) for found in solver.top(Rank("ratio", 0.29))] == [5, 5, 5]


def energy_rank_by_hand(s: np.ndarray, share: float) -> int:
    total = 0.0
    for count, value in enumerate(s, start=1):
        total += float(value) ** 2
        if total >= share * float(np.sum(s.astype(np.float64) ** 2)):
            return count
    return len(s)


@PROPERTY
@given(share=st.floats(0.01, 0.999), power=st.floats(0.0, 2.0), count=st.integers(1, 30))
def test_an_energy_rank_is_the_least_that_holds_the_share(share, power, count):
    s = torch.arange(1, count + 1, dtype=torch.float64) ** -power
    assert energy_rank(s, share) in {energy_rank_by_hand(s.numpy(), share + slack) for slack in (0, -2e-12)}


def test_energy_ranks_at_the_edges():
    assert energy_rank(torch.ones(20), 0.95) == 19
    assert energy_rank(0.1 * torch.ones(10, dtype=torch.float64), 0.3) == 3
    assert energy_rank(torch.tensor([2.0, 1.0, 1e-7, 0.0]), 1.0) == 3
    assert energy_rank(torch.zeros(4), 0.5) == 0
    assert energy_rank(torch.zeros(0), 0.5) == 0


def test_every_matrix_has_its_own_energy_rank():
    kinds = ("equal", "mild", "zero")
    stack = torch.stack([with_values(spectrum(kind, 20), 30, 20, 1) for kind in kinds]).float()
    solver = TaskMatrices(stack)
    expected = [energy_rank_by_hand(spectrum(kind, 20).numpy(), 0.75) for kind in kinds[:2]] + [0]
    assert [len(found.s) for found in solver.top(Rank("energy", 0.75))] == expected == [15, 8, 0]


def test_given_factors_are_used_as_far_as_they_go(solves):
    for stack in (three_tasks(), three_tasks().mT.contiguous()):
        solves.clear()
        first = TaskMatrices(stack).top(6)
        assert solves == [6, 6, 6]
        padded = [Factors(u, torch.where(torch.arange(6) < 5, s, 0), vt) for u, s, vt in first]
        solver = TaskMatrices(stack, given=padded)
        for k in (5, 2):
            assert off(solver.truncated_sum(k, [1.0] * 3), sum(truncated_by_hand(m, k) for m in stack)) <= 1e-5
        assert [len(found.s) for found in solver.top(5)] == [5, 5, 5]
        assert {one.means for one in solver.solves} == {"given"}
        assert len(solves) == 3
        assert off(solver.truncated_sum(7, [1.0] * 3), sum(truncated_by_hand(m, 7) for m in stack)) <= 1e-5
        assert len(solves) == 6


# ---------------------------------------------------------------------------------------------- threads and devices


def test_four_threads_give_the_bytes_of_one():
    stacks = [
        torch.stack([noisy(kind, 90, 130, 10 * seed + task) for task in range(2)]).float()
        for seed, kind in enumerate(["gauss", "0.3", "1.0", "3", "gauss", "0.6"] * 2)
    ]
    barrier = threading.Barrier(4)

    def work(stack: Tensor) -> bytes:
        return TaskMatrices(stack).truncated_sum(9, [1.0, 1.0]).numpy().tobytes()

    def started() -> None:
        lapack.settle_thread()
        barrier.wait()

    alone = [work(stack) for stack in stacks]
    with ThreadPoolExecutor(4, initializer=started) as pool:
        together = list(pool.map(work, stacks))
    assert together == alone


def agree(stack: Tensor, k: int, found: list[leading.Leading]) -> None:
    """Batched triplets mean the same matrices as float64 decompositions."""
    tall = stack.shape[1] >= stack.shape[2]
    for matrix, one in zip(stack.cpu(), found, strict=True):
        near, far = one.near.cpu(), one.far.cpu()
        product = far.mT @ near if tall else near.mT @ far
        assert off(product, truncated_by_hand(matrix, k)) <= GOAL[matrix.dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 6), (6, 1), (24, 16), (16, 24), (16, 16)])
def test_one_batched_call_gives_the_same_matrices(dtype, shape):
    kinds = ("mild", "steep", "cliff", "deficient")
    stack = torch.stack([with_values(spectrum(kind, min(shape)), *shape, 3) for kind in kinds]).to(dtype)
    for k in ranks(stack[0]):
        agree(stack, k, leading.leading_batched(stack, k))
    assert [len(one.s) for one in leading.leading_batched(stack, 0)] == [0, 0, 0, 0]


def test_a_batch_may_hold_zeros_and_extremes():
    mild = with_values(spectrum("mild", 16), 24, 16, 3)
    found = leading.leading_batched(torch.stack([0 * mild, mild * 2.0**-900, mild, mild * 2.0**900]), 5)
    assert [one.means for one in found] == ["zero", *["float64 Gram"] * 3]
    for one, exponent in zip(found[1:], (-900, 0, 900), strict=True):
        assert off((one.far * 2.0**-exponent).mT @ one.near, truncated_by_hand(mild, 5)) <= 1e-11


def test_a_failed_batch_is_decomposed_matrix_by_matrix(monkeypatch):
    def failing(symmetric):
        raise torch.linalg.LinAlgError("no convergence")

    monkeypatch.setattr(torch.linalg, "eigh", failing)
    stack = three_tasks()
    found = leading.leading_batched(stack, 5)
    agree(stack, 5, found)
    assert {one.means for one in found} == {"SVD"}


@pytest.mark.cuda
@pytest.mark.parametrize("shape", [(96, 64), (64, 96)])
def test_a_device_gives_the_same_matrices_and_the_same_bytes_twice(shape):
    stack = torch.stack([noisy("0.5", *shape, seed) for seed in range(4)]).float()
    first, second = (TaskMatrices(stack.cuda()).truncated_sum(9, [1.0] * 4) for _ in range(2))
    assert torch.equal(first, second)
    assert off(first.cpu(), sum(truncated_by_hand(matrix, 9) for matrix in stack)) <= 1e-5
    values = TaskMatrices(stack.cuda()).singular_values()
    for matrix, s in zip(stack, values, strict=True):
        np.testing.assert_allclose(s.cpu(), np.linalg.svd(matrix.double().numpy(), compute_uv=False), rtol=1e-5)


# ---------------------------------------------------------------------------------------------- randomized


@pytest.mark.parametrize("shape", [(300, 120), (120, 300)])
def test_the_randomized_choice_says_how_far_it_is_off(shape):
    steep, flat = noisy("2.0", *shape, 0).float(), noisy("gauss", *shape, 0).float()
    solver = TaskMatrices(torch.stack([steep, flat]), svd="randomized")
    found = solver.top(6)
    assert [one.means for one in solver.solves] == ["randomized", "randomized"]
    u, s, vt = found[0]
    assert off((u * s) @ vt, truncated_by_hand(steep, 6)) <= 1e-4
    for (u, s, vt), matrix, solve in zip(found, (steep, flat), solver.solves, strict=True):
        tolerance = 1e-4
        np.testing.assert_allclose((u.mT @ u).numpy(), np.eye(6), atol=tolerance)
        missed = max(float((matrix @ vt[i] - s[i] * u[:, i]).norm() / s[i]) for i in range(6))
        missed = max(missed, *(float((matrix.mT @ u[:, i] - s[i] * vt[i]).norm() / s[i]) for i in range(6)))
        assert solve.residual == pytest.approx(missed, rel=0.05, abs=1e-5)
    assert solver.solves[1].residual > 1e-2


def test_the_randomized_choice_is_a_function_of_the_matrix_alone():
    stack = torch.stack([noisy("gauss", 60, 50, seed) for seed in range(2)]).float()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = TaskMatrices(stack, svd="randomized").truncated_sum(4, [1.0, 1.0])
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(TaskMatrices(stack, svd="randomized").truncated_sum(4, [1.0, 1.0]), first)


@PROPERTY
@given(matrix=matrices(kinds=("deficient", "zero")))
def test_the_randomized_choice_is_exact_where_the_rank_is_low(matrix):
    found = TaskMatrices(matrix[None], svd="randomized").truncated_sum(min(matrix.shape), [1.0])
    assert off(found, matrix.double().numpy()) <= (1e-5 if matrix.dtype == torch.float32 else 1e-12)
