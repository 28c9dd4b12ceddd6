"""The models of sweeps are those that the engine merges, whatever way they were come by."""

from itertools import combinations
from pathlib import Path

import pytest
import torch
from sweep_cases import RANKS, TASKS, assert_same, base, exactly, held, merged, opened, request, states

from taskmerge.methods.task_arithmetic import usual_coefficient
from taskmerge.numerics.gray import gray_subsets
from taskmerge.numerics.rank import Rank
from taskmerge.workflows.sweeps import subsets
from taskmerge.workflows.sweeps.factored import Factored, Sums, kept, reach
from taskmerge.workflows.sweeps.grid import GridPoint, methods, walk
from taskmerge.workflows.sweeps.routing import _serve

FOUR = (*TASKS, "textures")


def grid(method: str, *, reversed: bool = False, coefficient: float = 1.5) -> list[GridPoint]:
    return [GridPoint(method, rank, coefficient, reversed) for rank in RANKS]


def test_every_point_of_a_grid_is_the_engines_merge(tmp_path: Path) -> None:
    with opened(request(tmp_path, "rank")) as found:
        assert methods(found.encoder) == ("cart", "truncated_task_arithmetic")
        points = [point for method in methods(found.encoder) for point in grid(method)]
        for point, form in walk(found.encoder, points, tmp_path / "scratch"):
            form()
            wanted = merged(TASKS, point.method, rank=point.rank, coefficient=point.coefficient)
            assert_same(held(found.encoder), wanted)
        assert not list((tmp_path / "scratch").iterdir())


def test_a_point_is_the_same_whether_those_before_it_are_formed(tmp_path: Path) -> None:
    with opened(request(tmp_path, "rank")) as found:
        first = {}
        for point, form in walk(found.encoder, grid("cart"), tmp_path / "one"):
            form()
            first[point] = held(found.encoder)
        for point, form in walk(found.encoder, grid("cart"), tmp_path / "two"):
            if point.rank == RANKS[1]:
                form()
                again = held(found.encoder)
                assert all(torch.equal(again[name], values) for name, values in first[point].items())


@pytest.mark.parametrize("method", ["cart", "truncated_task_arithmetic"])
def test_reversed_merges_keep_the_lowest_components(tmp_path: Path, method: str) -> None:
    """Against singular value decompositions in float64, and so the mirror image of the proper merge at r - k."""
    experts, origin = states(), base()
    with opened(request(tmp_path, "rank")) as found:
        matrices = {job.name for job in found.encoder.jobs if job.factored}
        assert len(matrices) == 16
        for point, form in walk(found.encoder, grid(method, reversed=True, coefficient=0.8), tmp_path / "scratch"):
            form(exact=True)
            result = held(found.encoder)
            for name in matrices:
                stack = torch.stack([experts[task][name].double() for task in TASKS])
                about = stack.mean(0) if method == "cart" else origin[name].double()
                total = torch.zeros_like(about)
                for matrix in stack:
                    u, s, vt = torch.linalg.svd(matrix - about, full_matrices=False)
                    low = len(s) - point.rank.resolve(len(s))
                    total += (u[:, low:] * s[low:]) @ vt[low:]
                wanted = about + 0.8 * total
                assert (result[name].double() - wanted.reshape(-1)).norm() <= 2e-6 * wanted.norm()


def test_cart_of_two_is_their_average_at_every_rank(tmp_path: Path) -> None:
    two = TASKS[:2]
    wanted = merged(two, "average")
    with opened(request(tmp_path, "rank", tasks=two)) as found:
        for _, form in walk(found.encoder, grid("cart") + grid("cart", reversed=True), tmp_path / "scratch"):
            form()
            assert_same(held(found.encoder), wanted, last_bits=1)


def test_one_expert_serves_its_own_task_at_full_rank(tmp_path: Path) -> None:
    experts = states()
    with opened(request(tmp_path, "routing")) as found:
        encoder = found.encoder
        for space, start in (("centred", "cart"), ("delta", "truncated_task_arithmetic")):
            factored = Factored(encoder, space, tmp_path).write(reach([kept(rank) for rank in RANKS]))  # type: ignore[arg-type]
            sums = Sums(factored, ["digits"])
            matrix = next(job for job in encoder.jobs if job.factored)
            bias = next(job for job in encoder.jobs if job.name.endswith("in_proj_bias"))
            sums.advance(kept(RANKS[0]))
            _serve(sums, "digits")
            stack = torch.stack([experts[task][matrix.name].double() for task in TASKS])
            about = stack.mean(0) if start == "cart" else base()[matrix.name].double()
            u, s, vt = torch.linalg.svd(experts["digits"][matrix.name].double() - about, full_matrices=False)
            k = RANKS[0].resolve(len(s))
            wanted = (about + (u[:, :k] * s[:k]) @ vt[:k]).half()
            assert_same({matrix.name: encoder.get(matrix)}, {matrix.name: wanted}, last_bits=1)
            assert torch.equal(encoder.get(bias), experts["digits"][bias.name].float())
            sums.advance(kept(Rank("ratio", 1.0)))
            _serve(sums, "digits")
            assert exactly(held(encoder), experts["digits"])


@pytest.mark.parametrize("tasks", [TASKS, pytest.param(FOUR, marks=pytest.mark.slow)])
def test_every_subset_is_the_engines_merge(tmp_path: Path, tasks: tuple[str, ...]) -> None:
    with opened(request(tmp_path, "subsets", tasks=tasks)) as found:
        encoder = found.encoder
        running = subsets.Running(encoder)
        seen = set()
        for changed, members in gray_subsets(len(tasks)):
            running.toggle(changed, members)
            names = [encoder.tasks[member] for member in members]
            seen.add(tuple(names))
            assert_same(held(encoder), merged(names, "average"), last_bits=1)
            average = held(encoder)
            running.task_arithmetic()
            scale = usual_coefficient(len(names))
            assert_same(held(encoder), merged(names, "task_arithmetic", coefficient=scale), last_bits=1)
            subsets.cart(running)
            assert_same(held(encoder), merged(names, "cart", rank="0.08"))
            running.average()
            assert exactly(held(encoder), average)
        assert seen == {names for size in range(1, 5) for names in combinations(sorted(tasks), size)}


def test_references_are_the_models_themselves(tmp_path: Path) -> None:
    with opened(request(tmp_path, "rank")) as found:
        found.encoder.average(["digits"])
        assert exactly(held(found.encoder), states()["digits"])
        found.encoder.average()
        assert exactly(held(found.encoder), merged(TASKS, "average"))
        found.encoder.original()
        assert exactly(held(found.encoder), base())
        found.encoder.summed(["digits", "shapes"], 0.3)
        assert_same(held(found.encoder), merged(["digits", "shapes"], "task_arithmetic", coefficient=0.3), last_bits=1)
