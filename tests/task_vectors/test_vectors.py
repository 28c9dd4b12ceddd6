"""Task vectors: written, read back in place of experts, factored once, added back, and refused at another origin."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import taskmerge
from taskmerge.checkpoint.checkpoint import open_checkpoint
from taskmerge.checkpoint.digest import digest_of
from taskmerge.errors import BadFile, BadNumber, BadOutput, Mismatch, NotEnough, UsageError
from taskmerge.experts.lora_files import open_adapter
from taskmerge.numerics.spectral import TaskMatrices
from vector_cases import (
    COUNTER,
    SHAPES,
    TASKS,
    agrees,
    experts,
    load,
    record_of,
    relative,
    same,
    truncated,
    write_models,
)  # fmt: skip

MATRICES = ("blocks.0.attn.weight", "blocks.1.mlp.weight")
FLOATS = [name for name, shape in SHAPES.items() if 0 not in shape]


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Path]:
    return write_models(tmp_path / "models")


def vectors(models: Mapping[str, Path], folder: Path, **options: Any) -> dict[str, Path]:
    """Task vectors of all experts: task (or `centre`) -> file."""
    if not options.get("centre"):
        options.setdefault("base", models["base"])
    receipt = taskmerge.vectors(experts(models), output=folder, **options)
    return {one.task or "centre": Path(one.path) for one in receipt.outputs}


def merged(inputs: Any, out: Path, **options: Any) -> Path:
    return Path(taskmerge.merge(inputs, output=out, **options).paths[0])


# --- what the files hold ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_a_vector_is_expert_minus_base(dtype: torch.dtype, tmp_path: Path) -> None:
    models = write_models(tmp_path / "models", dtype)
    found = vectors(models, tmp_path / "v")
    assert sorted(found) == list(TASKS)
    assert found["a"].name == "a.vector.safetensors"
    base = load(models["base"])
    for task in TASKS:
        held, expert = load(found[task]), load(models[task])
        assert held.keys() == expert.keys()
        for name in FLOATS:
            assert held[name].dtype == torch.float32
            gap = (held[name].double() - (expert[name].double() - base[name].double())).abs()
            scale = torch.maximum(expert[name].double().abs(), base[name].double().abs())
            assert bool((gap <= 1.2e-7 * scale).all())
        assert torch.equal(held[COUNTER], expert[COUNTER])


def test_a_centred_vector_is_expert_minus_average(models: dict[str, Path], tmp_path: Path) -> None:
    found = vectors(models, tmp_path / "v", centre=True)
    assert found.keys() == {*TASKS, "centre"}
    loaded = {task: load(models[task]) for task in TASKS}
    for name in FLOATS:
        mean = sum(one[name].double() for one in loaded.values()) / len(TASKS)
        assert relative(load(found["centre"])[name], mean) < 1e-6
        for task in TASKS:
            assert relative(load(found[task])[name], loaded[task][name].double() - mean) < 1e-5
    assert torch.equal(load(found["centre"])[COUNTER], torch.tensor(7))


def test_the_centre_is_as_precise_as_the_vectors(tmp_path: Path) -> None:
    models = write_models(tmp_path / "models", torch.float64)
    found = vectors(models, tmp_path / "v", centre=True, dtype="float64", compute_dtype="float64")
    for name in FLOATS:
        mean = sum(load(models[task])[name] for task in TASKS) / len(TASKS)
        assert load(found["centre"])[name].dtype == torch.float64
        assert relative(load(found["centre"])[name], mean) < 1e-14


def test_factors_multiply_to_the_truncated_vector(models: dict[str, Path], tmp_path: Path) -> None:
    found, base = vectors(models, tmp_path / "f", rank=0.25), load(models["base"])
    for task in TASKS:
        held, expert = load(found[task]), load(models[task])
        for name in MATRICES:
            u, s, vt = (held[name + part] for part in (".U", ".s", ".Vt"))
            assert u.dtype == s.dtype == vt.dtype == torch.float32
            assert u.shape[1] == s.shape[0] == vt.shape[0] == 4  # floor(0.25 * 16)
            assert name not in held
            assert (
                relative((u.double() * s) @ vt.double(), truncated(expert[name].double() - base[name].double(), 4))
                < 1e-5
            )
            assert torch.allclose(u.mT @ u, torch.eye(4), atol=1e-5)
            assert bool((s[:-1] >= s[1:]).all())
        for name in set(FLOATS) - set(MATRICES):
            assert torch.equal(held[name], expert[name] - base[name])


def test_also_and_the_written_rank(models: dict[str, Path], tmp_path: Path) -> None:
    found = vectors(models, tmp_path / "f", rank=3, also=("conv", "projection"))
    held, record = load(found["a"]), record_of(found["a"])
    assert held["conv.weight.U"].shape == (8, 3)
    assert held["conv.weight.Vt"].shape == (3, 48)
    assert held["proj.s"].shape == (3,)
    assert record["rank"] == "3"
    assert record["understood"] == "rank 3"
    assert record["ranks"] == dict.fromkeys(sorted([*MATRICES, "conv.weight", "proj"]), 3)


def test_an_energy_rank_is_each_matrix_own(models: dict[str, Path], tmp_path: Path) -> None:
    found, base = vectors(models, tmp_path / "f", rank="energy:0.7"), load(models["base"])
    for task in TASKS:
        for name in MATRICES:
            s = torch.linalg.svdvals(load(models[task])[name].double() - base[name].double())
            energy = s.square().cumsum(0) / s.square().sum()
            assert load(found[task])[name + ".s"].shape[0] == int((energy < 0.7).sum()) + 1


def test_a_zero_matrix_has_factors_of_zero(tmp_path: Path) -> None:
    models = write_models(tmp_path / "models")
    save_file(load(models["base"]), models["b"])
    for rank in (2, "energy:0.5"):
        found = vectors(models, tmp_path / f"f{rank}", rank=rank)
        held = load(found["b"])
        assert not any(held[name + ".s"].any() for name in MATRICES)
        assert not any(held[name + part].isnan().any() for name in MATRICES for part in (".U", ".s", ".Vt"))
        inputs = [found[task] for task in TASKS]
        out = merged(
            inputs, tmp_path / f"{rank}.safetensors", method="truncated_task_arithmetic", base=models["base"], rank=2
        )
        assert all(torch.isfinite(one).all() for one in load(out).values())


def test_metadata_names_origin_and_experts(models: dict[str, Path], tmp_path: Path) -> None:
    base, centred = vectors(models, tmp_path / "v"), vectors(models, tmp_path / "c", centre=True)
    record = record_of(base["a"])
    with open_checkpoint(models["a"]) as expert, open_checkpoint(models["base"]) as origin:
        assert record["experts"] == {"a": digest_of(expert)}
        assert sorted(record["tensors"]) == sorted(SHAPES)
        assert record["origin_digest"] == digest_of(origin, record["tensors"])
    assert (record["kind"], record["task"], record["origin"], record["dtype"]) == ("vector", "a", "base", "F32")
    record = record_of(centred["a"])
    assert (record["kind"], record["origin"]) == ("vector", "centre")
    assert sorted(record["experts"]) == list(TASKS)
    with open_checkpoint(centred["centre"]) as centre:
        assert record["origin_digest"] == digest_of(centre, record["tensors"])
        assert {*record["tensors"], COUNTER} == set(centre.specs)
    assert record_of(centred["centre"])["kind"] == "centre"
    text = (tmp_path / "v" / "a.vector.safetensors").read_bytes()
    assert str(tmp_path).encode() not in text


def test_same_bytes_for_any_threads_order_and_company(models: dict[str, Path], tmp_path: Path) -> None:
    for options in ({}, {"centre": True}, {"rank": 0.5}, {"rank": "energy:0.8", "centre": True}):
        one = vectors(models, tmp_path / f"1{options}", threads=1, **options)
        base = {} if options.get("centre") else {"base": models["base"]}
        receipt = taskmerge.vectors(
            experts(models)[::-1], output=tmp_path / f"2{options}", threads=4, **base, **options
        )
        for output in receipt.outputs:
            assert Path(output.path).read_bytes() == one[output.task or "centre"].read_bytes()
    alone = taskmerge.vectors([models["c"]], base=models["base"], output=tmp_path / "alone")
    assert Path(alone.paths[0]).read_bytes() == vectors(models, tmp_path / "all")["c"].read_bytes()


def test_shards(models: dict[str, Path], tmp_path: Path) -> None:
    plain = vectors(models, tmp_path / "p", rank=4)
    found = vectors(models, tmp_path / "s", rank=4, shard_size=2000)
    assert found["a"].name == "a.factors.safetensors.index.json"
    with open_checkpoint(found["a"]) as shards, open_checkpoint(plain["a"]) as whole:
        assert digest_of(shards) == digest_of(whole)
    inputs = [found[task] for task in TASKS]
    kept = merged(inputs, tmp_path / "from_shards.safetensors", base=models["base"], rank=4)
    assert same(kept, merged([plain[task] for task in TASKS], tmp_path / "m.safetensors", base=models["base"], rank=4))


# --- in place of experts ---------------------------------------------------------------------------------------

DELTA = (
    ("task_arithmetic", {"coefficient": 0.4}),
    ("ties", {"density": 0.3}),
    ("dare", {"density": 0.5, "seed": 3}),
    ("tsv_m", {}),
    ("iso_c", {}),
    ("truncated_task_arithmetic", {"rank": 0.25}),
)


@pytest.mark.parametrize(("method", "options"), DELTA)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_merging_vectors_is_merging_experts(
    method: str, options: dict[str, Any], dtype: torch.dtype, tmp_path: Path
) -> None:
    models = write_models(tmp_path / "models", dtype)
    found = vectors(models, tmp_path / "v")
    common = {"method": method, "base": models["base"], **options}
    wanted = merged(experts(models), tmp_path / "e.safetensors", **common)
    got = merged([found[task] for task in TASKS], tmp_path / "v.safetensors", **common)
    assert same(got, wanted)  # the rows are the same numbers, and the output has the experts' dtype


@pytest.mark.parametrize(
    ("method", "options"), [("average", {}), ("cart", {"rank": 0.25}), ("cart", {"weights": {"a": 2.0}})]
)
def test_methods_that_need_no_base_take_vectors_too(
    method: str, options: dict[str, Any], models: dict[str, Path], tmp_path: Path
) -> None:
    found = vectors(models, tmp_path / "v")
    wanted = merged(experts(models), tmp_path / "e.safetensors", method=method, **options)
    inputs = [found[task] for task in TASKS]
    got = merged(inputs, tmp_path / "v.safetensors", method=method, base=models["base"], **options)
    assert agrees(got, wanted, 3e-7)
    mixed = merged(
        [models["a"], *inputs[1:]], tmp_path / "m.safetensors", method=method, base=models["base"], **options
    )
    assert agrees(mixed, wanted, 3e-7)


def test_centred_vectors_give_cart(models: dict[str, Path], tmp_path: Path) -> None:
    found = vectors(models, tmp_path / "c", centre=True)
    wanted = merged(experts(models), tmp_path / "e.safetensors", method="cart", rank=0.25, coefficient=1.7)
    inputs = [found[task] for task in TASKS]
    got = merged(inputs, tmp_path / "c.safetensors", method="cart", rank=0.25, coefficient=1.7, base=found["centre"])
    assert same(got, wanted)
    globbed = merged([str(tmp_path / "c" / "*.safetensors")], tmp_path / "g.safetensors", rank=0.25, coefficient=1.7)
    assert same(globbed, wanted)  # the centre among the inputs is the base
    average = merged(inputs, tmp_path / "a.safetensors", method="average", base=found["centre"])
    assert agrees(average, merged(experts(models), tmp_path / "ea.safetensors", method="average"), 3e-7)


def test_some_of_a_centre_keep_that_centre(models: dict[str, Path], tmp_path: Path) -> None:
    found = vectors(models, tmp_path / "c", centre=True)
    receipt = taskmerge.merge(
        [found["b"]], method="cart", rank=3, base=found["centre"], output=tmp_path / "b.safetensors"
    )
    assert any("average of 4 experts, of which 1 is merged" in note for note in receipt.notes)
    centre, vector, got = load(found["centre"]), load(found["b"]), load(receipt.paths[0])
    for name in MATRICES:  # direct routing: θ̄ + SVD_k(θ_b - θ̄)
        assert relative(got[name], centre[name].double() + truncated(vector[name], 3)) < 1e-6


@pytest.mark.parametrize("rank", [0.25, 2, "energy:0.6"])
def test_factors_at_the_rank_are_the_merge_at_that_rank(
    rank: float | str, models: dict[str, Path], tmp_path: Path
) -> None:
    centred = vectors(models, tmp_path / "c", centre=True, rank=rank)
    wanted = merged(experts(models), tmp_path / "e.safetensors", method="cart", rank=rank)
    everything = 16 if str(rank).startswith("energy") else rank
    inputs = [centred[task] for task in TASKS]
    assert agrees(merged(inputs, tmp_path / "c.safetensors", rank=everything, base=centred["centre"]), wanted, 1e-6)
    about_base = vectors(models, tmp_path / "b", rank=rank)
    common = {"method": "truncated_task_arithmetic", "base": models["base"], "coefficient": 1.0}
    wanted = merged(experts(models), tmp_path / "t.safetensors", rank=rank, **common)
    inputs = [about_base[task] for task in TASKS]
    assert agrees(merged(inputs, tmp_path / "b.safetensors", rank=everything, **common), wanted, 1e-6)


def test_a_smaller_rank_uses_the_same_factors(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = vectors(models, tmp_path / "f", centre=True, rank=8)
    wanted = [merged(experts(models), tmp_path / f"e{k}.safetensors", method="cart", rank=k) for k in (8, 3)]
    monkeypatch.setattr(
        TaskMatrices, "_compute", lambda self, tasks, counts: pytest.fail("factored anew") if tasks else None
    )
    for k, other in zip((8, 3), wanted, strict=True):
        inputs = [found[task] for task in TASKS]
        got = merged(inputs, tmp_path / f"f{k}.safetensors", method="cart", rank=k, base=found["centre"])
        assert agrees(got, other, 1e-6)


def test_tsv_m_from_factors(models: dict[str, Path], tmp_path: Path) -> None:
    found = vectors(models, tmp_path / "f", rank=4)  # r / T components a task
    wanted = merged(experts(models), tmp_path / "e.safetensors", method="tsv_m", base=models["base"])
    got = merged([found[task] for task in TASKS], tmp_path / "f.safetensors", method="tsv_m", base=models["base"])
    assert agrees(got, wanted, 1e-6)


def test_fewer_components_restrict_the_method_and_are_noted(models: dict[str, Path], tmp_path: Path) -> None:
    found = vectors(models, tmp_path / "f", rank=2)
    inputs, common = [found[task] for task in TASKS], {"method": "truncated_task_arithmetic", "base": models["base"]}
    wide = taskmerge.merge(inputs, output=tmp_path / "w.safetensors", rank=5, **common)
    exact = taskmerge.merge(inputs, output=tmp_path / "x.safetensors", rank=2, **common)
    assert any("hold as few as 2 components where the method takes up to 5" in note for note in wide.notes)
    assert not any("components" in note for note in exact.notes)
    assert agrees(wide.paths[0], exact.paths[0], 1e-6)


def test_split_attention_of_factors_falls_back_to_their_product(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    base = {"blocks.0.attn.in_proj_weight": torch.randn(24, 8, generator=generator)}
    paths = {"base": tmp_path / "base.safetensors", **{task: tmp_path / f"{task}.safetensors" for task in "ab"}}
    for path in paths.values():
        save_file(
            {name: value + 0.1 * torch.randn(value.shape, generator=generator) for name, value in base.items()}, path
        )
    found = vectors(paths, tmp_path / "f", rank=1.0)
    common = {"method": "truncated_task_arithmetic", "base": paths["base"], "rank": 2, "qkv": "split"}
    wanted = merged(experts(paths), tmp_path / "e.safetensors", **common)
    assert agrees(merged([found["a"], found["b"]], tmp_path / "f.safetensors", **common), wanted, 1e-5)


def test_dare_acts_on_matrices_before_a_spectral_method(models: dict[str, Path], tmp_path: Path) -> None:
    """A transform in front of a method on matrices is not lost, whether experts or their factors are merged."""
    options = {"method": "dare", "then": "tsv_m", "base": models["base"]}
    dense = merged(experts(models), tmp_path / "d.safetensors", density=0.5, **options)
    plain = merged(experts(models), tmp_path / "p.safetensors", method="tsv_m", base=models["base"])
    assert relative(load(dense)[MATRICES[0]], load(plain)[MATRICES[0]]) > 1e-3
    found = vectors(models, tmp_path / "f", rank=1.0)
    factors = merged([found[task] for task in TASKS], tmp_path / "f.safetensors", density=0.5, **options)
    assert agrees(factors, dense, 1e-4)


def test_elementwise_methods_read_factors_in_slices(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from taskmerge.merging import plan

    found = vectors(models, tmp_path / "f", rank=1.0)
    common = {"method": "task_arithmetic", "base": models["base"]}
    inputs = [found[task] for task in TASKS]
    whole = merged(inputs, tmp_path / "w.safetensors", **common)
    assert agrees(whole, merged(experts(models), tmp_path / "e.safetensors", **common), 1e-6)
    monkeypatch.setattr(plan, "CHUNK", 37)  # rows of 16 and 40 elements are cut anywhere
    sliced = merged(inputs, tmp_path / "s.safetensors", **common)
    assert agrees(sliced, whole, 1e-6)
    assert record_of(sliced)["tasks"] == record_of(whole)["tasks"]  # the digest of factors is that of the file


def test_factors_from_vectors(models: dict[str, Path], tmp_path: Path) -> None:
    for centre in (False, True):
        dense = vectors(models, tmp_path / f"v{centre}", centre=centre)
        direct = vectors(models, tmp_path / f"d{centre}", centre=centre, rank=3)
        origin = dense["centre"] if centre else models["base"]
        receipt = taskmerge.vectors(
            [dense[task] for task in TASKS], base=origin, rank=3, output=tmp_path / f"f{centre}"
        )
        assert receipt.origin == ("centre" if centre else "base")
        for output in receipt.outputs:
            assert Path(output.path).read_bytes() == direct[output.task or ""].read_bytes()


# --- back onto an origin ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_scale_one_restores_the_expert(dtype: torch.dtype, tmp_path: Path) -> None:
    models = write_models(tmp_path / "models", dtype)
    exact = {"dtype": "float64", "compute_dtype": "float64"} if dtype == torch.float64 else {}
    found = vectors(models, tmp_path / "v", **exact)
    back = taskmerge.vectors(
        [found[task] for task in TASKS], base=models["base"], apply=True, output=tmp_path / "b",
        compute_dtype="float64" if exact else "float32",
    )  # fmt: skip
    for output in back.outputs:
        assert output.kind == "checkpoint"
        assert Path(output.path).name == f"{output.task}.safetensors"
        held, expert = load(output.path), load(models[output.task or ""])
        base = load(models["base"])
        for name, wanted in expert.items():
            assert held[name].dtype == wanted.dtype
            if dtype in (torch.float16, torch.bfloat16):
                assert torch.equal(held[name], wanted)
            elif wanted.is_floating_point():
                scale = torch.maximum(wanted.abs(), base[name].abs())
                assert bool(((held[name] - wanted).abs() <= 2 * torch.finfo(dtype).eps * scale).all())


@settings(max_examples=20, deadline=None)
@given(coefficient=st.floats(-2, 2, allow_nan=False), centre=st.booleans(), rank=st.sampled_from([None, 2, 0.5]))
def test_applying_is_origin_plus_scaled_vector(
    coefficient: float, centre: bool, rank: float | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("apply")
    models = write_models(folder / "models", tasks=("a", "b"))
    base = {} if centre else {"base": models["base"]}
    receipt = taskmerge.vectors(
        experts(models), apply=True, coefficient=coefficient, centre=centre, rank=rank, output=folder / "out", **base
    )
    loaded = [load(models[task]) for task in "ab"]
    for output, expert in zip(receipt.outputs, loaded, strict=True):
        got = load(output.path)
        for name in FLOATS:
            origin = (loaded[0][name].double() + loaded[1][name]) / 2 if centre else load(models["base"])[name].double()
            step = expert[name].double() - origin
            if rank is not None and name in MATRICES:
                step = truncated(step, 2 if rank == 2 else 8)
            assert torch.allclose(got[name].double(), origin + coefficient * step, atol=2e-6)


def test_apply_copies_what_only_the_base_has(models: dict[str, Path], tmp_path: Path) -> None:
    embedding = torch.randn(5, 4)
    save_file({**load(models["base"]), "embed.weight": embedding}, models["base"])
    found = vectors(models, tmp_path / "v")
    for on_missing in ("refuse", "base"):
        out = taskmerge.vectors(
            [found["a"]], base=models["base"], apply=True, on_missing=on_missing, output=tmp_path / on_missing
        )
        assert ("embed.weight" in load(out.paths[0])) == (on_missing == "base")
    assert torch.equal(load(out.paths[0])["embed.weight"], embedding)


def test_what_an_expert_lacks_is_unchanged(models: dict[str, Path], tmp_path: Path) -> None:
    few = {name: value for name, value in load(models["b"]).items() if name != "proj"}
    save_file(few, models["b"])
    common = {"method": "task_arithmetic", "base": models["base"], "on_missing": "base"}
    wanted = merged(experts(models), tmp_path / "e.safetensors", **common)
    found = vectors(models, tmp_path / "v", on_missing="base")
    assert not load(found["b"])["proj"].any()
    assert same(merged([found[task] for task in TASKS], tmp_path / "v.safetensors", **common), wanted)
    alone = taskmerge.vectors([models["b"]], base=models["base"], output=tmp_path / "alone").paths[0]
    assert "proj" not in load(alone)
    mixed = [alone, *(found[task] for task in "acd")]
    assert same(merged(mixed, tmp_path / "m.safetensors", **common), wanted)


# --- refusals --------------------------------------------------------------------------------------------------


def test_another_origin_is_a_mismatch(models: dict[str, Path], tmp_path: Path) -> None:
    about_base, centred = vectors(models, tmp_path / "v"), vectors(models, tmp_path / "c", centre=True)
    fewer = {name: path for name, path in models.items() if name != "d"}
    other = vectors(fewer, tmp_path / "o", centre=True)
    for vector, origin in (
        (about_base["a"], centred["centre"]),
        (about_base["a"], models["b"]),
        (centred["a"], models["base"]),
        (centred["a"], other["centre"]),
    ):
        with pytest.raises(Mismatch, match="taken from") as error:
            taskmerge.merge(
                [vector, vector.with_name("b.vector.safetensors")], base=origin, output=tmp_path / "m.safetensors"
            )
        assert error.value.exit_code == 4
    with pytest.raises(Mismatch, match="cannot be merged together"):
        taskmerge.merge([centred["a"], models["b"]], base=centred["centre"], output=tmp_path / "m.safetensors")
    with pytest.raises(UsageError, match="differences from a base"):
        taskmerge.merge([about_base["a"], about_base["b"]], output=tmp_path / "m.safetensors")
    save_file({"proj": torch.ones(2, 2)}, tmp_path / "tiny.safetensors")
    with pytest.raises(Mismatch, match="lacks `blocks"):
        taskmerge.merge([about_base["a"]], base=tmp_path / "tiny.safetensors", output=tmp_path / "m.safetensors")


def test_the_base_may_lie_in_shards_or_elsewhere(models: dict[str, Path], tmp_path: Path) -> None:
    found = vectors(models, tmp_path / "v")
    again = taskmerge.merge([models["base"]], method="average", keep_base=True, shard_size=2000, output=tmp_path / "s")
    inputs = [found[task] for task in TASKS]
    got = merged(inputs, tmp_path / "m.safetensors", method="ties", base=again.paths[0])
    assert same(got, merged(inputs, tmp_path / "n.safetensors", method="ties", base=models["base"]))


def test_refusals(models: dict[str, Path], tmp_path: Path) -> None:
    out = {"output": tmp_path / "x"}
    with pytest.raises(UsageError, match="differences from a base"):
        taskmerge.vectors(experts(models), **out)
    with pytest.raises(UsageError, match="scales what is applied"):
        taskmerge.vectors(experts(models), base=models["base"], coefficient=0.5, **out)
    for coefficient in (float("nan"), float("inf")):
        with pytest.raises(UsageError, match="give a finite number"):
            taskmerge.vectors(experts(models), base=models["base"], apply=True, coefficient=coefficient, **out)
    with pytest.raises(TypeError, match="ranks"):
        taskmerge.vectors(experts(models), base=models["base"], ranks=2, **out)
    with pytest.raises(Mismatch, match="no matrix to factor"):
        taskmerge.vectors(experts(models), base=models["base"], rank=2, exclude=("blocks.*",), **out)
    with pytest.raises(NotEnough):
        taskmerge.vectors(experts(models), base=models["base"], max_memory=1000, **out)
    centred = vectors(models, tmp_path / "c", centre=True)
    with pytest.raises(UsageError, match="from the average already"):
        taskmerge.vectors([centred["a"]], base=centred["centre"], centre=True, **out)
    assert not (tmp_path / "x").exists()


def test_bad_numbers(models: dict[str, Path], tmp_path: Path) -> None:
    expert = load(models["b"])
    save_file({**expert, "proj": expert["proj"].fill_(float("nan"))}, models["b"])
    with pytest.raises(BadFile, match="NaN") as bad:
        vectors(models, tmp_path / "x")
    assert "proj" in str(bad.value)
    save_file({**expert, "proj": torch.full((16, 12), 1e6)}, models["b"])
    with pytest.raises(BadNumber, match="overflows F16"):
        vectors(models, tmp_path / "x", dtype="float16")
    assert not (tmp_path / "x").exists()


def test_broken_factors(models: dict[str, Path], tmp_path: Path) -> None:
    found = vectors(models, tmp_path / "f", rank=2)
    record = {"taskmerge": open_checkpoint(found["a"]).metadata["taskmerge"]}
    held = load(found["a"])
    for change in ({"blocks.0.attn.weight.s": torch.ones(3)}, {"blocks.0.attn.weight.U": torch.ones(23, 2)}):
        save_file({**held, **change}, found["a"], record)
        with pytest.raises(BadFile, match="factors"):
            taskmerge.merge(
                [found["a"]], method="task_arithmetic", base=models["base"], output=tmp_path / "m.safetensors"
            )
    save_file({**held, "blocks.0.attn.weight.s": torch.full((2,), float("nan"))}, found["a"], record)
    with pytest.raises(BadFile, match="NaN"):
        taskmerge.merge([found["a"]], method="task_arithmetic", base=models["base"], output=tmp_path / "m.safetensors")


def test_nothing_is_replaced_by_accident(models: dict[str, Path], tmp_path: Path) -> None:
    found = vectors(models, tmp_path / "v")
    before = found["a"].read_bytes()
    with pytest.raises(BadOutput):
        vectors(models, tmp_path / "v")
    assert vectors(models, tmp_path / "v", overwrite=True)["a"].read_bytes() == before
    with pytest.raises(UsageError, match="would replace a file of the input"):
        taskmerge.vectors(experts(models), base=models["base"], apply=True, overwrite=True, output=tmp_path / "models")
    folder = tmp_path / "models"
    everything = str(folder / "*.safetensors")
    for _ in range(2):  # the second run's glob catches what the first has written
        receipt = taskmerge.vectors([everything], output=folder, overwrite=True)
        assert [output.task for output in receipt.outputs] == list(TASKS)
    assert any("own output" in warning for warning in receipt.warnings)


def test_names_that_factors_would_take(tmp_path: Path) -> None:
    model = {"blocks.0.m.w": torch.randn(6, 4), "blocks.0.m.w.U": torch.randn(3)}
    for name in ("base", "a"):
        save_file(model, tmp_path / f"{name}.safetensors")
    with pytest.raises(Mismatch, match="name is that of another tensor's factor"):
        taskmerge.vectors(
            [tmp_path / "a.safetensors"], base=tmp_path / "base.safetensors", rank=2, output=tmp_path / "f"
        )


def test_merging_vectors_in_float64_and_with_a_prefix(models: dict[str, Path], tmp_path: Path) -> None:
    for name, path in models.items():
        save_file({f"model.{one}": value for one, value in load(path).items()}, tmp_path / f"{name}.safetensors")
    paths = {name: tmp_path / f"{name}.safetensors" for name in models}
    found = vectors(paths, tmp_path / "v", strip_prefix="model.")
    assert sorted(load(found["a"])) == sorted([*SHAPES, COUNTER])
    common = {"method": "task_arithmetic", "compute_dtype": "float64", "strip_prefix": "model.", "base": paths["base"]}
    wanted = merged(experts(paths), tmp_path / "e.safetensors", **common)
    got = merged([found[task] for task in TASKS], tmp_path / "g.safetensors", **common)
    assert agrees(got, wanted, 1e-6)


# --- adapters --------------------------------------------------------------------------------------------------


def adapter(folder: Path, seed: int) -> Path:
    """A LoRA adapter of rank 2 and scaling 1.5 on one matrix of the models here."""
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, 16, generator=generator), torch.randn(24, 2, generator=generator)
    stem = "base_model.model.blocks.0.attn"
    folder.mkdir()
    save_file({f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b}, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 3,
        "target_modules": ["attn"],
        "base_model_name_or_path": "base",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("rank", [None, 2])
def test_vectors_of_adapters(rank: int | None, models: dict[str, Path], tmp_path: Path) -> None:
    folders = [adapter(tmp_path / name, seed) for seed, name in enumerate(("p", "q"))]
    receipt = taskmerge.vectors(folders, base=models["base"], rank=rank, output=tmp_path / "v")
    for folder, output in zip(folders, receipt.outputs, strict=True):
        a, b = (one.double() for one in load(folder / "adapter_model.safetensors").values())
        held, name = load(output.path), "blocks.0.attn.weight"
        got = (held[name + ".U"] * held[name + ".s"]) @ held[name + ".Vt"] if rank else held[name]
        assert relative(got, 1.5 * (b @ a if a.shape[0] == 2 else a @ b)) < 1e-5
        assert not held["proj"].any()
        assert receipt.experts[output.task or ""] == open_adapter(folder).digest
    common = {"method": "truncated_task_arithmetic", "base": models["base"], "rank": 1}
    wanted = merged(folders, tmp_path / "a.safetensors", **common)
    assert agrees(merged(list(receipt.paths), tmp_path / "m.safetensors", **common), wanted, 1e-5)
    assert taskmerge.verify(wanted, [tmp_path, models["base"]]).same_file


# --- what configurations make of the same weights --------------------------------------------------------------


def in_folder(file: Path, **config: Any) -> Path:
    """A model's folder beside a checkpoint, with a configuration."""
    folder = file.with_suffix("")
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "x", **config}))
    (folder / "model.safetensors").write_bytes(file.read_bytes())
    return folder


@pytest.mark.parametrize("options", [{}, {"rank": 2}, {"centre": True}, {"apply": True}], ids=str)
def test_folders_of_which_one_means_another_function_are_refused(
    models: dict[str, Path], tmp_path: Path, options: dict[str, Any]
) -> None:
    base = in_folder(models["base"], rope_theta=1e4)
    folders = [in_folder(models[task], rope_theta=1e6 if place else 1e4) for place, task in enumerate(TASKS)]
    out = tmp_path / "out"
    with pytest.raises(Mismatch, match=r"differs in what changes the meaning of weights\n`rope_theta`: ") as caught:
        taskmerge.vectors(folders, base=base, output=out, **options)
    assert "in place of its folder" in caught.value.hint
    assert not out.exists()
    files = [folder / "model.safetensors" for folder in folders[1:]]
    named = [f"{task}={file}" for task, file in zip(TASKS[1:], files, strict=True)]
    taskmerge.vectors([folders[0], *named], base=base, output=out, **options)
