"""Merges of what was learnt: against float64 loops, and equal to the training-free methods where nothing was."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import taskmerge
from composed_cases import (
    BLOCK,
    LAYER,
    SHAPES,
    TASKS,
    TRIO,
    Qkv,
    changed,
    close,
    constant,
    expected,
    experts,
    learned,
    masked,
    weights,
    write_models,
)
from taskmerge.errors import Mismatch, UsageError
from taskmerge.experts.inputs import InputOptions
from taskmerge.merging import plan
from taskmerge.merging.options import RunOptions
from taskmerge.merging.prepare import prepare
from taskmerge.methods import registry
from taskmerge.methods.composed import Learned
from taskmerge.methods.ties import elected_rows, elected_sum, measure
from taskmerge.numerics.rank import Rank
from taskmerge.numerics.selection import slices
from taskmerge.specs.merge import MergeSpec
from vector_cases import agrees, record_of

QKV: tuple[Qkv, ...] = ("as-is", "split", "fused")
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 4e-3}


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """A base and three experts, and a working directory without anything."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return write_models(tmp_path / "models")


def merged(models: dict[str, Path], output: Path, method: str = "composed_base", **options: Any) -> Path:
    base = {} if method in ("composed_mean", "cart", "average") else {"base": models["base"]}
    receipt = taskmerge.merge(experts(models), method=method, output=output, **base, **options)
    return Path(receipt.paths[0])


# --- against loops in float64 ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["composed_base", "composed_mean"])
@pytest.mark.parametrize("qkv", QKV)
@pytest.mark.parametrize(("k", "masked"), [(None, False), (99, True), (4, True), (4, False)])
def test_the_formula(
    models: dict[str, Path], tmp_path: Path, method: str, qkv: Qkv, k: int | None, masked: bool
) -> None:
    """Where nothing is factored, every tensor is by itself, whatever `qkv` says."""
    units = qkv if k else "as-is"
    base, stacks = weights(models)
    origin = base if method == "composed_base" else {name: stack.mean(0) for name, stack in stacks.items()}
    what = learned(units, k if masked else None)
    options = {} if k is None else {"rank": k}
    path = merged(models, tmp_path / "m.safetensors", method, learned=what, qkv=qkv, **options)
    assert close(path, expected(origin, stacks, what, units, k), 2e-5)


@pytest.mark.parametrize("k", [None, 5])
@pytest.mark.parametrize("method", ["composed_base", "composed_mean"])
def test_the_formula_in_double_precision(models: dict[str, Path], tmp_path: Path, method: str, k: int | None) -> None:
    base, stacks = weights(models)
    origin = base if method == "composed_base" else {name: stack.mean(0) for name, stack in stacks.items()}
    what, options = learned(k=k), {} if k is None else {"rank": k}
    double = {"compute_dtype": "float64", "dtype": "float64"}
    path = merged(models, tmp_path / "m.safetensors", method, learned=what, **double, **options)
    assert close(path, expected(origin, stacks, what, k=k), 1e-11)


@pytest.mark.parametrize("method", ["composed_base", "composed_mean"])
@pytest.mark.parametrize("k", [None, 5])
def test_experts_in_bfloat16(tmp_path: Path, method: str, k: int | None) -> None:
    models = write_models(tmp_path / "models", torch.bfloat16)
    base, stacks = weights(models)
    origin = base if method == "composed_base" else {name: stack.mean(0) for name, stack in stacks.items()}
    what, options = learned(k=k), {} if k is None else {"rank": k}
    path = merged(models, tmp_path / "m.safetensors", method, learned=what, **options)
    assert load_file(path)["visual.proj"].dtype == torch.bfloat16
    assert close(path, expected(origin, stacks, what, k=k), ROUNDING[torch.bfloat16])


def test_a_tensor_without_coefficients_stays_at_the_origin(models: dict[str, Path], tmp_path: Path) -> None:
    def drop(coefficients: dict[str, torch.Tensor], masks: dict[str, torch.Tensor]) -> None:
        del coefficients["visual.proj"], coefficients[BLOCK + "attn.out_proj.weight"]

    base, stacks = weights(models)
    what = changed(learned(), drop)
    path = merged(models, tmp_path / "m.safetensors", learned=what, rank=3)
    assert torch.equal(load_file(path)["visual.proj"].double(), base["visual.proj"])
    assert torch.equal(load_file(path)[BLOCK + "attn.out_proj.weight"].double(), base[BLOCK + "attn.out_proj.weight"])
    assert close(path, expected(base, stacks, what, k=3), 2e-5)


def test_trimmed_task_vectors(models: dict[str, Path], tmp_path: Path) -> None:
    """AdaMerging++: what TIES keeps of each task vector, added up by learnt coefficients, not averaged."""
    base, stacks = weights(models)
    flat = torch.cat([(stacks[name] - base[name]).reshape(len(TASKS), -1) for name in sorted(SHAPES)], dim=1)
    kept = torch.zeros_like(flat)
    for row, whole in zip(kept, flat, strict=True):
        order = whole.abs().argsort(descending=True)[: int(0.3 * flat.shape[1]) + 1]  # the next one, as the authors
        row[order] = whole[order]
    up = kept.sum(0) > 0
    kept = torch.where(torch.where(up, kept > 0, kept < 0), kept, 0)
    what, rows, start = learned(), {}, 0
    for name in sorted(SHAPES):
        count = base[name].numel()
        rows[name] = base[name] + kept[:, start : start + count].reshape(stacks[name].shape)
        start += count
    path = merged(models, tmp_path / "m.safetensors", learned=what, density=0.3)
    assert close(path, expected(base, rows, what), 2e-6)


def test_elected_rows_are_the_terms_of_the_elected_sum() -> None:
    stack = (torch.randn(4, 500, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 4).round() / 4
    before = stack.clone()
    trim = measure(slices(stack), 0.4, "next")
    rows = elected_rows(stack, trim)
    torch.testing.assert_close(rows.sum(0), elected_sum(stack, torch.ones(4, dtype=torch.float64), trim))
    assert torch.equal(stack, before)
    assert bool(((rows == 0) | (rows == stack)).all())
    assert not bool(((rows > 0).any(0) & (rows < 0).any(0)).any())


# --- masks over entries ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["composed_base", "composed_mean"])
@pytest.mark.parametrize("qkv", QKV)
def test_a_mask_over_entries(models: dict[str, Path], tmp_path: Path, method: str, qkv: Qkv) -> None:
    """One for all tasks, over its mean in the whole tensor, whatever slices are handled at a time."""
    base, stacks = weights(models)
    origin = base if method == "composed_base" else {name: stack.mean(0) for name, stack in stacks.items()}
    what = masked()
    path = merged(models, tmp_path / "m.safetensors", method, learned=what, qkv=qkv)
    assert close(path, expected(origin, stacks, what), 2e-6)
    double = {"compute_dtype": "float64", "dtype": "float64"}
    path = merged(models, tmp_path / "d.safetensors", method, learned=what, qkv=qkv, **double)
    assert close(path, expected(origin, stacks, what), 1e-12)


@pytest.mark.parametrize("share", [0.0, 0.03, 0.97, 1.0])
def test_few_entries_and_many(models: dict[str, Path], tmp_path: Path, share: float) -> None:
    """With all of them on it is the merge without a mask."""
    base, stacks = weights(models)
    what = masked(share)
    path = merged(models, tmp_path / "m.safetensors", learned=what)
    assert close(path, expected(base, stacks, what), 2e-6)
    if share in (0.0, 1.0):  # masks of nothing are of everything in these cases
        plain = merged(models, tmp_path / "p.safetensors", learned=Learned(TASKS, what.coefficients))
        assert agrees(path, plain, 0.0)


@pytest.mark.parametrize("options", [{}, {"density": 0.2}, {"dtype": "bfloat16"}])
def test_slices_of_a_mask_change_no_bit(
    models: dict[str, Path], tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    what = masked()
    whole = merged(models, tmp_path / "whole.safetensors", learned=what, **options)
    monkeypatch.setattr(plan, "CHUNK", 7)
    for threads in (1, 3):
        path = merged(models, tmp_path / f"{threads}.safetensors", learned=what, threads=threads, **options)
        assert agrees(path, whole, 0.0)


def test_a_mask_of_trimmed_task_vectors(models: dict[str, Path], tmp_path: Path) -> None:
    """Entries that are on are those without the mask, times one factor a tensor; the others stay at the base."""
    base, _ = weights(models)
    what = masked()
    plain = load_file(
        merged(models, tmp_path / "p.safetensors", learned=Learned(TASKS, what.coefficients), density=0.3)
    )
    path = merged(models, tmp_path / "m.safetensors", learned=what, density=0.3)
    wanted = {}
    for name, origin in base.items():
        bits = what.masks[name].double().view(origin.shape)
        wanted[name] = origin + (plain[name].double() - origin) * bits / bits.mean()
    assert close(path, wanted, 2e-6)


def test_entries_beside_components(models: dict[str, Path], tmp_path: Path) -> None:
    """What is factored has masks of its components, what is not one of its entries."""
    base, stacks = weights(models)
    of_components, of_entries = learned(k=4), masked()
    rest = {name: mask for name, mask in of_entries.masks.items() if name not in of_components.masks}
    what = Learned(TASKS, of_components.coefficients, {**of_components.masks, **rest})
    path = merged(models, tmp_path / "m.safetensors", learned=what, rank=4)
    assert close(path, expected(base, stacks, what, k=4), 2e-5)


# --- before anything is learnt ---------------------------------------------------------------------------------


def test_equal_coefficients_are_task_arithmetic(models: dict[str, Path], tmp_path: Path) -> None:
    plain = merged(models, tmp_path / "plain.safetensors", "task_arithmetic", coefficient=0.3)
    assert agrees(merged(models, tmp_path / "m.safetensors", learned=constant(0.3)), plain, 1e-7)
    assert agrees(merged(models, tmp_path / "f.safetensors", learned=constant(0.3, k=99), rank=99), plain, 2e-6)


@pytest.mark.parametrize("qkv", QKV)
def test_all_components_of_a_rank_are_truncated_task_arithmetic(
    models: dict[str, Path], tmp_path: Path, qkv: Qkv
) -> None:
    options = {"rank": 3, "qkv": qkv}
    plain = merged(models, tmp_path / "t.safetensors", "truncated_task_arithmetic", coefficient=0.4, **options)
    what = constant(0.4, qkv, k=3)
    assert agrees(merged(models, tmp_path / "m.safetensors", learned=what, **options), plain, 2e-6)
    what = Learned(TASKS, what.coefficients)  # no masks at all
    assert agrees(merged(models, tmp_path / "n.safetensors", learned=what, **options), plain, 2e-6)


@pytest.mark.parametrize("qkv", QKV)
def test_all_components_about_the_mean_are_cart(models: dict[str, Path], tmp_path: Path, qkv: Qkv) -> None:
    options = {"rank": 3, "qkv": qkv}
    plain = merged(models, tmp_path / "c.safetensors", "cart", coefficient=1.4, **options)
    what = constant(1.4, qkv, k=3)
    assert agrees(merged(models, tmp_path / "m.safetensors", "composed_mean", learned=what, **options), plain, 3e-6)


def test_equal_coefficients_about_the_mean_are_the_average(models: dict[str, Path], tmp_path: Path) -> None:
    plain = merged(models, tmp_path / "a.safetensors", "average")
    path = merged(models, tmp_path / "m.safetensors", "composed_mean", learned=constant(0.7))
    assert agrees(path, plain, 1e-6)


def test_equal_coefficients_of_trimmed_task_vectors_are_ties(models: dict[str, Path], tmp_path: Path) -> None:
    options = {"aggregate": "sum", "coefficient": 0.3, "threshold": "next"}
    plain = merged(models, tmp_path / "t.safetensors", "ties", density=0.2, **options)
    assert agrees(merged(models, tmp_path / "m.safetensors", learned=constant(0.3), density=0.2), plain, 1e-7)


# --- what a merge says, and what changes no byte ---------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"rank": 4}, {"density": 0.2}])
def test_threads_and_order_change_no_byte(models: dict[str, Path], tmp_path: Path, options: dict[str, Any]) -> None:
    what = learned(k=4 if "rank" in options else None)
    path = merged(models, tmp_path / "m.safetensors", learned=what, threads=1, **options)
    taskmerge.merge(
        experts(models)[::-1], method="composed_base", base=models["base"], learned=what, threads=3,
        output=tmp_path / "n.safetensors", **options,
    )  # fmt: skip
    assert path.read_bytes() == (tmp_path / "n.safetensors").read_bytes()


def test_the_recipe_has_the_digest(models: dict[str, Path], tmp_path: Path) -> None:
    what = learned(k=4)
    recipe = record_of(merged(models, tmp_path / "m.safetensors", learned=what, rank=4))["recipe"]
    assert recipe["learned"] == what.digest == learned(k=4).digest
    assert recipe["options"] == {"density": None, "rank": 4}
    assert learned(k=4) == what != learned(k=4, seed=6)
    assert len({what, learned(k=4), learned(k=3)}) == 2


def test_only_the_content_makes_the_digest() -> None:
    what = learned(k=4)
    shuffled = Learned(what.tasks, dict(reversed(what.coefficients.items())), dict(reversed(what.masks.items())))
    assert shuffled.digest == what.digest
    others = [
        Learned(("cars", "digits", "x"), what.coefficients, what.masks),
        Learned(what.tasks, what.coefficients),
        changed(what, lambda coefficients, masks: coefficients["visual.proj"].__setitem__(0, 9.0)),
        changed(learned(k=4), lambda coefficients, masks: masks[TRIO[0]].logical_not_()),
    ]
    assert len({one.digest for one in [learned(k=4), *others]}) == 5


def test_adapters_are_factored_as_whole_matrices(models: dict[str, Path], tmp_path: Path) -> None:
    """What was learnt of components does not go through the shortcut for experts of low rank."""
    files = taskmerge.vectors(experts(models), base=models["base"], rank=5, output=tmp_path / "f")
    what = constant(0.3, k=5)
    taskmerge.merge(
        list(files.paths), method="composed_base", base=models["base"], learned=what, rank=5,
        output=tmp_path / "m.safetensors",
    )  # fmt: skip
    plain = merged(models, tmp_path / "t.safetensors", "truncated_task_arithmetic", coefficient=0.3, rank=5)
    assert agrees(tmp_path / "m.safetensors", plain, 5e-6)


def test_the_plan_counts_the_components_that_lie_side_by_side(models: dict[str, Path]) -> None:
    memory = {}
    for rank in ("1", "1.0"):
        spec = MergeSpec(
            method="composed_base",
            learned=Learned(TASKS, learned().coefficients),
            options={"rank": (Rank.parse(rank),)},
        )
        prepared = prepare(experts(models), spec, InputOptions(base=models["base"]), RunOptions())
        prepared.inputs.close()
        memory[rank] = {job.name: job.memory for job in prepared.plan.jobs if job.factored}
    for name, less in memory["1"].items():
        assert memory["1.0"][name] > less


# --- what does not fit -----------------------------------------------------------------------------------------


def test_by_hand_it_is_refused(models: dict[str, Path]) -> None:
    for method in ("composed_base", "composed-mean"):
        with pytest.raises(UsageError, match="cannot be used by hand") as error:
            taskmerge.merge(experts(models), method=method, base=models["base"])
        assert "taskmerge adapt" in str(error.value.hint)
        assert "merge --from FOLDER" in str(error.value.hint)
    with pytest.raises(UsageError, match="does not run what adaptation has learnt"):
        taskmerge.merge(experts(models), method="cart", learned=learned())
    with pytest.raises(UsageError, match="not their components"):
        taskmerge.merge(
            experts(models), method="composed_base", base=models["base"], learned=learned(), rank=3, density=0.2
        )


def test_no_list_shows_it() -> None:
    assert not any(name.startswith("composed") for name in registry.methods())
    assert registry.find("composed-base").internal


def of_others(what: Learned) -> Learned:
    return Learned(("cars", "digits", "trees"), what.coefficients, what.masks)


def stranger(what: Learned) -> Learned:
    return Learned(what.tasks, {**what.coefficients, "visual.other": torch.ones(3)}, what.masks)


def fused(what: Learned) -> Learned:
    return learned("fused", 4)


def masked_vector(what: Learned) -> Learned:
    masks = {**what.masks, LAYER + "norm.weight": torch.ones(1, 3, 1, dtype=torch.bool)}
    return Learned(what.tasks, what.coefficients, masks)


def many_components(what: Learned) -> Learned:
    return Learned(what.tasks, what.coefficients, {TRIO[0]: torch.ones(1, 3, 9, dtype=torch.bool)})


def few_coefficients(what: Learned) -> Learned:
    return Learned(what.tasks, {**what.coefficients, "visual.proj": torch.ones(2)}, what.masks)


def beyond_the_rank(what: Learned) -> Learned:
    return constant(1.0, "split", k=6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (of_others, r"learnt of cars, digits, trees; these experts are cars, digits, signs"),
        (stranger, r"learnt of `visual\.other`, not merged here"),
        (fused, r"masks of shape \[1, 3, 4\] are not of its 3 matrices"),
        (masked_vector, r"norm\.weight`: masks .* not factored"),
        (many_components, r"9 components, its matrices have 8"),
        (few_coefficients, r"visual\.proj`: coefficients \[2\]"),
        (beyond_the_rank, r"keeps component 6 of task 1, which has 4"),
    ],
)
def test_what_was_learnt_of_others_is_a_mismatch(
    models: dict[str, Path], tmp_path: Path, change: Any, words: str
) -> None:
    with pytest.raises(Mismatch, match=words) as error:
        merged(models, tmp_path / "m.safetensors", learned=change(learned("split", 4)), rank=4, qkv="split")
    assert error.value.exit_code == 4
    assert error.value.hint
    assert not (tmp_path / "m.safetensors").exists()


def test_masks_where_nothing_is_factored_are_a_mismatch(models: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(Mismatch, match="not factored here"):
        merged(models, tmp_path / "m.safetensors", learned=learned(k=4))


def few_entries(what: Learned) -> Learned:
    return Learned(what.tasks, what.coefficients, {**what.masks, "visual.proj": torch.ones(1, 1, 83, dtype=torch.bool)})


def no_entry(what: Learned) -> Learned:
    none = {name: torch.zeros_like(mask) for name, mask in what.masks.items()}
    return Learned(what.tasks, what.coefficients, {**what.masks, "visual.proj": none["visual.proj"]})


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        (few_entries, {}, r"visual\.proj`: a mask is of 83 entries, it has 84"),
        (no_entry, {}, r"visual\.proj`: its mask keeps no entry"),
        (lambda what: what, {"rank": 4}, r"masks of shape \[1, 1, 432\] are not of its 1 matrices and 3 tasks"),
    ],
)
def test_a_mask_over_other_entries_is_a_mismatch(
    models: dict[str, Path], tmp_path: Path, change: Any, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(Mismatch, match=words) as error:
        merged(models, tmp_path / "m.safetensors", learned=change(masked()), **options)
    assert error.value.exit_code == 4
    assert error.value.hint


def test_a_task_without_components_needs_none(models: dict[str, Path], tmp_path: Path) -> None:
    """An expert that equals the base has no component: masks may not keep one of it, and say nothing of it else."""
    save_file(load_file(models["base"]), models["digits"])
    what = learned(k=4)
    with pytest.raises(Mismatch, match="of task 2, which has 0"):
        merged(models, tmp_path / "m.safetensors", learned=what, rank=4)
    for mask in what.masks.values():
        mask[:, 1] = False
    base, stacks = weights(models)
    path = merged(models, tmp_path / "m.safetensors", learned=what, rank=4)
    assert close(path, expected(base, stacks, what, k=4), 2e-5)
