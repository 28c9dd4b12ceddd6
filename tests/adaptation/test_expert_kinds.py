"""Adapters, task vectors and factors as experts: the same as of the dense experts that they stand for."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from adaptation_cases import CLASSES, TASKS, Assembled, adapt, assembled, clip_suite, text_suite
from safetensors.torch import load_file, save_file
from torch import Tensor

import taskmerge
from taskmerge.adaptation.components import Factored
from taskmerge.errors import Mismatch, UsageError
from taskmerge.specs.suite import Suite
from taskmerge.workflows.rebuild import rebuild

Files = Mapping[str, Path]
LORA = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": ["query", "value", "dense"], "bias": "none"}


def experts_of(suite: Suite) -> dict[str, Path]:
    return {task.name: Path(str(task.expert)) for task in suite.tasks}


def replaced(suite: Suite, files: Files) -> Suite:
    """The suite with these files as its experts."""
    return replace(suite, tasks=tuple(replace(task, expert=files[task.name]) for task in suite.tasks))


def written(suite: Suite, folder: Path, **options: Any) -> Files:
    """What `taskmerge vectors` writes of the suite's experts."""
    receipt = taskmerge.vectors(experts_of(suite), base=Path(str(suite.base)), output=folder, **options)
    return {task: next(Path(path) for path in receipt.paths if Path(path).name.startswith(task)) for task in TASKS}


def lora_experts(folder: Path, base: Mapping[str, Tensor]) -> tuple[Files, Files]:
    """(adapters of some matrices of a BERT encoder, the dense experts that they stand for)."""
    adapters, dense = {}, {}
    for place, task in enumerate(TASKS):
        generator = torch.Generator().manual_seed(place)
        factors, expert = {}, {name: tensor.clone() for name, tensor in base.items()}
        for name, tensor in base.items():
            if not name.endswith(("query.weight", "value.weight", "output.dense.weight")):
                continue
            rows, columns = tensor.shape
            a, b = (0.3 * torch.randn(shape, generator=generator) for shape in ((2, columns), (rows, 2)))
            module = name.removesuffix(".weight")
            factors |= {f"base_model.model.{module}.lora_A.weight": a, f"base_model.model.{module}.lora_B.weight": b}
            expert[name] += LORA["lora_alpha"] / LORA["r"] * (b @ a)  # type: ignore[operator]  # numbers
        adapters[task] = folder / f"{task}_lora"
        adapters[task].mkdir()
        (adapters[task] / "adapter_config.json").write_text(json.dumps(LORA))
        save_file(factors, adapters[task] / "adapter_model.safetensors")
        dense[task] = folder / f"{task}_dense.safetensors"
        save_file(expert, dense[task])
    return adapters, dense


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    return clip_suite(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> tuple[Suite, Files, Files]:
    """A suite of texts with head files, adapters of it, and their dense equivalents."""
    folder = tmp_path_factory.mktemp("lora")
    suite = text_suite(folder / "suite", "bert")
    tasks = []
    for place, task in enumerate(suite.tasks):
        head = folder / f"head_{task.name}.safetensors"
        weight = torch.randn(CLASSES[task.name], 16, generator=torch.Generator().manual_seed(place))
        save_file({"weight": weight}, head)
        tasks.append(replace(task, head=head))
    adapters, dense = lora_experts(folder, load_file(Path(str(suite.base))))
    return replace(suite, tasks=tuple(tasks)), adapters, dense


def alike(one: Assembled, other: Assembled) -> None:
    """Teachers, weights at the start, and the gradients of the first update are the same up to rounding."""
    assert one.names == other.names
    for task in TASKS:
        torch.testing.assert_close(one.teachers[task].outputs, other.teachers[task].outputs, rtol=1e-4, atol=1e-4)
    for found in (one, other):
        found.run.form()
    live = other.live()
    for name, tensor in one.live().items():
        torch.testing.assert_close(tensor, live[name], rtol=1e-4, atol=1e-5)
    for found in (one, other):
        next(found.run.updates())
    theirs = other.run.optimised.values
    for name, value in one.run.optimised.values.items():
        if value.grad is None:
            continue
        wanted = theirs[name].grad
        assert wanted is not None
        torch.testing.assert_close(value.grad, wanted, rtol=0, atol=1e-3 * float(wanted.abs().max()) + 1e-6)


Kind = Callable[[Suite, Path], tuple[Files, Files]]


def whole_vectors(suite: Suite, folder: Path) -> tuple[Files, Files]:
    return written(suite, folder / "v"), experts_of(suite)


def factors(suite: Suite, folder: Path) -> tuple[Files, Files]:
    """Of rank 3, and the experts cut to that rank."""
    return written(suite, folder / "f", rank=3), written(suite, folder / "d", rank=3, apply=True)


KINDS: dict[str, Kind] = {"vectors": whole_vectors, "factors": factors}


@pytest.mark.parametrize(("kind", "options"), [
    ("vectors", {"method": "adamerging_plus"}), ("vectors", {"method": "symerge", "layer": "last"}),
    ("factors", {"method": "adamerging"}), ("factors", {"method": "cart_plus", "rank": 0.3}),
    ("factors", {"method": "adarank", "origin": "mean"}), ("factors", {"method": "blocks"}),
    ("factors", {"method": "surgery", "init": "task_arithmetic"}),
])  # fmt: skip
def test_task_vectors_and_factors_are_the_experts_they_stand_for(
    clip: Suite, tmp_path: Path, kind: str, options: dict[str, Any]
) -> None:
    files, dense = KINDS[kind](clip, tmp_path)
    one = assembled(replaced(clip, files), tmp_path / "one", **options)
    other = assembled(replaced(clip, dense), tmp_path / "other", **options)
    alike(one, other)


def test_masks_are_on_the_components_that_factor_files_hold(clip: Suite, tmp_path: Path) -> None:
    """Their triplets are taken as they are: three a task and matrix."""
    files, dense = factors(clip, tmp_path)
    one = assembled(replaced(clip, files), tmp_path / "one", method="adarank")
    other = assembled(replaced(clip, dense), tmp_path / "other", method="adarank")
    for found in (one, other):
        stored = [one.component.stored for one in found.run.on_weights.composed if isinstance(one.component, Factored)]
        assert stored
        if found is one:
            assert set(stored) == {9}
        else:
            assert min(stored) >= 9  # what rounding leaves of a cut matrix may count too


@pytest.mark.parametrize("options", [
    {"method": "cart_plus", "rank": 2}, {"method": "adarank"}, {"method": "tint"},
    {"method": "adarank", "origin": "mean", "qkv": "fused"}, {"method": "symerge", "layer": "last"},
])  # fmt: skip
def test_adapters_are_the_experts_they_stand_for(
    lora: tuple[Suite, Files, Files], tmp_path: Path, options: dict[str, Any]
) -> None:
    suite, adapters, dense = lora
    one = assembled(replaced(suite, adapters), tmp_path / "one", **options)
    other = assembled(replaced(suite, dense), tmp_path / "other", **options)
    if options["method"] != "adarank":  # bits of components within rounding are there of dense experts
        alike(one, other)
        return
    for task in TASKS:
        torch.testing.assert_close(one.teachers[task].outputs, other.teachers[task].outputs, rtol=1e-4, atol=1e-4)
    one.run.form()
    other.run.form()
    live = other.live()
    for name, tensor in one.live().items():
        torch.testing.assert_close(tensor, live[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["vectors", "factors", "lora"])
def test_whole_runs_give_the_same_model(
    clip: Suite, lora: tuple[Suite, Files, Files], tmp_path: Path, kind: str
) -> None:
    """As inputs beside the suite, and as the suite's own experts; and the folder is rebuilt from them."""
    suite = clip if kind in KINDS else lora[0]
    files, dense = KINDS[kind](clip, tmp_path) if kind in KINDS else lora[1:]
    options = {"method": "symerge", "iterations": 1, "lr": 1e-4, "head_lr": 1e-4}
    adapt(replaced(suite, files), tmp_path / "own", **options)
    adapt(suite, tmp_path / "dense", dense, **options)
    own, wanted = (load_file(tmp_path / name / "model.safetensors") for name in ("own", "dense"))
    assert own.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(own[name], tensor, rtol=1e-3, atol=1e-4)
    if kind == "factors":
        adapt(suite, tmp_path / "given", files, **options)
        given = load_file(tmp_path / "given" / "model.safetensors")
        assert all(torch.equal(given[name], own[name]) for name in own)
    rebuild(tmp_path / "own", output=tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "own" / "model.safetensors").read_bytes()


def test_centred_vectors_are_those_of_the_mean(clip: Suite, tmp_path: Path) -> None:
    """θ̄ is their base."""
    receipt = taskmerge.vectors(experts_of(clip), output=tmp_path / "c", centre=True)
    files = {task: next(Path(path) for path in receipt.paths if Path(path).name.startswith(task)) for task in TASKS}
    centre = next(Path(path) for path in receipt.paths if not Path(path).name.startswith(TASKS))
    one = assembled(clip, tmp_path / "one", files, method="cart_plus", rank=0.3, base=centre)
    alike(one, assembled(clip, tmp_path / "other", method="cart_plus", rank=0.3))


def test_files_of_another_base_do_not_fit(clip: Suite, tmp_path: Path) -> None:
    files = written(clip, tmp_path / "v")
    base = Path(str(clip.base))
    other = tmp_path / "base.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(base).items()}, other)
    with pytest.raises(Mismatch) as error:
        assembled(replace(replaced(clip, files), base=other), tmp_path / "out", method="adamerging")
    assert error.value.exit_code == 4


def test_without_a_base_they_are_nothing(clip: Suite, tmp_path: Path) -> None:
    files = written(clip, tmp_path / "v")
    with pytest.raises(UsageError) as error:
        assembled(replace(replaced(clip, files), base=None), tmp_path / "out", method="adamerging")
    assert error.value.exit_code == 2


def test_a_head_of_an_expert_that_is_an_adapter_must_be_a_file(
    lora: tuple[Suite, Files, Files], tmp_path: Path
) -> None:
    suite, adapters, _ = lora
    tasks = tuple(replace(task, head="expert") for task in replaced(suite, adapters).tasks)
    with pytest.raises(UsageError) as error:
        assembled(replace(suite, tasks=tasks), tmp_path / "out", method="adamerging")
    assert error.value.exit_code == 2


def test_a_matrix_that_no_expert_moved_and_one_that_one_expert_did_not(clip: Suite, tmp_path: Path) -> None:
    """Frozen layers have no components, and no bits; the folder is formed again even so."""
    base = load_file(Path(str(clip.base)))
    frozen, partly = (f"visual.transformer.resblocks.{index}.attn.out_proj.weight" for index in (0, 1))
    files = {}
    for task, path in experts_of(clip).items():
        still = {frozen: base[frozen], **({partly: base[partly]} if task == "cars" else {})}
        files[task] = tmp_path / f"{task}.safetensors"
        save_file({**load_file(path), **still}, files[task])
    for options in ({"method": "adarank"}, {"method": "adarank", "origin": "mean"}, {"method": "cart_plus"}):
        adapt(replaced(clip, files), tmp_path / "out", iterations=2, mask_lr=0.1, overwrite=True, **options)
        rebuild(tmp_path / "out", output=tmp_path / "again.safetensors", overwrite=True)
        model = load_file(tmp_path / "out" / "model.safetensors")
        assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "out" / "model.safetensors").read_bytes()
        torch.testing.assert_close(model[frozen], base[frozen], rtol=1e-5, atol=1e-6)


def test_one_expert_alone(clip: Suite, tmp_path: Path) -> None:
    """Its task vector, scaled tensor by tensor; about the mean there is nothing to add."""
    one = {"cars": experts_of(clip)["cars"]}
    found = assembled(clip, tmp_path / "out", one, method="adamerging", iterations=1)
    assert [side.name for side in found.run.sides] == ["cars"]
    assert found.run.on_weights.values["coefficients"].shape[1] == 1
    adapt(clip, tmp_path / "mean", one, method="cart_plus", iterations=1)
    expert, model = load_file(one["cars"]), load_file(tmp_path / "mean" / "model.safetensors")
    assert all(torch.equal(model[name], expert[name]) for name in expert)


# --- experts on the command line -------------------------------------------------------------------------------


def reheaded(suite: Suite, folder: Path) -> Files:
    """The suite's experts with other classifiers."""
    files = {}
    for number, (task, path) in enumerate(experts_of(suite).items()):
        generator = torch.Generator().manual_seed(number)
        state = load_file(path)
        own = {name: value for name, value in state.items() if name.startswith("classifier")}
        other = {name: torch.randn(value.shape, generator=generator) for name, value in own.items()}
        files[task] = folder / f"{task}.safetensors"
        save_file({**state, **other}, files[task])
    return files


@pytest.mark.parametrize("method", ["adamerging", "surgery"])
def test_given_experts_bring_their_own_heads(method: str, tmp_path: Path) -> None:
    """In place of those that the suite's own experts have, for the teacher, for learning, and in the folder."""
    suite = text_suite(tmp_path, "bert")
    (tmp_path / "new").mkdir()
    files = reheaded(suite, tmp_path / "new")
    options: dict[str, Any] = {"method": method, "objective": "self", "on": "outputs", "iterations": 1}
    found = assembled(suite, tmp_path / "out", files, goes_on=True, **options)
    wanted = assembled(replaced(suite, files), tmp_path / "wanted", **options)
    for side, other in zip(found.run.sides, wanted.run.sides, strict=True):
        head = load_file(files[side.name])["classifier.weight"]
        assert torch.equal(side.head.output.weight, head)  # type: ignore[arg-type, union-attr]  # tensors
        assert torch.equal(side.teacher.outputs, other.teacher.outputs)
        kept = load_file(tmp_path / "out" / "heads" / f"{side.name}.safetensors")
        assert torch.equal(kept["output.weight"], head)


def test_the_suites_own_experts_need_no_heads_in_the_folder(tmp_path: Path) -> None:
    suite = text_suite(tmp_path, "bert")
    adapt(suite, tmp_path / "out", method="adamerging", iterations=1)
    assert not (tmp_path / "out" / "heads").exists()


def test_a_task_without_an_expert_takes_the_given_one(clip: Suite, tmp_path: Path) -> None:
    files = experts_of(clip)
    without = replace(clip, tasks=tuple(replace(task, expert=None) for task in clip.tasks))
    found = assembled(without, tmp_path / "out", files, method="adamerging")
    assert [side.name for side in found.run.sides] == list(TASKS)
