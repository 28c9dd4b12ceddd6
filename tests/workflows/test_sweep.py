"""Whole sweeps: the same whether they were stopped or not, right by definition, and clear about what they lack."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import scipy.stats
import torch
from sweep_cases import EXAMPLE, RANKS, TASKS, held, opened, request, states

import taskmerge
from taskmerge.errors import BadFile, TaskmergeError, UsageError
from taskmerge.methods.task_arithmetic import usual_coefficient
from taskmerge.numerics.rank import Rank
from taskmerge.workflows.sweeps import judge as judging
from taskmerge.workflows.sweeps.components import ComponentsSweep, indices
from taskmerge.workflows.sweeps.gradients import gradients
from taskmerge.workflows.sweeps.landscape import AVERAGE, BASE, LandscapeSweep, atlas_of
from taskmerge.workflows.sweeps.pairs import chance_of, fisher_interval
from taskmerge.workflows.sweeps.request import KINDS, SweepRequest, coefficients, kinds, ranks
from taskmerge.workflows.sweeps.sweep import sweep_asked as sweep

SHORT = {"limit": 3, "ranks": RANKS[:2], "coefficients": (0.5,)}


class Killed(BaseException):
    """What ends a run from outside."""


def plain(document: Mapping[str, Any]) -> str:
    return json.dumps(document, sort_keys=True)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "sweeps").iterdir())}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_sweep_that_was_killed_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr("taskmerge.workflows.sweeps.landscape.SIDE", 3)
    monkeypatch.setattr("taskmerge.workflows.sweeps.landscape.AROUND", 3)
    monkeypatch.setattr("taskmerge.workflows.sweeps.components.indices", lambda full: [1, 2, full])
    whole = sweep(request(tmp_path / "whole", kind, **SHORT))
    outputs, left = judging.Judge.outputs, 14

    def until_killed(self: judging.Judge, label: str, name: str) -> torch.Tensor:
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed
        return outputs(self, label, name)

    monkeypatch.setattr(judging.Judge, "outputs", until_killed)
    stops = 0
    for _ in range(40):
        left = 14
        try:
            again = sweep(request(tmp_path / "stopped", kind, **SHORT))
            break
        except Killed:
            stops += 1
            file = max((tmp_path / "stopped" / "sweeps").glob("*.jsonl"), key=lambda path: path.stat().st_mtime_ns)
            with file.open("ab") as torn:
                torn.write(b'["half a li')
    assert stops > 0
    assert plain(again.document) == plain(whole.document)
    assert files(tmp_path / "stopped") == files(tmp_path / "whole")


def test_what_was_found_is_not_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = request(tmp_path, "rank", **SHORT)
    first = sweep(asked)
    heard: list[tuple[int, int]] = []

    def never(*_: object) -> None:
        raise AssertionError("nothing is to be encoded")

    with monkeypatch.context() as patched:
        patched.setattr(judging.Judge, "outputs", never)
        again = sweep(replace(asked, progress=lambda done, total: heard.append((done, total))))
        assert plain(again.document) == plain(first.document)
    sweep(replace(asked, kinds=("rank", "coefficient"), progress=lambda done, total: heard.append((done, total))))
    assert heard[-1] == (27, 27)  # nine tasks' worth of three items: three methods at one coefficient
    assert [done for done, _ in heard] == sorted(done for done, _ in heard)


def test_other_items_are_another_sweep(tmp_path: Path) -> None:
    asked = request(tmp_path, "rank", **SHORT)
    sweep(asked)
    sweep(replace(asked, limit=4))
    assert len(list((tmp_path / "sweeps").glob("rank-*.jsonl"))) == 2


def test_scores_carry_intervals_and_means(tmp_path: Path) -> None:
    document = sweep(request(tmp_path, "rank", "routing", "pairs", **SHORT)).document
    assert [task["name"] for task in document["tasks"]] == ["digits", "shapes", "colours"]  # the suite's order
    experts = {entry["task"]: entry["score"] for entry in document["references"]["experts"]["scores"]}
    points = [*document["rank"]["points"], *document["routing"]["points"]]
    assert len(points) == 2 * 2 * 2 + 2 * 2
    for point in points:
        for entry in point["scores"]:
            assert 0 <= entry["low"] <= entry["score"] <= entry["high"] <= 1
            assert entry["n"] == 3
        values = [entry["score"] for entry in point["scores"]]
        assert point["average"]["value"] == pytest.approx(sum(values) / 3)
        assert point["average"]["low"] < point["average"]["value"] < point["average"]["high"]
        if all(experts.values()):
            relative = [entry["score"] / experts[entry["task"]] for entry in point["scores"]]
            assert point["normalised"] == pytest.approx(sum(relative) / 3)
    pairs = document["pairs"]["pairs"]
    assert [(pair["encoder"], pair["task"]) for pair in pairs] == [
        (first, second) for first in document_names(document) for second in document_names(document) if first != second
    ]


def document_names(document: Mapping[str, Any]) -> list[str]:
    return [task["name"] for task in document["tasks"]]


def test_means_over_subsets_have_standard_errors(tmp_path: Path) -> None:
    document = sweep(request(tmp_path, "subsets", **SHORT)).document
    assert len(document["subsets"]["points"]) == 3 * 7
    for size in document["subsets"]["sizes"]:
        own = [point for point in document["subsets"]["points"]
               if point["method"] == size["method"] and len(point["tasks"]) == size["tasks"]]  # fmt: skip
        values = torch.tensor([point["average"]["value"] for point in own], dtype=torch.float64)
        assert size["subsets"] == len(own) == {1: 3, 2: 3, 3: 1}[size["tasks"]]
        assert size["average"]["mean"] == pytest.approx(float(values.mean()))
        wanted = None if len(own) == 1 else pytest.approx(float(values.std()) / len(own) ** 0.5)
        assert size["average"]["se"] == wanted
    one = {(point["method"], *point["tasks"]): point["scores"] for point in document["subsets"]["points"]}
    for pair in (("colours", "digits"), ("digits", "shapes"), ("colours",)):
        assert one["cart", *pair] == one["average", *pair]


# --- components ------------------------------------------------------------------------------------------------


def test_adding_a_component_changes_losses_as_defined(tmp_path: Path) -> None:
    with opened(request(tmp_path, "components", matrices=("visual*.1.mlp.c_fc.weight",))) as found:
        one = ComponentsSweep(found)
        walked = [(point, measure) for point, measure in one.walk(tmp_path) if point["task"] == "digits"]
        assert [point["component"] for point, _ in walked] == indices(96)
        (matrix,) = {point["matrix"] for point, _ in walked}
        results = {point["component"]: measure() for point, measure in walked if point["component"] in (1, 3)}
        encoder, scale = found.encoder, usual_coefficient(3)
        assert one.coefficient == scale == 0.3
        before = {name: one.judge.losses("others", name) for name in found.names}
        with torch.no_grad():
            origin = states(["digits"])["digits"][matrix].double()
            from sweep_cases import base

            u, s, vt = torch.linalg.svd(origin - base()[matrix].double(), full_matrices=False)
            job = next(job for job in encoder.jobs if job.name == matrix)
            still = encoder.get(job)
            for component, result in results.items():
                at = component - 1
                assert result["value"] == pytest.approx(float(s[at]), rel=1e-4)
                assert result["share"] == pytest.approx(float(s[at] ** 2 / s.square().sum()), rel=1e-3)
                step = (scale * s[at] * torch.outer(u[:, at], vt[at])).float()
                encoder.put(job, still + step.reshape(-1), exact=True)
                for change in result["changes"]:
                    after = one.judge.losses("others", change["task"]) - before[change["task"]]
                    assert change["change"] == pytest.approx(float(after.mean()), abs=1e-6)
                    assert change["se"] == pytest.approx(float(after.std()) / 5**0.5, abs=1e-6)
                encoder.put(job, still, exact=True)


def test_the_proxy_is_the_slope_of_the_loss(tmp_path: Path) -> None:
    with opened(request(tmp_path, "components")) as found:
        one = ComponentsSweep(found)
        found.encoder.average()
        jobs = one._chosen()
        assert sorted(job.unit.role or "" for job in jobs) == ["attention", "mlp"]
        for name in found.names:
            slopes = gradients(found, one.judge, name, jobs)
            assert slopes is not None
            for job in jobs:
                still = found.encoder.get(job)
                direction = torch.randn(still.shape, generator=torch.Generator().manual_seed(3))
                slope = float((slopes[job.name].reshape(-1) * direction).sum())
                values = []
                for sign in (1, -1):
                    found.encoder.put(job, still + sign * 3e-4 * direction, exact=True)
                    values.append(float(one.judge.losses("moved", name).mean()))
                found.encoder.put(job, still, exact=True)
                assert slope == pytest.approx((values[0] - values[1]) / 6e-4, rel=0.05, abs=2e-3)
        assert not any(parameter.requires_grad for parameter in found.module.parameters())


def test_losses_may_be_taken_against_the_experts(tmp_path: Path) -> None:
    asked = request(tmp_path, "landscape", labels="expert")
    with opened(asked) as found:
        judge = found.losses
        assert judge is not None
        assert found.scores is None
        for name in found.names:
            found.encoder.average([name])
            assert judge.tasks[name].source == "expert"
            assert torch.equal(judge.outputs("the expert", name).argmax(1), judge.tasks[name].labels)


# --- the plane -------------------------------------------------------------------------------------------------


def test_the_plane_goes_through_the_models(tmp_path: Path) -> None:
    with opened(request(tmp_path, "landscape")) as found:
        encoder = found.encoder
        models = LandscapeSweep(found)._models()
        assert models == [*sorted(TASKS), AVERAGE, BASE]
        atlas = atlas_of(encoder, tmp_path / "plane", models)
        vectors = []
        for model in models:
            if model == BASE:
                encoder.original()
            else:
                encoder.average(None if model == AVERAGE else [model])
            vectors.append(torch.cat(list(held(encoder).values())).double())
        stack = torch.stack(vectors)
        centred = stack - stack.mean(0)
        _, s, _ = torch.linalg.svd(centred, full_matrices=False)
        shares = s.square()[:2] / s.square().sum()
        assert atlas.plane.shares == pytest.approx(shares.tolist(), rel=1e-3)
        for place, model in enumerate(models):
            x, y = atlas.plane.coordinates[place].tolist()
            atlas.put(x, y)
            at = torch.cat(list(held(encoder).values())).double()
            off = float((stack[place] - at).norm())
            assert off == pytest.approx(float(atlas.plane.off[place]), rel=1e-2, abs=2e-2), model
            atlas.put(0.1, -0.2, around=model) if model in TASKS else None
        atlas.put(0.0, 0.0)
        assert float((torch.cat(list(held(encoder).values())).double() - stack.mean(0)).norm()) < 2e-2


def test_ways_are_located_where_their_models_are(tmp_path: Path) -> None:
    with opened(request(tmp_path, "landscape")) as found:
        encoder = found.encoder
        models = LandscapeSweep(found)._models()
        atlas = atlas_of(encoder, tmp_path / "plane", models)

        def the_average(also: Any) -> None:
            encoder.average()
            for job in encoder.jobs:
                also(job, encoder.get(job))

        place = models.index(AVERAGE)
        located = atlas.located(the_average)
        assert [located["x"], located["y"]] == pytest.approx(atlas.plane.coordinates[place].tolist(), abs=1e-3)
        assert located["distance"] == pytest.approx(float(atlas.plane.off[place]), rel=0.05, abs=0.02)


def test_a_landscape_says_where_everything_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskmerge.workflows.sweeps.landscape.SIDE", 2)
    monkeypatch.setattr("taskmerge.workflows.sweeps.landscape.AROUND", 3)
    document = sweep(request(tmp_path, "landscape", **{**SHORT, "ranks": RANKS[:1]})).document["landscape"]
    assert set(document["labels"].values()) == {"true"}
    assert 0 < sum(document["variance_shares"]) <= 1
    assert len(document["models"]) == 5
    assert len(document["grid"]) == 4
    assert len(document["near"]) == 3 * 9
    assert len(document["ways"]) == 2 * 2  # a rank and a coefficient, of either method
    for way in document["ways"]:
        assert way["distance"] >= 0
        assert [entry["task"] for entry in way["losses"]] == document_names_of(document)
    middle = [one for one in document["near"] if one["column"] == one["row"] == 1]
    at_experts = {one["model"]: one["losses"] for one in document["models"]}
    for one in middle:
        (own,) = one["losses"]
        known = next(entry for entry in at_experts[one["task"]] if entry["task"] == one["task"])
        assert (one["x"], one["y"]) == (0, 0)
        assert own["mean"] == pytest.approx(known["mean"], rel=1e-6)


def document_names_of(landscape: Mapping[str, Any]) -> list[str]:
    return list(landscape["labels"])


# --- pairs -----------------------------------------------------------------------------------------------------


def test_correlations_are_scipys() -> None:
    generator = torch.Generator().manual_seed(0)
    for count in (4, 9, 30):
        x = torch.randn(count, generator=generator, dtype=torch.float64)
        y = 0.5 * x + torch.randn(count, generator=generator, dtype=torch.float64)
        wanted = scipy.stats.pearsonr(x.numpy(), y.numpy())
        r = float(wanted.statistic)
        assert chance_of(r, count) == pytest.approx(float(wanted.pvalue))
        assert fisher_interval(r, count) == pytest.approx(tuple(wanted.confidence_interval()))
    assert fisher_interval(1.0, 9) == (None, None)
    assert chance_of(1.0, 9) == 0


# --- what is refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "message"),
    [("rnak", "did you mean `rank`"), ("", "unknown sweep"), ("rank,,pairs", "unknown sweep")],
)
def test_unknown_kinds(said: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        kinds(said)
    assert message in f"{caught.value.what} {caught.value.hint}"


def test_kinds_come_in_one_order() -> None:
    assert kinds("pairs,rank,rank") == ("rank", "pairs")
    assert kinds(["landscape", "coefficient"]) == ("coefficient", "landscape")


def test_grids() -> None:
    assert ranks("0.3,0.1:0.2:0.1,0.1") == tuple(map(Rank.parse, ("0.1", "0.2", "0.3")))
    assert coefficients("2,0.5") == (0.5, 2.0)
    for said in ("1.5", "0", "-3", "many", "0.1:0.5"):
        with pytest.raises(UsageError) as caught:
            ranks(said)
        assert caught.value.exit_code == 2
    with pytest.raises(UsageError, match="no number"):
        coefficients("much")


@pytest.mark.parametrize("said", ["0.5,4", "energy:0.9"])
def test_grids_without_an_order(tmp_path: Path, said: str) -> None:
    with pytest.raises(UsageError, match="no order"):
        request(tmp_path, "rank", ranks=ranks(said))


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("subsets", {"tasks": ("digits",)}, "needs 2 tasks or more"),
        ("pairs", {"tasks": ("digits",)}, "needs 2 tasks or more"),
        ("components", {"tasks": ("digits",)}, "needs 2 tasks or more"),
        ("landscape", {"tasks": ("digits",)}, "needs three models"),
        ("rank", {"split": "adapt"}, "has no labels"),
        ("rank", {"split": "validation"}, "no split `validation`"),
        ("components", {"split": "adapt", "labels": "true"}, "has no labels"),
        ("components", {"matrices": ("nothing.*",)}, "names no matrix"),
        ("rank", {"tasks": ("digit",)}, "unknown task"),
        ("rank", {"inputs": {"strangers": EXAMPLE / "digits.safetensors"}}, "no tasks of the suite"),
        ("rank", {"limit": 0}, "leaves nothing"),
    ],
)  # fmt: skip
def test_what_a_sweep_lacks_is_said_before_the_work(
    tmp_path: Path, kind: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(TaskmergeError) as caught:
        sweep(request(tmp_path, kind, **changes))
    assert message in str(caught.value.what)
    assert caught.value.exit_code == 2


def test_a_suite_without_a_base(tmp_path: Path) -> None:
    asked = request(tmp_path, "rank", **SHORT)
    baseless = replace(asked, suite=replace(asked.suite, base=None))
    document = sweep(baseless).document
    assert {point["method"] for point in document["rank"]["points"]} == {"cart"}
    assert "base" not in document["references"]
    with pytest.raises(UsageError, match="needs the base"):
        sweep(replace(baseless, kinds=("components",)))


def test_experts_that_are_given_take_the_suites_place(tmp_path: Path) -> None:
    asked = request(tmp_path, "rank", **SHORT)
    digits = EXAMPLE / "digits.safetensors"
    swapped = replace(asked, inputs={"digits": digits, "shapes": digits}, tasks=None)
    with opened(swapped) as found:
        assert found.names == ("digits", "shapes")
        found.encoder.average(["shapes"])
        own = held(found.encoder)
    assert all(torch.equal(own[name], states(["digits"])["digits"][name].float().reshape(-1)) for name in own)


def test_an_expert_that_is_rewritten_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "digits.safetensors"
    copy.write_bytes((EXAMPLE / "digits.safetensors").read_bytes())
    inputs = {"digits": copy, "shapes": EXAMPLE / "shapes.safetensors"}
    asked = replace(request(tmp_path, "rank", **SHORT), inputs=inputs)
    outputs = judging.Judge.outputs

    def rewriting(self: judging.Judge, label: str, name: str) -> torch.Tensor:
        copy.write_bytes((EXAMPLE / "shapes.safetensors").read_bytes())
        return outputs(self, label, name)

    monkeypatch.setattr(judging.Judge, "outputs", rewriting)
    with pytest.raises(BadFile):
        sweep(replace(asked, tasks=("digits", "shapes")))


def test_the_function_reads_what_the_command_reads(tmp_path: Path) -> None:
    report = taskmerge.sweep(
        "coefficient", suite=EXAMPLE, output=tmp_path, tasks="digits,shapes", limit=2, sweep_coefficient=[0.5],
        device="cpu", loss_labels="true",
    )  # fmt: skip
    assert isinstance(report, taskmerge.SweepReport)
    assert [point["coefficient"] for point in report.document["coefficient"]["points"]] == [0.5] * 3
    wrong: list[dict[str, Any]] = [{"loss_labels": "mine"}, {"limit": 0}, {"threads": 0}, {"qkv": "half"}]
    for keywords in wrong:
        with pytest.raises(UsageError):
            taskmerge.sweep("rank", suite=EXAMPLE, output=tmp_path, **keywords)
    with pytest.raises(UsageError, match="is a file"):
        taskmerge.sweep("rank", suite=EXAMPLE, output=EXAMPLE / "suite.yaml")


def test_requests_are_checked() -> None:
    suite = request(Path(), "rank").suite
    for changes in ({"kinds": ()}, {"ranks": ()}, {"coefficients": ()}, {"ranks": tuple(reversed(RANKS))}):
        with pytest.raises(UsageError):
            SweepRequest(**{"suite": suite, "kinds": ("rank",), "folder": Path(), **changes})  # type: ignore[arg-type]
