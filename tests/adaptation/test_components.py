"""Components against loops in float64: what they form is the formula, what they pull is its gradient."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from composed_cases import LAYER, TASKS, Qkv, expected, experts, learned, matrices, weights, write_models
from taskmerge.adaptation.components import Composed, Dense, Factored, Masked, stacked_bits
from taskmerge.adaptation.rows import Plan, composed
from taskmerge.experts.rows import Rows, even
from taskmerge.experts.tensors import TRUNCATED, Part, Unit
from taskmerge.merging.prepare import prepare
from taskmerge.merging.request import requested
from taskmerge.methods.adaptive import Components, Trimmed, Truncated, Whole
from taskmerge.methods.composed import Learned, Triplets
from taskmerge.numerics.rank import Rank
from taskmerge.numerics.spectral import Factors

QKV: tuple[Qkv, ...] = ("as-is", "split", "fused")
ALL = Truncated(Rank("ratio", 1.0))
HALVES = (torch.bfloat16, torch.float16)


def opened(
    folder: Path, components: Components, qkv: Qkv = "as-is", *, origin: str = "base",
    stored: torch.dtype = torch.float32, dtype: torch.dtype = torch.float64, workers: int = 1,
    shared_mask: bool = False,
) -> tuple[Composed, ...]:  # fmt: skip
    """The components of the small experts of `composed_cases`."""
    models = write_models(folder / "models", stored)
    options = {"rank": components.rank} if isinstance(components, Truncated) else {}
    request = requested(experts(models), {
        "method": f"composed_{origin}", "base": models["base"], "qkv": qkv, "learned": Learned(TASKS, {}),
        "output": folder / "m.safetensors", **options,
    })  # fmt: skip
    ready = prepare(request.inputs, request.spec, request.opening, request.running)
    units = [job.unit for job in ready.plan.jobs if job.action == "merge"]
    factored = {job.name for job in ready.plan.jobs if job.factored}
    rows = Rows(
        ready.inputs.base, ready.inputs.experts, "delta" if origin == "base" else "centred",
        even(ready.inputs.experts), dtype,
    )  # fmt: skip
    spots = {part.name: part.name for unit in units for part in unit.parts}
    found = composed(Plan(units, factored, components, shared_mask), rows, spots, workers=workers, in_flight=10**9)
    ready.inputs.close()
    return found


def formed(pieces: tuple[Composed, ...], what: Learned) -> dict[str, Tensor]:
    """The merged tensors, part by part."""
    found = {}
    for one in pieces:
        mask, gates = what.masks.get(one.name), None
        if mask is not None and isinstance(one.component, Factored):
            gates = torch.cat([
                triplets.gates(own) for triplets, own in zip(one.component.matrices, mask, strict=True)
            ]).to(one.origin)  # fmt: skip
        whole = one.origin + one.component.form(what.coefficients[one.name].to(one.origin), gates)
        offset = 0
        for part in one.unit.parts:
            found[part.name] = whole[offset : offset + part.numel].view(part.shape)
            offset += part.numel
    return found


# --- what experts' files become ----------------------------------------------------------------------------------


@pytest.mark.parametrize("origin", ["base", "mean"])
@pytest.mark.parametrize("qkv", QKV)
@pytest.mark.parametrize("masked", [False, True])
def test_the_formula(tmp_path: Path, origin: str, qkv: Qkv, masked: bool) -> None:
    """Fused and split attention, a stack of experts' matrices, kernels, vectors, a scalar: as a merge forms them."""
    pieces = opened(tmp_path, ALL, qkv, origin=origin)
    base, stacks = weights(write_models(tmp_path / "models"))
    start = base if origin == "base" else {name: stack.mean(0) for name, stack in stacks.items()}
    what = learned(qkv, 99 if masked else None)
    wanted = expected(start, stacks, what, qkv, k=99)
    found = formed(pieces, what)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-12)


@pytest.mark.parametrize("stored", HALVES)
@pytest.mark.parametrize("origin", ["base", "mean"])
def test_experts_of_half_precision_are_kept_as_they_are(tmp_path: Path, stored: torch.dtype, origin: str) -> None:
    """Half the memory, and no digit lost: the difference is taken in float32 on the way."""
    pieces = opened(tmp_path, Whole(), origin=origin, stored=stored, dtype=torch.float32)
    base, stacks = weights(write_models(tmp_path / "models", stored))
    start = base if origin == "base" else {name: stack.mean(0) for name, stack in stacks.items()}
    what = learned("as-is")
    wanted, found = expected(start, stacks, what), formed(pieces, what)
    generator = torch.Generator().manual_seed(1)
    for one in pieces:
        assert isinstance(one.component, Dense)
        assert one.component.rows.dtype == stored
        scale = float(stacks[one.name].abs().max())
        torch.testing.assert_close(found[one.name].double(), wanted[one.name], rtol=0, atol=2e-6 * scale)
        grad = torch.randn(one.origin.numel(), generator=generator)
        pulled, _ = one.component.pull(grad, what.coefficients[one.name], None)
        exact = (stacks[one.name] - start[one.name]).reshape(len(TASKS), -1) @ grad.double()
        size = float(stacks[one.name].norm() * grad.norm())
        torch.testing.assert_close(pulled.double(), exact, rtol=0, atol=1e-6 * size)


def test_workers_change_no_bit(tmp_path: Path) -> None:
    one, other = opened(tmp_path, ALL, dtype=torch.float32), opened(tmp_path, ALL, dtype=torch.float32, workers=3)
    assert [piece.name for piece in one] == [piece.name for piece in other]
    what = learned("as-is", 99)
    assert all(torch.equal(a, b) for a, b in zip(formed(one, what).values(), formed(other, what).values(), strict=True))


def test_a_shared_mask_needs_dense_rows(tmp_path: Path) -> None:
    pieces = opened(tmp_path, Whole(), shared_mask=True)
    assert all(isinstance(one.component, Masked) and one.component.stored == one.unit.numel for one in pieces)
    trimmed = opened(tmp_path / "plain", Trimmed(0.2)), opened(tmp_path / "masked", Trimmed(0.2), shared_mask=True)
    for one, other in zip(*trimmed, strict=True):
        assert isinstance(one.component, Dense)
        assert isinstance(other.component, Masked)
        assert torch.equal(one.component.rows, other.component.rows)


# --- gradients -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("qkv", QKV)
@pytest.mark.parametrize("gated", [False, True])
def test_pull_is_the_gradient_of_form(tmp_path: Path, qkv: Qkv, gated: bool) -> None:
    """Of every kind of tensor, for weights between 0 and 1 too, as relaxed masks have them."""
    generator = torch.Generator().manual_seed(4)

    def random(count: int) -> Tensor:
        return torch.randn(count, generator=generator, dtype=torch.float64)

    for one in opened(tmp_path, ALL, qkv):
        coefficients = random(len(TASKS)).requires_grad_()
        stored = one.component.stored
        gates = random(stored).requires_grad_() if gated and stored else None
        grad = random(one.origin.numel())
        rows = dense_rows(one, gates)
        wanted = torch.autograd.grad((coefficients @ rows) @ grad, [coefficients, *([] if gates is None else [gates])])
        with torch.no_grad():
            of_tasks, of_gates = one.component.pull(grad, coefficients, gates)
            torch.testing.assert_close(one.component.form(coefficients, gates), (coefficients @ rows).detach())
        torch.testing.assert_close(of_tasks, wanted[0], rtol=1e-11, atol=1e-12)
        assert (of_gates is None) == (gates is None)
        if of_gates is not None:
            torch.testing.assert_close(of_gates, wanted[1], rtol=1e-11, atol=1e-12)


def dense_rows(one: Composed, gates: Tensor | None) -> Tensor:
    """[T, n]: D_t as a graph of the gates, one component after the other."""
    if isinstance(one.component, Dense):
        return one.component.rows
    assert isinstance(one.component, Factored)
    rows, done = [[] for _ in TASKS], 0
    for triplets in one.component.matrices:
        for task in range(len(TASKS)):
            total = torch.zeros(one.unit.matrix, dtype=torch.float64)
            for place in (triplets.tasks == task).nonzero().flatten().tolist():
                gate = 1.0 if gates is None else gates[done + place]
                total = total + gate * triplets.values[place] * torch.outer(triplets.left[place], triplets.right[place])
            rows[task].append(total)
        done += len(triplets.values)
    if one.unit.kind == "stack":
        return torch.stack([torch.stack(own).flatten() for own in rows])
    return torch.stack([torch.cat(own, dim=one.unit.axis).flatten() for own in rows])


def test_side_by_side_matrices_are_cut_along_their_axis() -> None:
    """GPT-2 has q, k and v side by side: [d, 3d]."""
    generator = torch.Generator().manual_seed(0)
    unit = Unit((Part("h.0.attn.c_attn.weight", (4, 12)),), (4, 12), "linear", pieces=3, axis=1)
    triplets = [
        Triplets(torch.randn(2, 4, generator=generator), torch.ones(2), torch.randn(2, 4, generator=generator),
                 torch.tensor([0, 1]))
        for _ in range(3)
    ]  # fmt: skip
    component, coefficients = Factored(unit, tuple(triplets)), torch.tensor([1.0, 2.0])
    wanted = torch.cat([one.form(coefficients) for one in triplets], dim=1)
    assert torch.equal(component.form(coefficients, None), wanted.flatten())


def test_a_masked_vector_and_its_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    rows, mask, grad = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((3, 7), (7,), (7,)))
    coefficients = torch.randn(3, generator=generator, dtype=torch.float64).requires_grad_()
    mask.requires_grad_()
    formed = (coefficients[:, None] * rows * mask).sum(0)
    wanted = torch.autograd.grad(formed @ grad, [coefficients, mask])
    with torch.no_grad():
        torch.testing.assert_close(Masked(rows).form(coefficients, mask), formed.detach())
        for found, own in zip(Masked(rows).pull(grad, coefficients, mask), wanted, strict=True):
            torch.testing.assert_close(found, own)


# --- masks -----------------------------------------------------------------------------------------------------

COUNTS = st.lists(st.lists(st.integers(0, 4), min_size=3, max_size=3), min_size=1, max_size=3)


@settings(max_examples=60, deadline=None)
@given(COUNTS, st.integers(0, 2**31))
def test_stacked_bits_are_read_back_as_the_same_gates(counts: list[list[int]], seed: int) -> None:
    """Whatever numbers of components tasks have: M matrices of T tasks of k each, absent ones off."""
    generator = torch.Generator().manual_seed(seed)
    stored = [Triplets.of([factors(count) for count in own]) for own in counts]
    gates = [(torch.rand(len(own.values), generator=generator) < 0.5).float() for own in stored]
    bits = stacked_bits(gates, [own.tasks for own in stored], 3)
    assert bits.shape == (len(counts), 3, max(map(max, counts)))
    assert bits.dtype == torch.bool
    assert int(bits.sum()) == sum(int(own.sum()) for own in gates)
    for own, gate, mask in zip(stored, gates, bits, strict=True):
        assert torch.equal(own.gates(mask), gate > 0)


def factors(count: int) -> Factors:
    return Factors(torch.ones(5, count), torch.ones(count), torch.ones(count, 6))


def test_starts_and_bits_of_a_stack(tmp_path: Path) -> None:
    """Three matrices, each task's first components."""
    name = LAYER + "mlp.experts.down_proj"
    one = next(piece for piece in opened(tmp_path, ALL) if piece.name == name)
    assert isinstance(one.component, Factored)
    count, side = matrices("as-is")[name][0], min(matrices("as-is")[name][1:])
    assert one.component.stored == count * len(TASKS) * side
    kept = [[1, 2, 3], [0, 6, 99], [4, 4, 4]]
    gates = one.component.starts(kept)
    bits = one.component.bits(gates.double(), len(TASKS))
    assert bits.shape == (count, len(TASKS), side)
    assert bits.sum(2).tolist() == [[1, 2, 3], [0, 6, 6], [4, 4, 4]]
    assert all(bool((row.int().diff() <= 0).all()) for matrix in bits for row in matrix)
    assert {one.unit.kind for one in opened(tmp_path, ALL) if isinstance(one.component, Factored)} <= set(TRUNCATED)
