"""Several updates of the loop are those of `torch.optim.Adam` on the formula, whatever is learnt and in which order."""

from itertools import islice
from pathlib import Path

import pytest
import torch
from adaptation_cases import State, assembled, clip_suite, text_suite
from naive import Form, Merged
from paired import WRAPPERS, Both, Case

from taskmerge.specs.suite import Suite

UPDATES = 5
BATCH = 10
RATES = {"coefficients": 0.03, "masks": 0.05, "relaxed": 0.05, "heads": 0.02, "block": 0.03, "adapter": 0.03}
"""Large ones, so that five updates flip bits and leave [0, 1]."""
PREFIXES = {"head": "heads", "adapter": "adapter", "block": "block"}
CASES = (
    Case("adamerging", Form()),
    Case("adamerging", Form(), {"layout": "task"}),
    Case("adamerging", Form(), {"updates": "sequential"}),
    Case("adamerging", Form(), {"project": True, "coefficient": 0.97}),
    Case("adamerging", Form(clamped=True), {"parity": True, "coefficient": 0.97}),
    Case("adamerging_plus", Form(density=0.2), {"objective": "soft"}),
    Case("cart_plus", Form(origin="mean", rank=0.08)),
    Case("adarank", Form(rank=1.0, temperature=10)),
    Case("adarank", Form(rank=1.0, temperature=10, origin="mean"), {"origin": "mean", "updates": "sequential"}),
    Case("adarank", Form(rank=1.0, temperature=10), {"with_": "tint"}),
    Case("concrete", Form(relaxed=0.5)),
    Case("concrete", Form(relaxed=0.5), {"updates": "sequential", "seed": 3}, train=("relaxed",)),
    Case("tint", Form()),
    Case("tint", Form(), {"updates": "joint"}),
    Case("symerge", Form(), {"filter": "paper"}),
    Case("symerge", Form(), train=("heads",)),
    Case("symerge", Form(), {"layer": "last"}),
    Case("symerge", Form(), model="bert"),
    Case("adarank", Form(rank=1.0, temperature=10, qkv="fused"), {"qkv": "fused"}, model="bert"),
)


def kind_of(name: str) -> str:
    """Whose learning rate a value has."""
    start = name.partition("/")[0]
    return PREFIXES[name.split("/")[2]] if start == "tasks" else start


def by_adam(both: Both, objective: str, filter_: str, *, project: bool) -> tuple[State, int]:
    """The values after all updates by torch's own Adam on the formula's graph, and how many updates had no item."""
    values = both.values()
    learnt = {name: value for name, value in values.items() if value.requires_grad}
    adam = torch.optim.Adam([{"params": [value], "lr": RATES[kind_of(name)]} for name, value in learnt.items()])
    skipped = 0
    for update in range(UPDATES):
        adam.zero_grad()
        loss = both.loss(both.answers(values, update), objective, "outputs", filter_)
        if loss is None:
            skipped += 1
            continue
        loss.backward()
        adam.step()
        if project:
            with torch.no_grad():
                values["coefficients"].clamp_(0, 1)
    return {name: value.detach() for name, value in values.items()}, skipped


@pytest.fixture(scope="module")
def suites(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Suite]:
    folder = tmp_path_factory.mktemp("updates")
    return {"clip": clip_suite(folder / "clip"), "bert": text_suite(folder / "bert", "bert")}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_five_updates_are_those_of_adam_on_the_formula(case: Case, suites: dict[str, Suite], tmp_path: Path) -> None:
    suite = suites[case.model]
    keywords = {**case.options, "train": case.train, "batch_size": BATCH, "iterations": UPDATES}
    rates = {"lr": RATES["coefficients"], "head_lr": RATES["heads"], "mask_lr": RATES["masks"]}
    found = assembled(suite, tmp_path / "out", method=case.method, compute_dtype="float64", **keywords, **rates)
    both, run = Both(found, Merged.of(suite, case.form, WRAPPERS[case.model])), found.run
    objective = run.sides[0].objective
    wanted, skipped = by_adam(both, objective.name, objective.filter, project=run.project)
    masks = {name: value.detach() > 0 for name, value in run.on_weights.values.items() if name.startswith("masks/")}
    records = list(islice(run.updates(), UPDATES))
    assert [record.update for record in records] == list(range(1, UPDATES + 1))
    assert sum(record.skipped is not None for record in records) == skipped < UPDATES
    for name, value in run.optimised.values.items():
        torch.testing.assert_close(value.detach(), wanted[name], rtol=0, atol=1e-8, msg=lambda m, n=name: f"{n}: {m}")
    flipped = sum(int(((wanted[name] > 0) != bits).sum()) for name, bits in masks.items())
    assert sum(record.flips for record in records) >= flipped
    assert bool(flipped) == (case.method == "adarank")


def test_projection_keeps_coefficients_alive_and_clamping_lets_them_die(
    suites: dict[str, Suite], tmp_path: Path
) -> None:
    """From just below 1: projected ones end at 1 and move back; clamped ones leave the interval for good."""
    ends = {}
    for name, option in (("projected", {"project": True}), ("clamped", {"parity": True})):
        options = {"coefficient": 0.99, "iterations": UPDATES, "batch_size": BATCH, "lr": 0.03, **option}
        run = assembled(suites["clip"], tmp_path / name, method="adamerging", compute_dtype="float64", **options).run
        list(run.updates())
        ends[name] = run.on_weights.values["coefficients"].detach()
    assert float(ends["projected"].max()) == 1.0
    assert float(ends["clamped"].max()) > 1.0


def test_what_is_not_learnt_is_not_projected(suites: dict[str, Suite], tmp_path: Path) -> None:
    options = {"coefficient": 2.3, "iterations": 1, "batch_size": BATCH}
    run = assembled(suites["clip"], tmp_path / "out", method="adarank", train=("masks",), **options).run
    run.project = True
    list(run.updates())
    assert bool((run.on_weights.values["coefficients"] == 2.3).all())
