"""Exit code 0 with a note or a warning: inputs that are unusual but fine."""

import shutil
from pathlib import Path

import pytest
import torch
from merge_cases import digest, load, merge, model, provenance, refused_merge, same_tensors, save, tree, write_experts

from taskmerge.numerics.polar import DROPPED_NOTE, SENSITIVE_NOTE

Files = dict[str, Path]


def tasks_of(path: str | Path) -> list[str]:
    return [one["name"] for one in provenance(path)["tasks"]]


@pytest.mark.parametrize("name", ["base", "pretrained", "zeroshot", "Base"])
def test_a_base_among_the_inputs_is_found_by_its_name_and_left_out(here: Path, name: str) -> None:
    files = write_experts(here)
    files["base"].rename(here / f"{name}.safetensors")
    outcome = merge("*.safetensors", "-m", "task-arithmetic")
    assert f"note: {name}.safetensors is the base (its name is `{name}`)" in outcome.err
    assert "--keep-base" in outcome.err
    assert tasks_of(outcome.paths[0]) == ["cars", "dogs", "maps"]


def test_a_base_among_the_inputs_is_left_out_when_it_is_named_by_the_option(here: Path) -> None:
    files = write_experts(here)
    origin = files["base"].rename(here / "origin.safetensors")
    outcome = merge("*.safetensors", "--base", origin, "-m", "task_arithmetic")
    assert "origin.safetensors is the base (--base)" in outcome.err
    assert tasks_of(outcome.paths[0]) == ["cars", "dogs", "maps"]


def test_a_base_that_stands_twice_among_the_inputs_is_left_out_twice(experts: Files) -> None:
    outcome = merge("base.safetensors", "*.safetensors", "-m", "task_arithmetic")
    assert tasks_of(outcome.paths[0]) == ["cars", "dogs", "maps"]


def test_keep_base_merges_the_base_too(experts: Files) -> None:
    outcome = merge("*.safetensors", "--keep-base", "-m", "average")
    assert tasks_of(outcome.paths[0]) == ["base", "cars", "dogs", "maps"]


def test_an_input_named_like_a_base_is_merged_with_a_warning_when_another_is_the_base(
    experts: Files, here: Path
) -> None:
    origin = save(here / "elsewhere" / "origin.safetensors", model(9))
    outcome = merge("*.safetensors", "--base", origin, "-m", "task_arithmetic")
    assert "warning: base.safetensors is merged as an expert, though it is named like a base" in outcome.err
    assert tasks_of(outcome.paths[0]) == ["base", "cars", "dogs", "maps"]


@pytest.mark.parametrize("method", ["average", "cart"])
def test_one_input_only_gives_that_expert_with_a_note(experts: Files, method: str) -> None:
    outcome = merge("cars.safetensors", "-m", method)
    assert "note: only one expert" in outcome.err
    assert same_tensors(load(outcome.paths[0]), load(experts["cars"]))


def test_cart_of_two_experts_is_their_average_with_a_note(experts: Files) -> None:
    merged = merge("cars.safetensors", "dogs.safetensors")
    average = merge("cars.safetensors", "dogs.safetensors", "-m", "average")
    assert "note: CART of two experts" in merged.err
    assert same_tensors(load(merged.paths[0]), load(average.paths[0]))


@pytest.mark.parametrize(
    "method", ["cart", "average", "tsv_m", "iso_c", "iso_cts", "star", "truncated_task_arithmetic"]
)
def test_experts_that_equal_the_base_give_it_back(here: Path, method: str) -> None:
    """All task matrices are zero: nothing to factor, nothing divided by zero."""
    origin = model(0)
    for name in ("base", "cars", "dogs", "maps"):
        save(here / f"{name}.safetensors", origin)
    outcome = merge("*.safetensors", "-m", method)
    assert same_tensors(load(outcome.paths[0]), origin)


@pytest.mark.parametrize("method", ["cart", "average", "task_arithmetic", "ties", "tsv_m", "slerp"])
def test_tensors_that_are_all_zero_stay_zero(here: Path, method: str) -> None:
    zeros = {name: torch.zeros_like(tensor) for name, tensor in model(0).items()}
    for name in ("base", "cars", "dogs"):
        save(here / f"{name}.safetensors", zeros)
    assert same_tensors(load(merge("*.safetensors", "-m", method).paths[0]), zeros)


@pytest.mark.parametrize("method", ["cart", "task_arithmetic"])
def test_the_same_command_twice_gives_the_same_bytes(experts: Files, method: str) -> None:
    first = merge("*.safetensors", "-m", method)
    before = digest(Path(first.paths[0]))
    second = merge("*.safetensors", "-m", method, "--overwrite")
    assert second.paths == first.paths
    assert f"warning: left out {first.paths[0]}: it is this run's own output" in second.err
    assert digest(Path(first.paths[0])) == before


def test_the_same_command_twice_with_shards_and_folders(experts: Files, here: Path) -> None:
    for output in (("-o", "big.safetensors", "--shard-size", "1k"), ("-o", "folder", "--shard-size", "1k")):
        merge("*.safetensors", *output)
        before = tree(here)
        merge("*.safetensors", *output, "--overwrite")
        assert tree(here) == before
    merge("*.safetensors", "folder", *output, "--overwrite")
    assert tree(here) == before


def test_an_earlier_result_of_the_same_experts_is_left_out_under_any_name(experts: Files, here: Path) -> None:
    first = merge("*.safetensors", "-o", "first.safetensors")
    second = merge("*.safetensors", "-o", "second.safetensors")
    assert "warning: left out first.safetensors: it is an earlier merge of cars, dogs, maps" in second.err
    assert digest(here / "first.safetensors") == digest(here / "second.safetensors")
    assert first.paths != second.paths


def test_an_earlier_result_is_known_by_content_not_by_the_names_of_its_experts(experts: Files) -> None:
    merge("a=cars.safetensors", "b=dogs.safetensors", "-o", "first.safetensors")
    outcome = merge("cars.safetensors", "dogs.safetensors", "first.safetensors", "-o", "second.safetensors")
    assert "left out first.safetensors: it is an earlier merge of a, b" in outcome.err


def test_an_earlier_result_of_part_of_the_experts_and_tensors_is_left_out(experts: Files) -> None:
    merge("cars.safetensors", "dogs.safetensors", "--exclude", "proj", "-o", "first.safetensors")
    outcome = merge(
        "cars.safetensors", "dogs.safetensors", "maps.safetensors", "first.safetensors", "-o", "second.safetensors"
    )
    assert "left out first.safetensors" in outcome.err
    assert tasks_of("second.safetensors") == ["cars", "dogs", "maps"]


def test_an_unreadable_file_at_the_output_path_is_replaced(experts: Files, here: Path) -> None:
    (here / "merged-cart.safetensors").write_bytes(b"\x10")
    outcome = merge("*.safetensors", "--overwrite")
    assert "left out merged-cart.safetensors" in outcome.err


def test_a_file_of_others_at_the_output_path_is_replaced_only_when_it_is_said_to_be_no_expert(
    experts: Files, here: Path
) -> None:
    """Exit 6 without --overwrite, 2 with it, as long as the file may be an expert."""
    refused_merge(6, "*.safetensors", "-o", "cars.safetensors", folder=here, says=("cars.safetensors: exists already",))
    says = ("cars.safetensors: it is an input and the output", "`--skip-input cars.safetensors` lets it be replaced")
    refused_merge(2, "*.safetensors", "-o", "cars.safetensors", "--overwrite", folder=here, says=says)
    merge("*.safetensors", "-o", "cars.safetensors", "--overwrite", "--skip-input", "cars.safetensors")
    assert tasks_of("cars.safetensors") == ["dogs", "maps"]
    merge("*.safetensors", "-o", "cars.safetensors", "--overwrite")
    assert tasks_of("cars.safetensors") == ["dogs", "maps"], "now it is an earlier result"


def test_a_base_is_never_replaced_even_if_it_is_an_earlier_result(experts: Files, here: Path) -> None:
    merge("cars.safetensors", "dogs.safetensors", "-o", "start.safetensors")
    says = ("start.safetensors: it is an input and the output",)
    arguments = ("maps.safetensors", "--base", "start.safetensors", "-o", "start.safetensors", "--overwrite")
    refused_merge(2, *arguments, folder=here, says=says)


def test_an_adapter_at_the_output_path_is_not_written_into(experts: Files, here: Path) -> None:
    (here / "lora").mkdir()
    (here / "lora" / "adapter_config.json").write_text("{}")
    says = ("lora: it is an input and the output",)
    refused_merge(2, "cars.safetensors", "lora", "-o", "lora", "--overwrite", folder=here, says=says)


def test_the_same_content_twice_is_merged_with_a_warning(experts: Files, here: Path) -> None:
    shutil.copy(experts["cars"], here / "copy.safetensors")
    outcome = merge("*.safetensors", "-m", "average")
    assert "warning: cars and copy are the same, tensor for tensor" in outcome.err
    assert tasks_of(outcome.paths[0]) == ["cars", "copy", "dogs", "maps"]


def test_names_that_headers_escape_twice_fit_into_the_record(here: Path) -> None:
    """Room for the record is taken before anybody knows which inputs are the same."""
    odd = ['"' * 200, "\x01" * 200, "\\" * 200, "é" * 120, "x" * 240]
    first = save(here / f"{odd[0]}.safetensors", model(1))
    for name in [*odd[1:], *(f"{number}" for number in range(8))]:
        shutil.copy(first, here / f"{name}.safetensors")
    outcome = merge("*.safetensors", "-m", "average", "-o", "out/x.safetensors")
    assert outcome.err.count("are the same, tensor for tensor") == 12
    assert sorted(tasks_of(outcome.paths[0])) == sorted([*odd, *(f"{number}" for number in range(8))])


def test_globs_that_match_no_tensor_are_noted(experts: Files) -> None:
    outcome = merge("*.safetensors", "--exclude", "classifier.*")
    assert "note: --exclude 'classifier.*' matches no tensor" in outcome.err


def test_skip_input_leaves_inputs_out_with_a_note(experts: Files) -> None:
    outcome = merge("*.safetensors", "--skip-input", "d*.safetensors")
    assert "note: left out dogs.safetensors (--skip-input)" in outcome.err
    assert tasks_of(outcome.paths[0]) == ["cars", "maps"]


def test_a_rank_above_the_full_rank_is_clamped_with_a_note(experts: Files) -> None:
    outcome = merge("*.safetensors", "--rank", "9")
    assert "note: rank 9 is above the full rank of 4 matrices" in outcome.err


@pytest.mark.parametrize("method", ["tsv-m", "iso-cts"])
@pytest.mark.parametrize(("apart", "note"), [(0, DROPPED_NOTE), (1e-6, SENSITIVE_NOTE)])
def test_directions_that_tasks_share_are_noted_once_with_a_count(
    here: Path, method: str, apart: float, note: str
) -> None:
    write_experts(here, "cars")
    cars = load(here / "cars.safetensors")
    noise = model(5)
    save(here / "twin.safetensors", {name: values + apart * noise[name] for name, values in cars.items()})
    options = ["--common-fraction", "0.0"] if method == "iso-cts" else []
    outcome = merge("*.safetensors", "-m", method, *options)
    assert outcome.err.count(f"note: 4 matrices: {note}\n") == 1
    grid = merge("*.safetensors", "-m", method, *options, "--coefficient", "0.5,1.0")
    assert grid.err.count(f"note: 4 matrices: {note}\n") == 1


def test_quiet_says_nothing_but_the_path(experts: Files) -> None:
    outcome = merge("*.safetensors", "--quiet")
    assert outcome.err == ""
    assert outcome.out == "merged-cart.safetensors\n"
