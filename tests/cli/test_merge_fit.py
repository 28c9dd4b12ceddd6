"""Exit code 4: inputs that do not fit together, all problems in one message; and the options that make them fit."""

from pathlib import Path

import pytest
import torch
from merge_cases import digest, load, merge, model, provenance, refused_merge, same_tensors, save, tree, write_experts

Files = dict[str, Path]
ALL = "*.safetensors"


def change(path: Path, **tensors: torch.Tensor | None) -> None:
    """Adds, replaces or (None) removes tensors of a file; `__` in a name stands for a dot."""
    found = load(path) | {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    save(path, {name: tensor for name, tensor in found.items() if tensor is not None})


# --- names -----------------------------------------------------------------------------------------------------


def test_every_missing_and_extra_tensor_of_every_file_is_in_one_message(experts: Files, here: Path) -> None:
    change(experts["cars"], proj=None, norm__weight=None)
    change(experts["dogs"], extra__weight=torch.ones(3))
    says = (
        "cars.safetensors: lacks 2 tensors that other experts have: `norm.weight`, `proj`",
        "dogs.safetensors: has 1 tensors that other experts lack: `extra.weight`",
        "`--on-missing skip` merges what all experts share", "`--on-missing base`",
    )  # fmt: skip
    refused_merge(4, ALL, folder=here, says=says)


def test_long_lists_are_cut_with_a_count(experts: Files, here: Path) -> None:
    change(experts["cars"], **{f"extra{index:02}": torch.ones(1) for index in range(20)})
    refused_merge(4, ALL, folder=here, says=("has 20 tensors", "`extra00`", "`extra11` and 8 more"))


def test_what_the_base_lacks_matters_to_methods_that_read_it(experts: Files, here: Path) -> None:
    change(experts["base"], proj=None)
    says = ("base.safetensors: the base lacks 1 tensors that experts have: `proj`", "--exclude 'proj'", "--heads keep")
    refused_merge(4, ALL, "-m", "ties", folder=here, says=says)
    merge(ALL, "-m", "ties", "--exclude", "proj")
    merge(ALL, "-m", "ties", "--on-missing", "skip", "-o", "skipped.safetensors", "--skip-input", "merged*")
    assert same_tensors(load("skipped.safetensors"), load("merged-ties.safetensors"))
    assert "proj" in load(merge("cars.safetensors", "dogs.safetensors", "--base", experts["base"]).paths[0])


def test_what_only_the_base_has_is_left_out_with_a_count_or_copied(experts: Files) -> None:
    change(experts["base"], text__weight=torch.full((3, 2), 7.0), text__ids=torch.arange(4))
    outcome = merge(ALL, "-m", "average", "-o", "without.safetensors")
    assert "note: left out 2 tensors that only the base has (--on-missing base copies them)" in outcome.err
    assert load("without.safetensors").keys() == load(experts["cars"]).keys()
    merge(ALL, "-m", "average", "-o", "with.safetensors", "--on-missing", "base", "--skip-input", "without*")
    copied = load("with.safetensors")
    assert torch.equal(copied["text.weight"], torch.full((3, 2), 7.0))
    assert torch.equal(copied["text.ids"], torch.arange(4))
    assert copied.keys() == load(experts["base"]).keys()


@pytest.mark.parametrize("method", ["average", "task_arithmetic", "cart", "ties"])
def test_on_missing_base_counts_an_absent_tensor_as_unchanged(experts: Files, here: Path, method: str) -> None:
    change(experts["dogs"], proj=None, blocks__0__mlp__fc__weight=None)
    merge(ALL, "-m", method, "--on-missing", "base", "-o", "filled.safetensors")
    change(experts["dogs"], **{name: load(experts["base"])[name] for name in ("proj", "blocks.0.mlp.fc.weight")})
    merge(
        "cars.safetensors",
        "dogs.safetensors",
        "maps.safetensors",
        "--base",
        experts["base"],
        "-m",
        method,
        "-o",
        "full.safetensors",
    )
    assert same_tensors(load("filled.safetensors"), load("full.safetensors"))


def test_on_missing_skip_leaves_out_what_any_expert_lacks(experts: Files) -> None:
    change(experts["dogs"], proj=None)
    outcome = merge(ALL, "--on-missing", "skip")
    assert "note: left out 1 tensors that some input lacks (--on-missing skip)" in outcome.err
    assert load(outcome.paths[0]).keys() == load(experts["dogs"]).keys()


@pytest.mark.parametrize("count", [2, 3])
def test_an_input_with_more_tensors_than_all_others_is_taken_for_a_base(here: Path, count: int) -> None:
    files = write_experts(here, *("cars", "dogs", "maps")[:count], base=False)
    change(files["dogs"], text__weight=torch.ones(2, 2))
    says = (
        "dogs.safetensors: it has 1 tensors that no other input has (`text.weight`); is it the base?",
        "--base dogs.safetensors",
        "--on-missing skip",
    )
    refused_merge(4, ALL, folder=here, says=says)
    merge(ALL, "--base", "dogs.safetensors", "-m", "task_arithmetic")


def test_include_and_exclude_choose_tensors_before_they_are_compared(experts: Files) -> None:
    change(experts["dogs"], proj=torch.ones(2, 2))
    outcome = merge(ALL, "--include", "blocks.*", "--include", "norm.weight", "--exclude", "*.bias")
    assert set(load(outcome.paths[0])) == {
        name
        for name in load(experts["cars"])
        if (name.startswith("blocks.") or name == "norm.weight") and not name.endswith(".bias")
    }


def test_no_tensor_is_left_to_merge(experts: Files, here: Path) -> None:
    refused_merge(
        4, ALL, "--exclude", "*", folder=here, says=("there is no tensor to merge", "--include and --exclude")
    )


# --- prefixes --------------------------------------------------------------------------------------------------


def test_a_prefix_that_some_files_have_is_proposed_and_stripped(experts: Files, here: Path) -> None:
    merge(ALL, "-m", "task_arithmetic", "-o", "plain.safetensors")
    Path("plain.safetensors").rename(here / "plain.kept")
    save(experts["dogs"], {f"module.visual.{name}": tensor for name, tensor in load(experts["dogs"]).items()})
    refused_merge(4, ALL, folder=here, says=("dogs.safetensors", "`--strip-prefix module.visual.`"))
    merge(ALL, "-m", "task_arithmetic", "--strip-prefix", "module.visual.", "-o", "stripped.safetensors")
    assert same_tensors(load("stripped.safetensors"), load("plain.kept"))
    again = digest(here / "stripped.safetensors")
    merge(ALL, "-m", "task_arithmetic", "--strip-prefix", "module.visual.", "-o", "stripped.safetensors", "--overwrite")
    assert digest(here / "stripped.safetensors") == again
    merge("--recipe", "stripped.safetensors", "-o", "replayed.safetensors")
    assert digest(here / "replayed.safetensors") == again


def test_a_prefix_that_all_experts_have_and_the_base_lacks_is_proposed(experts: Files, here: Path) -> None:
    for task in ("cars", "dogs", "maps"):
        save(experts[task], {f"visual.{name}": tensor for name, tensor in load(experts[task]).items()})
    refused_merge(4, ALL, "-m", "ties", folder=here, says=("base.safetensors", "`--strip-prefix visual.`"))
    merge(ALL, "-m", "ties", "--strip-prefix", "visual.")


def test_a_prefix_without_which_two_tensors_have_one_name_is_refused(experts: Files, here: Path) -> None:
    change(experts["dogs"], visual__proj=torch.ones(8, 6))
    refused_merge(
        4, ALL, "--strip-prefix", "visual.", folder=here, says=("dogs.safetensors", "two tensors have one name")
    )


# --- shapes and heads ------------------------------------------------------------------------------------------


def with_heads(files: Files, **rows: int) -> None:
    for seed, (task, count) in enumerate(rows.items()):
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(count, 8, generator=generator)
        change(files[task], classifier__weight=weight, classifier__bias=torch.arange(count))


def test_a_shape_mismatch_names_tensor_shapes_files_and_the_exclude_line_that_works(experts: Files, here: Path) -> None:
    with_heads(experts, cars=3, dogs=5, maps=5, base=3)
    says = (
        "`classifier.weight`: F32 [3, 8] in cars.safetensors; F32 [5, 8] in dogs.safetensors, maps.safetensors",
        "`classifier.bias`: I64 [3] in cars.safetensors; I64 [5]",
        "--exclude 'classifier.bias' --exclude 'classifier.weight'", "--heads keep",
    )  # fmt: skip
    refused_merge(4, ALL, folder=here, says=says)
    outcome = merge(ALL, "--exclude", "classifier.bias", "--exclude", "classifier.weight")
    assert load(outcome.paths[0]).keys() == model(0).keys()


def test_a_mis_sized_embedding_is_refused_not_cut(experts: Files, here: Path) -> None:
    change(experts["dogs"], embed__weight=torch.ones(9, 8))
    refused_merge(
        4, ALL, "-m", "task_arithmetic", folder=here, says=("`embed.weight`", "[9, 8] in dogs.safetensors", "[7, 8]")
    )


def test_the_shape_of_the_base_counts_only_where_the_base_is_read(experts: Files, here: Path) -> None:
    change(experts["base"], proj=torch.ones(2, 2))
    refused_merge(
        4, ALL, "-m", "ties", folder=here, says=("`proj`: F32 [2, 2] in base.safetensors", "--exclude 'proj'")
    )
    merge(ALL, "-m", "cart")


@pytest.mark.parametrize("method", ["cart", "task_arithmetic"])
@pytest.mark.parametrize("output", ["merged.safetensors", "out/merged.safetensors", "folder", "new/folder"])
def test_heads_keep_writes_every_tasks_own_head_beside_the_merge(
    experts: Files, here: Path, method: str, output: str
) -> None:
    merge(ALL, "-m", method, "-o", "expected.kept.safetensors")
    expected = load("expected.kept.safetensors")
    Path("expected.kept.safetensors").unlink()
    with_heads(experts, cars=3, dogs=5, maps=4)
    outcome = merge(ALL, "-m", method, "--heads", "keep", "-o", output)
    assert "note: 2 tensors" in outcome.err
    assert "kept per task: `classifier.bias`, `classifier.weight`" in outcome.err
    assert outcome.paths == [output]
    folder = here / output if not output.endswith(".safetensors") else (here / output).parent
    merged = folder / "model.safetensors" if folder == here / output else here / output
    assert same_tensors(load(merged), expected)
    for task in ("cars", "dogs", "maps"):
        own = {name: tensor for name, tensor in load(experts[task]).items() if name.startswith("classifier")}
        assert same_tensors(load(folder / "heads" / f"{task}.safetensors"), own)
        assert provenance(folder / "heads" / f"{task}.safetensors")["task"] == task
    before = tree(here)
    refused_merge(6, ALL, "-m", method, "--heads", "keep", "-o", output, folder=here, says=("exist", "--overwrite"))
    merge(ALL, "-m", method, "--heads", "keep", "-o", output, "--overwrite")
    assert tree(here) == before
    assert not [path for path in before if ".tmp-" in path]


def test_heads_that_the_base_lacks_are_kept_too_though_they_are_of_one_shape(experts: Files, here: Path) -> None:
    with_heads(experts, cars=3, dogs=3, maps=3)
    refused_merge(4, ALL, "-m", "ties", folder=here, says=("the base lacks 2 tensors", "--heads keep"))
    merge(ALL, "-m", "ties", "--heads", "keep")
    assert set(load(here / "heads" / "dogs.safetensors")) == {"classifier.weight", "classifier.bias"}


def test_heads_keep_without_heads_writes_none(experts: Files, here: Path) -> None:
    merge(ALL, "--heads", "keep")
    assert not (here / "heads").exists()


def test_nan_in_a_head_is_refused(experts: Files, here: Path) -> None:
    with_heads(experts, cars=3, dogs=5, maps=4)
    change(experts["dogs"], classifier__weight=torch.full((5, 8), float("nan")))
    refused_merge(3, ALL, "--heads", "keep", folder=here, says=("dogs.safetensors: `classifier.weight`",))


# --- tied weights ----------------------------------------------------------------------------------------------


def test_a_mixture_of_tied_and_untied_experts_is_refused_unless_the_copy_is_left_out(
    experts: Files, here: Path
) -> None:
    """A file that leaves the tied copy out does not mean the base's value: nothing is assumed."""
    for task in ("cars", "dogs"):
        change(experts[task], lm_head__weight=load(experts[task])["embed.weight"].clone())
    refused_merge(4, ALL, folder=here, says=("lm_head.weight", "maps.safetensors", "--on-missing skip"))
    outcome = merge(ALL, "--on-missing", "skip")
    assert "lm_head.weight" not in load(outcome.paths[0])
    change(experts["maps"], lm_head__weight=load(experts["maps"])["embed.weight"].clone())
    kept = load(merge(ALL, "-m", "average", "-o", "untied.safetensors").paths[0])
    assert torch.equal(kept["lm_head.weight"], kept["embed.weight"]), "equal copies stay equal"


# --- integers --------------------------------------------------------------------------------------------------


def test_an_integer_tensor_that_differs_is_refused_or_taken_from_the_first(experts: Files, here: Path) -> None:
    for index, task in enumerate(("cars", "dogs", "maps")):
        change(experts[task], ids=torch.tensor([1, 2, index // 2]), mask=torch.tensor([True, False]))
    says = (
        "`ids`",
        "differs between cars.safetensors and maps.safetensors",
        "--on-buffer first",
        "--keep-from maps 'ids'",
    )
    refused_merge(4, ALL, folder=here, says=says)
    outcome = merge(ALL, "--on-buffer", "first")
    assert load(outcome.paths[0])["ids"].tolist() == [1, 2, 0]
    assert load(outcome.paths[0])["mask"].tolist() == [True, False]


@pytest.mark.parametrize("arguments", [["-m", "average"], ["-m", "task_arithmetic"], []])
def test_num_batches_tracked_takes_the_largest_with_a_note(experts: Files, arguments: list[str]) -> None:
    for task, count in (("cars", 3), ("dogs", 900), ("maps", 4), ("base", 1)):
        change(experts[task], bn__num_batches_tracked=torch.tensor(count))
    outcome = merge(ALL, *arguments)
    assert load(outcome.paths[0])["bn.num_batches_tracked"].item() == 900
    assert "`bn.num_batches_tracked`" in outcome.err
    assert "largest" in outcome.err


def test_an_integer_in_one_file_and_a_number_in_another(experts: Files, here: Path) -> None:
    change(experts["dogs"], norm__weight=torch.ones(8, dtype=torch.int32))
    refused_merge(4, ALL, folder=here, says=("`norm.weight`: F32 [8] in", "I32 [8] in dogs.safetensors"))


# --- earlier results -------------------------------------------------------------------------------------------


def test_a_foreign_merged_output_is_refused_with_both_ways_out(experts: Files, here: Path) -> None:
    for seed, task in enumerate(("boats", "planes")):
        save(here / "other" / f"{task}.safetensors", model(100 + seed))
    merge("other/boats.safetensors", "other/planes.safetensors", "-o", "foreign.safetensors")
    says = (
        "foreign.safetensors: it is the result of an earlier merge (boats, planes)",
        "--skip-input foreign.safetensors",
        "--allow-merged",
    )
    refused_merge(4, ALL, folder=here, says=says)
    merge(ALL, "--skip-input", "foreign.safetensors", "-o", "one.safetensors")
    outcome = merge(ALL, "--allow-merged", "--skip-input", "one.safetensors", "-o", "two.safetensors")
    assert [one["name"] for one in provenance(outcome.paths[0])["tasks"]] == ["cars", "dogs", "foreign", "maps"]


def test_a_merge_of_experts_that_have_changed_since_is_foreign(experts: Files, here: Path) -> None:
    merge(ALL, "-o", "first.safetensors")
    change(experts["dogs"], proj=torch.ones(8, 6))
    refused_merge(
        4,
        ALL,
        "-o",
        "second.safetensors",
        folder=here,
        says=("first.safetensors: it is the result of an earlier merge",),
    )


# --- nothing to truncate ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["cart", "tsv_m", "iso_c", "iso_cts", "star", "truncated_task_arithmetic"])
def test_a_spectral_method_with_nothing_to_truncate_names_also(here: Path, method: str) -> None:
    for seed, name in enumerate(("base", "cars", "dogs", "maps")):
        generator = torch.Generator().manual_seed(seed)
        save(
            here / f"{name}.safetensors",
            {"layer1.0.conv1.weight": torch.randn(4, 3, 3, 3, generator=generator), "fc.bias": torch.ones(4)},
        )
    says = (f"`{method}` finds no matrix to truncate", "--also conv", "--method average")
    refused_merge(4, ALL, "-m", method, folder=here, says=says)
    merge(ALL, "-m", method, "--also", "conv")


def test_a_spectral_method_without_any_matrix_proposes_the_average_alone(here: Path) -> None:
    for name in ("cars", "dogs", "maps"):
        save(here / f"{name}.safetensors", {"norm.weight": torch.ones(4)})
    outcome = refused_merge(4, ALL, folder=here, says=("finds no matrix to truncate", "--method average"))
    assert "--also" not in outcome.err
