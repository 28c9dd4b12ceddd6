"""Exit code 2: what was asked for is wrong. The message names the option, the nearest name, and what to do."""

import os
from pathlib import Path

import pytest
from merge_cases import merge, refused, refused_merge, run, write_experts

Files = dict[str, Path]
ALL = "*.safetensors"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--rank", "0"], ("--rank", "rank 0 is no positive integer", "hint: a share such as 0.08")),
        (["--rank", "-1"], ("--rank", "no positive integer")),
        (["--rank", "1.5"], ("--rank", "rank 1.5 is outside (0, 1]", "an integer such as 8")),
        (["--rank", "0.0"], ("--rank", "outside (0, 1]")),
        (["--rank", "nan"], ("--rank", "outside (0, 1]")),
        (["--rank", "energy:1.2"], ("--rank", "energy:1.2", "outside (0, 1]")),
        (["--rank", "many"], ("--rank", "`many` is no rank")),
        (["--rank", ""], ("--rank", "no rank")),
        (["--rank", "0.1,0"], ("--rank", "rank 0 is no positive integer")),
        (["--rank"], ("`--rank` needs a value",)),
        (["--rank", "0.1", "--rank", "0.2"], ("`--rank` stands twice", "0.1,0.2")),
        (["--coefficient", "big"], ("--coefficient", "`big` is no number")),
        (["--coefficient", "nan"], ("--coefficient", "out of range")),
        (["--coefficient", "0.1:1.0"], ("--coefficient", "`0.1:1.0` is no number")),
        (["--coefficient", "0.1:1.0:0"], ("--coefficient", "the grid `0.1:1.0:0` has no points", "start:stop:step")),
        (["--coefficient", "1:0:0.1"], ("the grid `1:0:0.1` has no points",)),
        (["--coefficient", "a:b:c"], ("`a:b:c` is no grid",)),
        (["--coefficient", "0:1:0.001"], ("the grid has 1001 points", "smaller grids")),
        (["-m", "cat"], ("--method", "unknown method `cat`", "did you mean `cart`?")),
        (["-m", "dare-ties"], ("unknown method `dare-ties`", "write `--method dare --then ties`", "`--then-NAME`")),
        (["-m", "Linear"], ("unknown method `Linear`", "taskmerge calls it `average`")),
        (["-m", "frobnicate"], ("unknown method `frobnicate`", "known: average, ")),
        (["--ranc", "0.1"], ("unknown option `--ranc`", "did you mean `--rank`?")),
        (["--ranc=0.1"], ("unknown option `--ranc`", "did you mean `--rank`?")),
        (["--overwrit"], ("unknown option `--overwrit`", "did you mean `--overwrite`?")),
        (["-x"], ("unknown option `-x`",)),
        (["-rank", "0.1"], ("unknown option `-rank`", "did you mean `--rank`?")),
        (
            ["--density", "0.1"],
            ("`cart` has no option `--density`", "belongs to", "ties", "cart has --rank, --coefficient"),
        ),
        (["-m", "average", "--rank", "4"], ("`average` has no option `--rank`", "average has no options")),
        (["-m", "ties", "--scope", "modle"], ("--scope", "unknown choice `modle`", "did you mean `model`?")),
        (["-m", "ties", "--density", "0"], ("--density", "out of range", "allowed: number 1e-06..1")),
        (["-m", "slerp"], ("`slerp` merges exactly 2 experts, not 3 (cars, dogs, maps)",)),
        (["--then", "ties"], ("--then", "`cart` merges by itself", "dare or breadcrumbs")),
        (["-m", "dare", "--then", "cart"], ("--then", "`cart` cannot merge the task vectors that dare leaves", "ties")),
        (["-m", "dare", "--then", "tis"], ("unknown method `tis`", "did you mean `ties`?")),
        (["-m", "average", "--lines"], ("--lines", "`average` has none", "task_arithmetic")),
        (["-m", "cart", "--lines"], ("--lines", "`cart` has none")),
        (["--weight", "cars"], ("--weight", "`cars` is no NAME=VALUE", "--weight mnist=1.5")),
        (["--weight", "cars=much"], ("--weight", "`cars=much` is no NAME=VALUE")),
        (["--weight", "=1"], ("--weight", "`=1` is no NAME=VALUE")),
        (["--weight", "cars=nan"], ("--weight", "the weight of `cars` is nan", "finite")),
        (["--weight", "cars=inf"], ("--weight", "the weight of `cars` is inf")),
        (["--weight", "cars=1", "--weight", "cars=2"], ("--weight", "`cars` has two weights")),
        (["--weight", "cats=1"], ("--weight", "unknown task `cats`", "did you mean `cars`?")),
        (
            ["--weight", "cars=-2", "-m", "average"],
            ("--weight", "the weights sum to 0", "`average` divides by their sum"),
        ),
        (["--weight", "cars=-2"], ("--weight", "the weights sum to 0", "`cart` divides by their sum")),
        (["--weight", "cars=-2.0000001"], ("--weight", "the weights sum to")),
        (["-m", "tsv_m", "--weight", "cars=2"], ("--weight", "`tsv_m` takes no weights")),
        (["--dtype", "float3"], ("--dtype", "unknown type `float3`", "did you mean `float32`?")),
        (["--dtype", "int8"], ("--dtype", "unknown type `int8`")),
        (["--compute-dtype", "float16"], ("--compute-dtype", "`float16` is no value", "float32, float64")),
        (["--qkv", "fuse"], ("--qkv", "`fuse` is no value of `qkv`", "as-is, split, fused")),
        (["--svd", "fast"], ("--svd", "exact, randomized")),
        (["--on-missing", "ignore"], ("--on-missing", "refuse, base, skip")),
        (["--on-buffer", "last"], ("--on-buffer", "refuse, first")),
        (["--heads", "drop"], ("--heads", "refuse, keep")),
        (["--also", "linear"], ("--also", "unknown class of tensors `linear`")),
        (["--also", "convs"], ("--also", "`convs`", "did you mean `conv`?")),
        (["--threads", "0"], ("--threads", "0 threads cannot work", "1 to 100,000")),
        (["--threads", "two"], ("--threads", "valid integer", "see `taskmerge merge --help`")),
        (["--seed", "x"], ("--seed",)),
        (["--max-memory", "lots"], ("--max-memory", "`lots` is no size", "700M")),
        (["--max-memory", "inf"], ("--max-memory", "`inf` is no size")),
        (["--max-memory", "-5M"], ("--max-memory", "no size")),
        (["--shard-size", "0"], ("--shard-size", "`0` is no size")),
        (["--device", "gpu"], ("--device", "`gpu` is no device", "auto, cpu, cuda or cuda:N")),
        (["--device", "meta"], ("--device", "`meta` is no device")),
        (["--strip-prefix", "visual."], ("--strip-prefix", "no tensor's name starts with `visual.`", "blocks.")),
        (
            ["--on-missing", "base", "--skip-input", "base*", "-m", "average"],
            ("--on-missing", "needs a base", "--base FILE"),
        ),
        (["--set", "rank"], ("--set", "`rank` is no key=value", "--set rank=0.08")),
        (["--set", "ranc=0.1"], ("--set ranc", "unknown recipe key or option `ranc`", "did you mean `rank`?")),
        (["--set", "qkv=fuse"], ("--set qkv", "`fuse` is no value")),
        (["--set", "seed=one"], ("--set seed", "`seed` is an integer")),
        (["-o", "out.bin"], ("-o", "out.bin", ".safetensors")),
        (["-o", "cars.safetensors", "--overwrite"], ("cars.safetensors", "it is an input and the output", "-o")),
        (["-o", "base.safetensors", "--overwrite"], ("base.safetensors", "it is an input and the output")),
        (["-o", "cars.safetensors", "--overwrite", "--dry-run"], ("cars.safetensors", "it would be lost")),
        (["-o", "cars.safetensors", "--overwrite", "--allow-merged"], ("--skip-input cars.safetensors",)),
        (["-m"], ("-m", "requires an argument")),
        (["--coefficient", "inf"], ("--coefficient", "inf is out of range")),
        (["--coefficient", "1e400"], ("--coefficient", "out of range")),
        (["--coefficient", "0:1:1e-9"], ("--coefficient", "more than 10000 points", "smaller grids")),
        (["--weight", "cars=1e308"], ("--weight", "the weight of `cars` is 1e+308", "finite")),
        (["-m", "dare", "--then", "tiess"], ("--then", "unknown method `tiess`", "did you mean `ties`?")),
    ],
)
def test_wrong_usage(experts: Files, here: Path, arguments: list[str], says: tuple[str, ...]) -> None:
    refused_merge(2, ALL, *arguments, folder=here, says=says)


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "tsv_m", "dare", "lines", "model-stock"])
def test_a_method_on_task_vectors_needs_the_base(experts: Files, here: Path, method: str) -> None:
    refused_merge(
        2,
        "cars.safetensors",
        "dogs.safetensors",
        "-m",
        method,
        folder=here,
        says=("--base FILE", "differences from the base"),
    )


def test_a_grid_with_one_point_twice_has_it_once(experts: Files, here: Path) -> None:
    assert merge("cars.safetensors", "dogs.safetensors", "--rank", "0.5,0.50").out == "merged-cart.safetensors\n"


def test_a_name_that_is_not_utf_8_asks_for_another(experts: Files, here: Path) -> None:
    odd = here / os.fsdecode(b"odd\xff.safetensors")
    odd.write_bytes((here / "cars.safetensors").read_bytes())
    outcome = run("merge", odd, "dogs.safetensors")
    assert outcome.code == 2
    assert "is no name of a task" in outcome.err
    assert "mnist=PATH" in outcome.err
    merge(f"odd={odd}", "dogs.safetensors")


def test_two_inputs_with_one_name(experts: Files, here: Path) -> None:
    write_experts(here / "other")
    says = (
        "two inputs are named `cars`: cars.safetensors and other/cars.safetensors",
        "`other=other/cars.safetensors`",
    )
    refused_merge(2, "cars.safetensors", "other/cars.safetensors", folder=here, says=says)
    refused_merge(2, "cars=dogs.safetensors", "cars.safetensors", folder=here, says=("two inputs are named `cars`",))


def test_two_inputs_that_call_themselves_the_base(experts: Files, here: Path) -> None:
    experts["cars"].rename(here / "pretrained.safetensors")
    says = ("several inputs call themselves the base: base.safetensors and pretrained.safetensors", "`--base FILE`")
    refused_merge(2, ALL, folder=here, says=says)


@pytest.mark.parametrize("name", ["", "../cars", "a/b", ".hidden"])
def test_a_name_that_is_no_name_of_a_file(experts: Files, here: Path, name: str) -> None:
    refused_merge(
        2, f"{name}=cars.safetensors", "dogs.safetensors", folder=here, says=("is no name of a task", f"{name}=cars")
    )


def test_nothing_to_merge(here: Path) -> None:
    refused_merge(2, folder=here, says=("there is nothing to merge", "*.safetensors"))
    refused_merge(2, "-m", "average", folder=here, says=("there is nothing to merge",))


def test_only_a_base_to_merge(experts: Files, here: Path) -> None:
    refused_merge(2, "base.safetensors", folder=here, says=("there is no expert to merge",))


def test_unknown_command(here: Path) -> None:
    refused(2, "marge", folder=here, says=("marge", "merge"))


# --- recipes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("method: cart\noptoins: {rank: 0.1}\n", ("r.yaml:2:1", "unknown key `optoins`", "did you mean `options`?")),
        ("method: cart\n\nrank: 0.1\n", ("r.yaml:3:1", "unknown key `rank`", "under `options:`")),
        ("options:\n  ranc: 0.1\n", ("r.yaml:2:3", "unknown option of cart `--ranc`", "did you mean `--rank`?")),
        ("options:\n  density: 0.1\n", ("r.yaml:2:3", "`cart` has no option `--density`", "belongs to")),
        ("options:\n  coefficient: 1\n  rank: 1.5\n", ("r.yaml:3:3", "rank 1.5 is outside (0, 1]")),
        ("options: {rank: 0.1, rank: 0.2}\n", ("r.yaml:1:22", "the key `rank` stands twice")),
        ("method: cart\nmethod: ties\n", ("r.yaml:2:1", "the key `method` stands twice")),
        ("method: catr\n", ("unknown method `catr`", "did you mean `cart`?")),
        ("method: 3\n", ("r.yaml:1:1", "`method` is a text, not `3`")),
        ("qkv: yes\n", ("r.yaml:1:1", "`qkv` is a text, not `True`", "quotes")),
        ("qkv: fuse\n", ("r.yaml:1:1", "`fuse` is no value of `qkv`", "as-is, split, fused")),
        ("seed: 1.5\n", ("r.yaml:1:1", "`seed` is an integer, not `1.5`")),
        ("lines: 1\n", ("r.yaml:1:1", "`lines` is true or false")),
        ("dtype: f3\n", ("r.yaml:1:1", "unknown type `f3`")),
        ("taskmerge: 2\n", ("r.yaml:1:1", "format 2 of recipes is not known", "reads 1")),
        ("options: 0.1\n", ("r.yaml:1:1", "`options` is a mapping")),
        ("weights: [1, 2]\n", ("r.yaml:1:1", "`weights` is a mapping")),
        ("weights:\n  cars: lots\n", ("r.yaml:2:3", "the weight of `cars` is a number, not `lots`")),
        ("method: [cart\n", ("r.yaml:2:1", "this is no YAML")),
        ("- cart\n", ("r.yaml", "a recipe is a mapping of keys to values")),
        ("", ("r.yaml", "a recipe is a mapping")),
        ("\x00", ("r.yaml", "this is no YAML")),
        ("options: {rank: [!!python/name:os.system x]}\n", ("rank",)),
        ("method: !!python/name:os.system x\n", ("r.yaml:1:9", "this value cannot be read")),
        ("experts: {cars: 3}\n", ("r.yaml:1:1", "`cars` is a text, not `3`")),
    ],
)
def test_wrong_recipe(experts: Files, here: Path, text: str, says: tuple[str, ...]) -> None:
    (here / "r.yaml").write_text(text)
    refused_merge(2, ALL, "--recipe", "r.yaml", folder=here, says=says)


def test_a_file_of_coefficients_that_is_none(experts: Files, here: Path) -> None:
    (here / "w.yaml").write_text("cars: 1\ndogs: [2]\n")
    refused_merge(
        2, ALL, "--coefficients", "w.yaml", folder=here, says=("w.yaml:2:1", "the weight of `dogs` is a number")
    )
    (here / "w.yaml").write_text("0.3\n")
    refused_merge(2, ALL, "--coefficients", "w.yaml", folder=here, says=("w.yaml", "a mapping of keys to values"))
    (here / "w.yaml").write_text("cars: 1\nboats: 2\n")
    refused_merge(2, ALL, "--coefficients", "w.yaml", folder=here, says=("unknown task `boats`",))


def test_a_file_without_recipe_cannot_be_replayed(experts: Files, here: Path) -> None:
    refused_merge(
        2, ALL, "--recipe", "cars.safetensors", folder=here, says=("cars.safetensors", "it carries no recipe")
    )


def test_a_merged_file_without_digests_cannot_be_replayed(experts: Files, here: Path) -> None:
    save_to = here / "out" / "merged.safetensors"
    merge(ALL, "-o", save_to, "--no-digest")
    refused_merge(2, "--recipe", save_to, folder=here, says=("its inputs were not digested", "without --no-digest"))
