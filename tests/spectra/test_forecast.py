"""The forecast's view of a merge against the merge itself, its limits, and when it is used at all."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import taskmerge
from taskmerge.experts.classes import classify
from taskmerge.spectra.forecast import CANDIDATES, NUMBERS, Ground, Merge, Trial, kept, ranked, reach
from taskmerge.workflows import recommendation
from taskmerge.workflows.recommendation import holds

TINY = Path(__file__).parents[2] / "examples" / "tiny"
TASKS = ("counts", "digits", "letters", "shapes")
State = dict[str, torch.Tensor]
GOOD = Trial("a", 9, 60, (0.6, 0.3, 0.8), (0.5, 0.2, 0.7), (0.05, 0.04, 0.06), 0.07)


@pytest.fixture(scope="module")
def ground() -> Ground:
    paths = {task: TINY / f"{task}.safetensors" for task in TASKS}
    found = Ground.of(taskmerge.spectrum(paths, base=TINY / "base.safetensors").to_dict())
    assert found is not None
    return found


def steps(states: dict[str, State], base: State) -> dict[str, list[torch.Tensor]]:
    """The matrices of differences from the base, by state."""
    names = [
        name for name, one in states["digits"].items() if classify(name, tuple(one.shape), floating=True) == "linear"
    ]
    return {who: [state[name].double() - base[name].double() for name in names] for who, state in states.items()}


@pytest.mark.parametrize(
    ("method", "options"),
    [("average", {}), ("task_arithmetic", {"coefficient": 0.3}), ("task_arithmetic", {"coefficient": -0.5})],
)
def test_signal_and_spread_of_plain_sums_are_those_of_the_merge(
    ground: Ground, method: str, options: dict[str, float]
) -> None:
    base = load_file(TINY / "base.safetensors")
    states = {task: load_file(TINY / f"{task}.safetensors") for task in TASKS}
    merged = taskmerge.merge(states, base=base, method=method, dtype="float32", **options)
    found = steps({**states, "merged": merged}, base)
    seen = reach(ground, Merge(method, **options))
    weight = options.get("coefficient", 1 / len(TASKS))
    for place, task in enumerate(TASKS):
        own = sum(float(one.square().sum()) for one in found[task])
        inner = sum(float((a * b).sum()) for a, b in zip(found["merged"], found[task], strict=True))
        others = sum(float(one.square().sum()) for who in TASKS if who != task for one in found[who])
        assert seen.signal[place] == pytest.approx(inner / own, rel=1e-4)
        assert seen.spread[place] == pytest.approx(weight**2 * others / own, rel=1e-4)


def test_load_of_a_sum_is_what_lies_in_leading_spaces(ground: Ground) -> None:
    """Of two tasks alone, the load on the second is the first's leading part, seen in the second's spaces; but for the
    report's interference being a mean over matrices, whatever their size."""
    found = {task: load_file(TINY / f"{task}.safetensors") for task in ("digits", "letters")}
    base = load_file(TINY / "base.safetensors")
    pair = taskmerge.spectrum({task: TINY / f"{task}.safetensors" for task in found}, base=TINY / "base.safetensors")
    both = Ground.of(pair.to_dict())
    assert both is not None
    inside = leading = 0.0
    matrices = steps(found, base)
    for first, second in zip(matrices["digits"], matrices["letters"], strict=True):
        k = max(1, int(0.08 * min(first.shape) + 1e-9))
        u, s, vt = torch.linalg.svd(first, full_matrices=False)
        kept_part = (u[:, :k] * s[:k]) @ vt[:k]
        u, s, vt = torch.linalg.svd(second, full_matrices=False)
        inside += float((u[:, :k].T @ kept_part @ vt[:k].T).square().sum())
        leading += float(s[:k].square().sum())
    seen = reach(both, Merge("task_arithmetic", None, 1.0))
    assert seen.load[1] == pytest.approx(inside / leading, rel=0.25)


def test_the_ends_are_base_and_expert(ground: Ground) -> None:
    alone = replace(
        ground, tasks=ground.tasks[:1], norms=ground.norms[:1], cosines=ground.cosines[:1, :1],
        interference=np.zeros((1, 1)), energies=ground.energies[:1], apart=ground.apart[:1],
        energies_apart=ground.energies_apart[:1],
    )  # fmt: skip
    assert kept(ground, Merge("task_arithmetic", None, 0.0)) == pytest.approx(np.zeros(4))
    assert kept(alone, Merge("task_arithmetic", None, 1.0)) == pytest.approx(NUMBERS.signal)


def test_at_full_rank_truncation_is_none(ground: Ground) -> None:
    full, plain = (reach(ground, Merge(*one)) for one in (("cart", 1.0, 2.0), ("average",)))
    for name in ("signal", "load", "spread"):
        assert getattr(full, name) == pytest.approx(getattr(plain, name))
    cut, plain = (
        reach(ground, Merge(*one)) for one in (("truncated_task_arithmetic", 1.0, 0.4), ("task_arithmetic", None, 0.4))
    )
    assert cut.signal == pytest.approx(plain.signal)


@pytest.mark.parametrize("merge", CANDIDATES, ids=str)
def test_forecasts_do_not_depend_on_the_order_of_tasks(ground: Ground, merge: Merge) -> None:
    turned = list(reversed(range(len(TASKS))))
    other = replace(
        ground, tasks=tuple(ground.tasks[place] for place in turned), norms=ground.norms[turned],
        cosines=ground.cosines[np.ix_(turned, turned)], interference=ground.interference[np.ix_(turned, turned)],
        energies=ground.energies[turned], apart=ground.apart[turned], energies_apart=ground.energies_apart[turned],
    )  # fmt: skip
    assert kept(other, merge) == pytest.approx(kept(ground, merge)[turned])
    assert np.isfinite(kept(ground, merge)).all()


def test_energies_lie_between_those_that_were_measured(ground: Ground) -> None:
    shares = [0.0, 0.05, 0.08, 0.2, 0.9, 1.0]
    rows = [ground.energy(share) for share in shares]
    assert all((low <= high).all() for low, high in itertools.pairwise(rows))
    assert rows[0] == pytest.approx(np.zeros(4))
    assert rows[-1] == pytest.approx(np.ones(4))
    assert rows[2] == pytest.approx(ground.energies[:, list(ground.shares).index(0.08)])


def test_what_there_is_no_forecast_of(ground: Ground) -> None:
    with pytest.raises(ValueError, match="no forecast of ties"):
        reach(ground, Merge("ties"))
    paths = [TINY / f"{task}.safetensors" for task in TASKS]
    assert Ground.of(taskmerge.spectrum(paths).to_dict()) is None
    assert Ground.of(taskmerge.spectrum(paths, base=TINY / "base.safetensors", ratios="4").to_dict()) is None


def test_ranks_are_by_the_mean(ground: Ground) -> None:
    found = ranked(ground, CANDIDATES)
    assert [one.mean for one in found] == sorted((one.mean for one in found), reverse=True)
    assert len(found) == len(CANDIDATES)


# --- whether it is used ----------------------------------------------------------------------------------------


def test_a_forecast_holds_where_no_interval_reaches_chance() -> None:
    assert holds((GOOD,))
    assert not holds(())
    assert not holds((GOOD, replace(GOOD, choice=(0.2, -0.03, 0.5))))
    assert not holds((replace(GOOD, correlation=(0.2, -0.1, 0.5)),))


def test_a_forecast_that_holds_decides_and_says_how_sure_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recommendation, "TRIALS", (GOOD,))
    paths = {task: TINY / f"{task}.safetensors" for task in TASKS}
    found = taskmerge.spectrum(paths, base=TINY / "base.safetensors").recommendation
    assert found is not None
    assert set(found["forecast"]["kept"]) == set(TASKS)
    assert found["forecast"]["mean"] >= max(one["kept"] for one in found["others"])
    assert "rank correlation 0.60 [0.30, 0.80] over all" in " ".join(found["ground"])


def test_one_that_does_not_is_said_instead_of_a_score(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recommendation, "TRIALS", (replace(GOOD, choice=(0.2, -0.03, 0.5)),))
    paths = {task: TINY / f"{task}.safetensors" for task in TASKS}
    found = taskmerge.spectrum(paths, base=TINY / "base.safetensors").recommendation
    assert found is not None
    assert (found["method"], found["forecast"], found["others"]) == ("cart", None, [])
    assert "cannot be forecast well enough" in found["ground"][0]
    assert "0.20 [-0.03, 0.50]" in found["ground"][0]
