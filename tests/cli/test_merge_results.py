"""What options do to the result: q, k and v, types, grids, recipes, names, folders, shards, weights."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from merge_cases import (
    digest,
    load,
    merge,
    model,
    provenance,
    refused_merge,
    run,
    same_tensors,
    save,
    tree,
    write_experts,
)
from torch import Tensor

Files = dict[str, Path]
ALL = "*.safetensors"
D = 8


# --- attention -------------------------------------------------------------------------------------------------


def split_names(prefix: str) -> list[str]:
    return [f"{prefix}.{part}_proj" for part in "qkv"]


def apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same model with its fused attention written as q_proj, k_proj and v_proj."""
    found = {}
    for name, tensor in tensors.items():
        if "in_proj_" in name:
            prefix, _, kind = name.rpartition(".in_proj_")
            found |= {
                f"{one}.{kind}": part.clone() for one, part in zip(split_names(prefix), tensor.chunk(3), strict=True)
            }
        else:
            found[name] = tensor
    return found


def write_attention(folder: Path, split: bool) -> None:
    generator = torch.Generator().manual_seed(5)
    for name in ("base", "cars", "dogs", "maps"):
        tensors = {}
        for block in range(2):
            tensors[f"blocks.{block}.attn.in_proj_weight"] = torch.randn(3 * D, D, generator=generator)
            tensors[f"blocks.{block}.attn.in_proj_bias"] = torch.randn(3 * D, generator=generator)
            tensors[f"blocks.{block}.mlp.weight"] = torch.randn(2 * D, D, generator=generator)
        save(folder / f"{name}.safetensors", apart(tensors) if split else tensors)


QKV_METHODS = [
    ["-m", "cart", "--rank", "3"],
    ["-m", "truncated_task_arithmetic", "--rank", "3"],
    ["-m", "tsv_m"],
    ["-m", "iso_c"],
    ["-m", "ties", "--scope", "tensor"],
    ["-m", "breadcrumbs", "--scope", "tensor"],
    ["-m", "breadcrumbs"],
    ["-m", "task_arithmetic"],
    ["-m", "ties"],
    ["-m", "slerp", "--skip-input", "maps*"],
]


@pytest.mark.parametrize("arguments", QKV_METHODS)
def test_a_split_model_with_qkv_fused_equals_the_fused_model(here: Path, arguments: list[str]) -> None:
    write_attention(here / "fused", split=False)
    write_attention(here / "split", split=True)
    merge("fused/*.safetensors", *arguments, "-o", "fused.out.safetensors")
    merge("split/*.safetensors", *arguments, "--qkv", "fused", "-o", "split.out.safetensors")
    assert same_tensors(apart(load("fused.out.safetensors")), load("split.out.safetensors"))


@pytest.mark.parametrize("arguments", QKV_METHODS)
def test_a_fused_model_with_qkv_split_equals_the_split_model(here: Path, arguments: list[str]) -> None:
    write_attention(here / "fused", split=False)
    write_attention(here / "split", split=True)
    merge("fused/*.safetensors", *arguments, "--qkv", "split", "-o", "fused.out.safetensors")
    merge("split/*.safetensors", *arguments, "-o", "split.out.safetensors")
    assert same_tensors(apart(load("fused.out.safetensors")), load("split.out.safetensors"))


@pytest.mark.parametrize("arguments", QKV_METHODS[:4])
def test_fused_and_split_differ_where_the_method_factorises(here: Path, arguments: list[str]) -> None:
    write_attention(here / "fused", split=False)
    merge("fused/*.safetensors", *arguments, "-o", "as-is.out.safetensors")
    merge("fused/*.safetensors", *arguments, "--qkv", "split", "-o", "split.out.safetensors")
    one, other = load("as-is.out.safetensors"), load("split.out.safetensors")
    assert not torch.allclose(one["blocks.0.attn.in_proj_weight"], other["blocks.0.attn.in_proj_weight"])
    assert torch.equal(one["blocks.0.mlp.weight"], other["blocks.0.mlp.weight"])


@pytest.mark.parametrize("arguments", QKV_METHODS[:4])
def test_gpt2s_transposed_c_attn_is_split_by_columns(here: Path, arguments: list[str]) -> None:
    """GPT-2 holds [in, 3 out]: with --qkv split it equals three matrices, each the transpose of an ordinary one."""
    write_attention(here / "split", split=True)
    for path in sorted((here / "split").iterdir()):
        split = load(path)
        fused = {name: tensor for name, tensor in split.items() if "_proj" not in name}
        for block in range(2):
            names = split_names(f"blocks.{block}.attn")
            fused[f"h.{block}.attn.c_attn.weight"] = torch.cat([split[f"{name}.weight"].T for name in names], dim=1)
            fused[f"h.{block}.attn.c_attn.bias"] = torch.cat([split[f"{name}.bias"] for name in names])
        save(here / "gpt2" / path.name, fused)
    merge("split/*.safetensors", *arguments, "--compute-dtype", "float64", "-o", "split.out.safetensors")
    merge(
        "gpt2/*.safetensors", *arguments, "--compute-dtype", "float64", "--qkv", "split", "-o", "gpt2.out.safetensors"
    )
    split, fused = load("split.out.safetensors"), load("gpt2.out.safetensors")
    for block in range(2):
        parts = [split[f"{name}.weight"].T for name in split_names(f"blocks.{block}.attn")]
        torch.testing.assert_close(fused[f"h.{block}.attn.c_attn.weight"], torch.cat(parts, dim=1))


# --- types -----------------------------------------------------------------------------------------------------


def dtypes(path: str) -> set[torch.dtype]:
    return {tensor.dtype for tensor in load(path).values()}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("method", ["average", "cart"])
def test_the_output_has_the_experts_type_even_if_the_base_has_another(
    here: Path, dtype: torch.dtype, method: str
) -> None:
    write_experts(here, dtype=dtype)
    save(here / "base.safetensors", model(0))
    assert dtypes(merge(ALL, "-m", method).paths[0]) == {dtype}


@pytest.mark.parametrize(
    ("types", "expected"),
    [
        ((torch.float16, torch.bfloat16), torch.float32),
        ((torch.float16, torch.float32), torch.float32),
        ((torch.bfloat16, torch.float64), torch.float64),
        ((torch.float8_e4m3fn, torch.bfloat16), torch.float32),
        ((torch.float8_e4m3fn, torch.float8_e5m2), torch.float32),
    ],
)
def test_mixed_types_are_promoted_with_a_note(
    here: Path, types: tuple[torch.dtype, torch.dtype], expected: torch.dtype
) -> None:
    save(here / "cars.safetensors", model(1, types[0]))
    save(here / "dogs.safetensors", model(2, types[1]))
    outcome = merge(ALL, "-m", "average")
    assert "note: 10 tensors differ in dtype between experts" in outcome.err
    assert dtypes(outcome.paths[0]) == {expected}
    average = (load("cars.safetensors")["proj"].double() + load("dogs.safetensors")["proj"].double()) / 2
    torch.testing.assert_close(load(outcome.paths[0])["proj"].double(), average, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("said", ["float16", "fp16", "half", "F16", "torch.float16"])
def test_dtype_has_the_last_word(experts: Files, said: str) -> None:
    outcome = merge(ALL, "-m", "average", "--dtype", said)
    assert dtypes(outcome.paths[0]) == {torch.float16}
    assert provenance(outcome.paths[0])["recipe"]["dtype"] == "F16"
    merge("--recipe", outcome.paths[0], "-o", "again.safetensors")
    assert digest(Path("again.safetensors")) == digest(Path(outcome.paths[0]))


def test_half_precision_is_rounded_once_at_the_end(here: Path) -> None:
    """fp16 differences would lose bits: the sum is formed in float32 and rounded to the nearest."""
    for name, value in (("base", 2048.0), ("cars", 2050.0), ("dogs", 2050.0), ("maps", 2050.0)):
        save(here / f"{name}.safetensors", {"norm": torch.full((4,), value, dtype=torch.float16)})
    merge(ALL, "-m", "task_arithmetic", "--coefficient", "0.25")
    assert load("merged-task-arithmetic.safetensors")["norm"].tolist() == [2050.0] * 4  # 2049.5, to the nearest even


# --- grids -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["cart", "truncated_task_arithmetic"])
def test_a_grid_writes_what_single_runs_write_and_the_name_carries_the_point(
    experts: Files, here: Path, method: str
) -> None:
    name = method.replace("_", "-")
    outcome = merge(ALL, "-m", method, "--rank", "0.25,3,1.0", "--coefficient", "0.5:1.0:0.5")
    expected = [
        f"merged-{name}-coefficient{c}-rank{r}.safetensors" for c in ("0.5", "1.0") for r in ("0.25", "3", "1.0")
    ]
    assert outcome.paths == expected
    for path in expected:
        coefficient, rank = path.removeprefix(f"merged-{name}-coefficient").removesuffix(".safetensors").split("-rank")
        merge(
            "cars.safetensors",
            "dogs.safetensors",
            "maps.safetensors",
            "--base",
            "base.safetensors",
            "-m",
            method,
            "--rank",
            rank,
            "--coefficient",
            coefficient,
            "-o",
            "single/one.safetensors",
            "--overwrite",
        )
        single = load(here / "single" / "one.safetensors")
        for tensor, values in load(here / path).items():  # to rounding: products of other sizes sum in other orders
            torch.testing.assert_close(values, single[tensor], rtol=1e-5, atol=1e-5)


def test_a_grid_into_a_folder_and_beside_a_name(experts: Files) -> None:
    assert merge(ALL, "--rank", "2,energy:0.9", "-o", "grid/").paths == ["grid/rank2", "grid/rankenergy0.9"]
    assert merge(ALL, "--rank", "2,3", "-o", "x.safetensors").paths == ["x-rank2.safetensors", "x-rank3.safetensors"]


def test_a_grid_of_one_point_is_no_grid(experts: Files) -> None:
    assert merge(ALL, "--rank", "0.5:0.5:0.1").paths == ["merged-cart.safetensors"]


# --- recipes ---------------------------------------------------------------------------------------------------


def test_command_line_beats_set_beats_recipe_beats_default(experts: Files, here: Path) -> None:
    (here / "r.yaml").write_text(
        "method: truncated-task-arithmetic\noptions: {rank: 3, coefficient: 0.5}\nqkv: split\nseed: 3\n"
    )

    def recipe(*arguments: str) -> dict[str, object]:
        outcome = merge(
            "cars.safetensors",
            "dogs.safetensors",
            "--base",
            "base.safetensors",
            "-o",
            "o.safetensors",
            "--overwrite",
            *arguments,
        )
        return dict(provenance(outcome.paths[0])["recipe"])

    said = recipe("--recipe", "r.yaml")
    assert said["method"] == "truncated_task_arithmetic"
    assert said["options"] == {"rank": 3, "coefficient": 0.5}
    assert (said["qkv"], said["seed"]) == ("split", 3)
    said = recipe("--recipe", "r.yaml", "--set", "rank=0.25", "--set", "qkv=fused", "--set", "options.coefficient=2")
    assert said["options"] == {"rank": 0.25, "coefficient": 2.0}
    assert said["qkv"] == "fused"
    said = recipe("--recipe", "r.yaml", "--set", "rank=0.25", "--rank", "1.0", "--qkv", "as-is", "--seed", "0")
    assert said["options"]["rank"] == 1.0
    assert "qkv" not in said
    assert "seed" not in said
    assert recipe()["options"] == {"rank": 0.08, "coefficient": 1.0}


def test_a_recipe_names_everything_relative_to_itself(experts: Files, here: Path) -> None:
    (here / "recipes").mkdir()
    text = {
        "taskmerge": 1, "method": "task_arithmetic", "base": "../base.safetensors", "output": "out.safetensors",
        "experts": {"a": "../cars.safetensors", "b": "../dogs.safetensors"}, "weights": {"a": 2}, "exclude": "proj",
        "dtype": "float16", "options": {"coefficient": 0.4},
    }  # fmt: skip
    (here / "recipes" / "r.yaml").write_text(yaml.safe_dump(text))
    assert merge("--recipe", "recipes/r.yaml").paths == ["recipes/out.safetensors"]
    arguments = (
        "--base",
        "base.safetensors",
        "--weight",
        "a=2",
        "--exclude",
        "proj",
        "--dtype",
        "half",
        "--coefficient",
        "0.4",
    )
    merge("a=cars.safetensors", "b=dogs.safetensors", "-m", "task_arithmetic", *arguments, "-o", "by-hand.safetensors")
    assert digest(here / "recipes" / "out.safetensors") == digest(here / "by-hand.safetensors")


@pytest.mark.parametrize(
    "experts_said", [["cars.safetensors", "x=dogs.safetensors"], "[cd]*s.safetensors", ["*.safetensors"]]
)
def test_a_recipe_lists_experts_and_globs(experts: Files, here: Path, experts_said: object) -> None:
    (here / "recipes").mkdir()
    for path in [*experts.values()]:
        path.rename(here / "recipes" / path.name)
    (here / "recipes" / "r.yaml").write_text(yaml.safe_dump({"experts": experts_said}))
    outcome = merge("--recipe", "recipes/r.yaml")
    assert len(provenance(outcome.paths[0])["tasks"]) == (3 if experts_said == ["*.safetensors"] else 2)


def test_ranks_in_a_recipe_mean_what_they_mean_on_the_command_line(experts: Files, here: Path) -> None:
    for said, expected in (
        ("1", 1),
        ("1.0", 1.0),
        ("'0.5'", 0.5),
        ("energy:0.9", "energy:0.9"),
        ("[2, 1.0]", None),
        ("2,1.0", None),
    ):
        (here / "r.yaml").write_text(f"options:\n  rank: {said}\n  coefficient: 1e-1\n")
        outcome = merge(
            "cars.safetensors", "dogs.safetensors", "--recipe", "r.yaml", "-o", "o.safetensors", "--overwrite"
        )
        ranks = [provenance(path)["recipe"]["options"]["rank"] for path in outcome.paths]
        assert [json.dumps(rank) for rank in ranks] == [
            json.dumps(one) for one in ([2, 1.0] if expected is None else [expected])
        ]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["-m", "ties", "--density", "0.3"],
        ["-m", "dare", "--then", "ties", "--seed", "7"],
        ["-m", "dare", "--then", "ties", "--density", "0.7", "--then-density", "0.4", "--aggregate", "sum"],
        ["-m", "task_arithmetic", "--lines", "--weight", "cars=2", "--exclude", "proj"],
        ["-m", "average", "--keep-base", "--on-missing", "skip", "--dtype", "bf16"],
        ["--on-missing", "base", "--also", "projection,embedding", "--compute-dtype", "float64"],
    ],
)
def test_a_merged_file_replays_to_the_same_bytes(experts: Files, here: Path, arguments: list[str]) -> None:
    save(here / "base.safetensors", {**load(experts["base"]), "text": torch.ones(2)})
    merge(ALL, *arguments, "-o", "out/merged.safetensors")
    merge("--recipe", "out/merged.safetensors", "-o", "again.safetensors")
    assert digest(here / "again.safetensors") == digest(here / "out" / "merged.safetensors")


def test_replay_says_which_experts_it_cannot_find(experts: Files, here: Path) -> None:
    merge("cars.safetensors", "dogs.safetensors", "-o", "out/merged.safetensors")
    experts["dogs"].rename(here / "out" / "hidden.txt")
    refused_merge(
        3,
        "--recipe",
        "out/merged.safetensors",
        folder=here,
        says=("out/merged.safetensors", "cannot find again", "`dogs` (sha256:"),
    )
    (here / "far").mkdir()
    (here / "out" / "hidden.txt").rename(here / "far" / "renamed.safetensors")
    merge("--recipe", "out/merged.safetensors", "far", "-o", "again.safetensors")
    assert digest(here / "again.safetensors") == digest(here / "out" / "merged.safetensors")


# --- chains of methods -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "alone"),
    [
        (["-m", "dare", "--density", "1", "--then-density", "0.4"], []),
        (["-m", "dare", "--density=1", "--then-density=0.4", "--scope", "tensor"], ["--scope", "tensor"]),
        (
            ["-m", "breadcrumbs", "--density", "1", "--drop_top", "0", "--then_density", "0.4", "--then-scope=tensor"],
            ["--scope", "tensor"],
        ),
        (["-m", "dare", "--set", "density=1", "--set", "then-density=0.4", "--lines"], ["--lines"]),
    ],
)
def test_the_second_method_of_a_chain_has_options_of_its_own(
    experts: Files, first: list[str], alone: list[str]
) -> None:
    """A first method that keeps everything leaves what the second gives alone."""
    chain = merge(ALL, "--then", "ties", "--aggregate", "sum", *first, "-o", "chain.safetensors")
    plain = merge(ALL, "-m", "ties", "--density", "0.4", "--aggregate", "sum", *alone, "-o", "plain.safetensors")
    assert "  --then-density 0.4\n" in chain.err
    assert same_tensors(load(chain.paths[0]), load(plain.paths[0]))
    other = merge(ALL, "--then", "ties", "--aggregate", "sum", *first[:4], "-o", "other.safetensors")
    assert not same_tensors(load(other.paths[0]), load(plain.paths[0]))


def test_a_grid_and_a_recipe_of_the_second_method_s_options(experts: Files, here: Path) -> None:
    (here / "r.yaml").write_text("method: dare\nthen: ties\noptions: {density: 0.9, then_density: '0.2,0.4'}\n")
    outcome = merge(ALL, "--recipe", "r.yaml")
    assert outcome.paths == [f"merged-dare-ties-then-density{share}.safetensors" for share in (0.2, 0.4)]
    said = [provenance(path)["recipe"]["options"] for path in outcome.paths]
    assert [(one["density"], one["then_density"]) for one in said] == [(0.9, 0.2), (0.9, 0.4)]
    replayed = merge("--recipe", outcome.paths[1], "-o", "again.safetensors")
    assert digest(Path(replayed.paths[0])) == digest(Path(outcome.paths[1]))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--then", "ties", "--then-densty", "0.2"], ("unknown option `--then-densty`",)),
        (["--then", "ties", "--then-aggregate", "sum"], ("--then-aggregate", "did you mean `--aggregate`?")),
        (["--then-density", "0.2"], ("--then-density", "did you mean `--density`?")),
        (["-m", "ties", "--then-density", "0.2"], ("--then-density", "did you mean `--density`?")),
        (["--then", "ties", "--then-density", "2"], ("--then-density", "2 is out of range")),
        (["--then", "ties", "--set", "then_densty=1"], ("--set then_densty", "unknown recipe key or option")),
        (["--then", "ties", "--then-density", "0.1", "--then_density=0.2"], ("stands twice",)),
    ],
)
def test_what_is_no_option_of_the_second_method(
    experts: Files, here: Path, arguments: list[str], says: tuple[str, ...]
) -> None:
    refused_merge(2, ALL, "-m", "dare", *arguments, folder=here, says=says)


def test_the_page_of_a_first_method_says_how_the_second_s_options_are_called() -> None:
    assert "--then-density, --then-scope\n" in run("methods", "breadcrumbs").out
    assert "--then" not in run("methods", "ties").out


# --- names and places of inputs --------------------------------------------------------------------------------


def tasks_of(path: str) -> list[str]:
    return [one["name"] for one in provenance(path)["tasks"]]


def test_names_paths_with_equals_signs_and_quoted_globs(experts: Files, here: Path) -> None:
    experts["cars"].rename(here / "lr=0.1.safetensors")
    assert tasks_of(merge("lr=0.1.safetensors", "hounds=dogs.safetensors", "-o", "1.safetensors").paths[0]) == [
        "hounds",
        "lr=0.1",
    ]
    merge("fast=lr=0.1.safetensors", "dogs.safetensors", "-o", "2.safetensors", "--weight", "fast=2")
    assert tasks_of("2.safetensors") == ["dogs", "fast"]
    merge("lr=0.1.safetensors", "dogs.safetensors", "-o", "3.safetensors", "--weight", "lr=0.1=2")
    assert provenance("3.safetensors")["recipe"]["weights"] == {"lr=0.1": 2.0}
    assert tasks_of(merge("[dm]*.safetensors", "-o", "4.safetensors").paths[0]) == ["dogs", "maps"]


def test_folders_and_indexes_are_inputs_named_by_their_folder(experts: Files, here: Path) -> None:
    expected = merge("cars.safetensors", "dogs.safetensors", "-o", "expected.safetensors").paths[0]
    (here / "in" / "cars").mkdir(parents=True)
    experts["cars"].rename(here / "in" / "cars" / "model.safetensors")
    tensors = load(experts["dogs"])
    halves = {"a.safetensors": dict(list(tensors.items())[:4]), "b.safetensors": dict(list(tensors.items())[4:])}
    for name, half in halves.items():
        save(here / "in" / "dogs" / name, half)
    weight_map = {name: file for file, half in halves.items() for name in half}
    (here / "in" / "dogs" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    ways = (["in/cars", "in/dogs"], ["in/*"], ["in/cars/model.safetensors", "in/dogs/model.safetensors.index.json"])
    for number, arguments in enumerate(ways):
        outcome = merge(*arguments, "-o", f"{number}.out.safetensors")
        assert digest(Path(outcome.paths[0])) == digest(Path(expected)), "sharding and transport change nothing"


# --- where it goes ---------------------------------------------------------------------------------------------


def model_folder(folder: Path, tensors: dict[str, Tensor], tokenizer: str) -> None:
    save(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text('{"model_type":   "bert"}')
    (folder / "tokenizer.json").write_text(tokenizer)
    (folder / "notes.txt").write_text("not carried along")


def test_a_folder_gets_config_tokenizer_and_card(here: Path) -> None:
    origin = model(0)
    model_folder(here / "base", origin, "{ }")
    for seed, task in enumerate(("cars", "dogs"), start=1):
        model_folder(here / task, model(seed, near=origin), "{ }" if task == "cars" else "{}")
    outcome = merge("base", "cars", "dogs", "-o", "out/", "-m", "task_arithmetic")
    assert outcome.paths == ["out"]
    assert set(tree(here / "out")) == {"README.md", "config.json", "model.safetensors", "tokenizer.json"}
    assert (here / "out" / "config.json").read_bytes() == (here / "base" / "config.json").read_bytes()
    assert "warning: tokenizer.json differs: cars | dogs" in outcome.err
    card = (here / "out" / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["base_model"] == ["cars", "dogs"]
    assert front["library_name"] == "transformers"
    assert front["tags"] == ["merge", "taskmerge"]
    recipe = yaml.safe_load(card.split("```yaml\n")[1].split("```")[0])
    assert recipe == provenance(here / "out" / "model.safetensors")["recipe"]
    merge("cars", "dogs", "-o", "two", "--shard-size", "1k")
    assert "model.safetensors.index.json" in tree(here / "two")


def test_shards_hold_what_one_file_holds(experts: Files, here: Path) -> None:
    whole = load(merge(ALL, "-o", "whole.safetensors").paths[0])
    outcome = merge(ALL, "-o", "parts.safetensors", "--shard-size", "1kB", "--skip-input", "whole*")
    assert outcome.paths == ["parts.safetensors.index.json"]
    index = json.loads((here / "parts.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in whole.values())
    parts: dict[str, Tensor] = {}
    for file in sorted(set(index["weight_map"].values())):
        parts |= load(here / file)
    assert same_tensors(parts, whole)


def test_weights_from_a_file_and_the_command_line(experts: Files, here: Path) -> None:
    (here / "w.yaml").write_text("cars: 2\ndogs: 0.5\n")
    (here / "w.json").write_text('{"cars": 2, "dogs": 0.5}')
    for number, file in enumerate(("w.yaml", "w.json")):
        outcome = merge(
            "[cdm]*s.safetensors",
            "-m",
            "average",
            "--coefficients",
            file,
            "--weight",
            "dogs=1",
            "-o",
            f"out{number}/x.safetensors",
        )
        assert provenance(outcome.paths[0])["recipe"]["weights"] == {"cars": 2.0, "dogs": 1.0}
        assert "--weight cars 2, dogs 1, maps 1 (not given)" in outcome.words, "a table of too few weights is seen"
    average = (
        2 * load("cars.safetensors")["proj"] + load("dogs.safetensors")["proj"] + load("maps.safetensors")["proj"]
    ) / 4
    torch.testing.assert_close(load("out0/x.safetensors")["proj"], average)


def test_the_methods_name_is_one_whatever_its_spelling(experts: Files) -> None:
    for number, name in enumerate(("task-arithmetic", "TASK_ARITHMETIC", "task_arithmetic")):
        merge("[cdm]*s.safetensors", "--base", "base.safetensors", "-m", name, "-o", f"{number}/x.safetensors")
    assert len({digest(Path(f"{number}/x.safetensors")) for number in range(3)}) == 1
