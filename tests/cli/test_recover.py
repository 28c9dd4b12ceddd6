"""`taskmerge recover`: known merges come back, by us and by others; what is none is told; what doesn't fit."""

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from merge_cases import SHAPES, load, merge, model, refused, run, save, tree, write_experts
from torch import Tensor

import taskmerge
from dialect_cases import model as mixture
from dialect_cases import spoken
from taskmerge.recovery.report import Recovery, schema

State = dict[str, Tensor]
CHECK = jsonschema.Draft202012Validator(schema())
TINY = Path(__file__).parents[2] / "examples" / "tiny"
TASKS = ("arrows", "colours", "counts", "digits", "letters", "shapes", "symbols", "textures")
EXPERTS = [str(TINY / f"{task}.safetensors") for task in TASKS]
KNOWN = {task: round(0.05 + 0.07 * place, 2) for place, task in enumerate(TASKS)}


def document(*arguments: object) -> dict[str, Any]:
    outcome = run("recover", *arguments, "--json")
    assert (outcome.code, outcome.err) == (0, ""), outcome.err
    found: dict[str, Any] = json.loads(outcome.out)
    CHECK.validate(found)
    return found


def mixed(states: list[State], weights: list[float], dtype: torch.dtype) -> State:
    """Weighted sums in float64, rounded once."""
    return {
        name: sum(w * one[name].double() for w, one in zip(weights, states, strict=True)).to(dtype)  # type: ignore[union-attr]
        for name in states[0]
    }


# --- known merges come back ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_eight_known_coefficients_come_back_to_three_digits(here: Path, dtype: str) -> None:
    given = [word for task, weight in KNOWN.items() for word in ("--weight", f"{task}={weight}")]
    base = TINY / "base.safetensors"
    shape = ("-m", "task_arithmetic", "--coefficient", 1, "--dtype", dtype, *given)
    merge(*shape, "--base", base, *EXPERTS, "-o", "m.safetensors")
    found = document("m.safetensors", *EXPERTS, "--base", base)
    assert found["verdict"] == "linear"
    fit = found["fits"]["least squares"]
    assert fit["coefficients"] == pytest.approx(KNOWN, abs=5e-4)
    assert fit["base"] == pytest.approx(1 - sum(KNOWN.values()), abs=1e-3)
    assert fit["times_rounding"] == pytest.approx(1, abs=0.15 if dtype == "float32" else 0.05)
    assert found["warnings"] == []
    assert found["rounded_to"] == {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[dtype]
    assert found["claim"]["agrees"] is True


def test_eight_bits_hide_whether_it_is_linear(here: Path) -> None:
    """Coefficients to about a percent, a warning, and a record that is neither confirmed nor contradicted."""
    given = {"arrows": 0.5, "digits": 0.3, "shapes": 0.2}
    words = [word for task, weight in given.items() for word in ("--weight", f"{task}={weight}")]
    files = [TINY / f"{task}.safetensors" for task in given]
    merge("-m", "average", *files, *words, "--dtype", "float8_e4m3fn", "-o", "m.safetensors")
    found = document("m.safetensors", *EXPERTS)
    assert (found["verdict"], found["rounded_to"]) == ("unclear", "F8_E4M3")
    wanted = {task: given.get(task, 0.0) for task in TASKS}
    assert found["fits"][found["form"]]["coefficients"] == pytest.approx(wanted, abs=0.01)
    assert any("less is left than rounding leaves" in warning for warning in found["warnings"])
    assert found["claim"]["agrees"] is None


@pytest.mark.parametrize("based", [True, False])
def test_an_average_is_one_with_its_base_and_without(here: Path, based: bool) -> None:
    merge("-m", "average", *EXPERTS, "--weight", "digits=3", "-o", "m.safetensors")
    found = document("m.safetensors", *EXPERTS, *(["--base", TINY / "base.safetensors"] if based else []))
    assert (found["verdict"], found["form"]) == ("linear", "soup")
    wanted = {task: 0.3 if task == "digits" else 0.1 for task in TASKS}
    assert found["fits"]["soup"]["coefficients"] == pytest.approx(wanted, abs=5e-4)
    assert found["claim"] == {
        "method": "average", "coefficients": pytest.approx(wanted), "absent": [], "unnamed": [], "agrees": True
    }  # fmt: skip


def test_a_few_of_many_candidates_are_found(here: Path) -> None:
    merge("-m", "task_arithmetic", "--base", TINY / "base.safetensors", EXPERTS[1], EXPERTS[6], "-o", "m.safetensors")
    found = document("m.safetensors", *EXPERTS, "--base", TINY / "base.safetensors")
    wanted = {task: 0.3 if task in ("colours", "symbols") else 0.0 for task in TASKS}
    assert found["fits"][found["form"]]["coefficients"] == pytest.approx(wanted, abs=5e-4)
    assert set(found["claim"]["unnamed"]) == set(TASKS) - {"colours", "symbols"}


def test_an_expert_is_itself(here: Path) -> None:
    merge("-m", "average", EXPERTS[0], "-o", "m.safetensors")
    outcome = run("recover", "m.safetensors", *EXPERTS, "--base", TINY / "base.safetensors", "-q")
    assert outcome.out == "it is arrows, but for rounding\n"


def test_the_base_is_itself(experts: dict[str, Path]) -> None:
    save(Path("m.safetensors"), load("base.safetensors"))
    found = document("m.safetensors", "cars.safetensors", "dogs.safetensors", "--base", "base.safetensors")
    assert found["verdict"] == "unchanged"
    assert set(found["fits"]["least squares"]["coefficients"].values()) == {0}


def test_weights_of_any_sum(experts: dict[str, Path]) -> None:
    """`normalize: false` of others: weights that sum to 0.9, about which no origin is."""
    states = [load(f"{name}.safetensors") for name in ("cars", "dogs")]
    save(Path("m.safetensors"), mixed(states, [0.5, 0.4], torch.float32))
    for base in ([], ["--base", "base.safetensors"]):
        found = document("m.safetensors", "cars.safetensors", "dogs.safetensors", *base)
        assert (found["verdict"], found["form"]) == ("linear", "scaled")
        assert found["fits"]["scaled"]["coefficients"] == pytest.approx({"cars": 0.5, "dogs": 0.4}, abs=1e-5)
        assert found["fits"]["scaled"]["base"] == (pytest.approx(0, abs=1e-4) if base else None)


def test_coefficients_that_differ_by_tensor(experts: dict[str, Path]) -> None:
    names = ("base", "cars", "dogs", "maps")
    states = {name: load(f"{name}.safetensors") for name in names}
    chance = random.Random(0)
    weights = {name: [chance.uniform(0, 0.5) for _ in range(3)] for name in SHAPES}
    merged = {
        name: mixed([{name: states[one][name]} for one in names], [1 - sum(own), *own], torch.float32)[name]
        for name, own in weights.items()
    }
    save(Path("m.safetensors"), merged)
    found = document("m.safetensors", *(f"{name}.safetensors" for name in names))
    assert found["verdict"] == "linear by tensor"
    for one in found["tensors"]:
        if one["parameters"] > 3:
            assert list(one["coefficients"].values()) == pytest.approx(weights[one["name"]], abs=1e-4), one["name"]
        else:
            assert one["times_rounding"] is None


# --- what is no linear merge -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "pointer"),
    [("cart", "spectral"), ("tsv_m", "spectral"), ("iso_c", "spectral"), ("ties", "sparse"), ("magmax", "elementwise")],
)
def test_what_is_left_points_to_the_kind_of_method(here: Path, method: str, pointer: str) -> None:
    base = TINY / "base.safetensors"
    merge("-m", method, "--base", base, *EXPERTS, "-o", "m.safetensors")
    found = document("m.safetensors", *EXPERTS, "--base", base)
    assert (found["verdict"], found["pointers"]) == ("not linear", [pointer])
    assert found["claim"] == {"method": method, "coefficients": None, "absent": [], "unnamed": [], "agrees": True}
    if pointer == "spectral":
        assert found["classes"]["vector"]["coefficients"] == pytest.approx(dict.fromkeys(TASKS, 1 / 8), abs=2e-3)
        assert found["classes"]["vector"]["of_rounding"]
        assert not found["classes"]["linear"]["of_rounding"]


def test_an_ingredient_that_is_not_there(here: Path) -> None:
    merge("-m", "average", *EXPERTS, "-o", "m.safetensors")
    outcome = run("recover", "m.safetensors", *EXPERTS[1:])
    assert outcome.out.startswith("not linear: no coefficients of these explain it\n")
    assert "experts that it names and that are not among these:\n    arrows\n" in outcome.out
    assert "there is no base here" in outcome.out


def test_a_tensor_that_no_candidate_changes(experts: dict[str, Path]) -> None:
    base = load("base.safetensors")
    for name in ("cars", "dogs"):
        save(Path(f"{name}.safetensors"), {**load(f"{name}.safetensors"), "proj": base["proj"]})
    states = [load(f"{name}.safetensors") for name in ("cars", "dogs")]
    save(Path("m.safetensors"), {**mixed(states, [0.5, 0.5], torch.float32), "proj": base["proj"] + 0.01})
    found = document("m.safetensors", "cars.safetensors", "dogs.safetensors", "--base", "base.safetensors")
    assert found["foreign"] == ["proj"]
    assert found["pointers"][0] == "foreign"


def test_equal_experts_are_told(experts: dict[str, Path]) -> None:
    save(Path("twin.safetensors"), load("dogs.safetensors"))
    merge("-m", "average", "cars.safetensors", "dogs.safetensors", "-o", "m.safetensors")
    outcome = run("recover", "m.safetensors", "cars.safetensors", "dogs.safetensors", "twin.safetensors")
    assert "? the coefficients of dogs, twin cannot be told apart" in outcome.out
    assert outcome.out.startswith("a linear merge")


def test_numbers_of_a_narrower_type_are_judged_by_it(experts: dict[str, Path]) -> None:
    states = [load(f"{name}.safetensors") for name in ("cars", "dogs")]
    merged = {name: one.float() for name, one in mixed(states, [0.3, 0.7], torch.bfloat16).items()}
    save(Path("m.safetensors"), merged)
    found = document("m.safetensors", "cars.safetensors", "dogs.safetensors")
    assert (found["verdict"], found["rounded_to"]) == ("linear", "BF16")
    assert any("stored as F32, are numbers of BF16" in note for note in found["notes"])


def test_changes_that_rounding_swallows_are_a_warning(here: Path) -> None:
    drawn = torch.Generator().manual_seed(0)
    base = {"a.0.fc.weight": torch.randn(200, 200, generator=drawn).bfloat16()}
    states = [
        {name: (one.float() + 0.004 * torch.randn(one.shape, generator=drawn)).bfloat16() for name, one in base.items()}
        for _ in range(2)
    ]
    for name, state in zip(
        ("base", "a", "b", "m"), (base, *states, mixed(states, [0.4, 0.6], torch.bfloat16)), strict=True
    ):
        save(Path(f"{name}.safetensors"), state)
    found = document("m.safetensors", "a.safetensors", "b.safetensors", "--base", "base.safetensors")
    assert any("less is left than rounding leaves" in warning for warning in found["warnings"])


# --- whatever inputs are ---------------------------------------------------------------------------------------


def test_a_merge_of_adapters(here: Path) -> None:
    base = model(0)
    save(Path("base.safetensors"), base)
    drawn, steps = torch.Generator().manual_seed(1), []
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["fc"]}
    for task in ("a", "b"):
        tensors = {}
        step = {}
        for block in (0, 1):
            down, up = torch.randn(2, 8, generator=drawn), 0.1 * torch.randn(16, 2, generator=drawn)
            module = f"base_model.model.blocks.{block}.mlp.fc"
            tensors |= {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}
            step[f"blocks.{block}.mlp.fc.weight"] = 2 * up.double() @ down.double()
        save(Path(task) / "adapter_model.safetensors", tensors)
        (Path(task) / "adapter_config.json").write_text(json.dumps(config))
        steps.append(step)
    merged = {name: one.double() for name, one in base.items()}
    for weight, step in zip((0.7, -0.2), steps, strict=True):
        merged |= {name: merged[name] + weight * one for name, one in step.items()}
    save(Path("m.safetensors"), {name: one.float() for name, one in merged.items()})
    found = document("m.safetensors", "a", "b", "--base", "base.safetensors")
    assert found["verdict"] == "linear"
    assert found["fits"]["least squares"]["coefficients"] == pytest.approx({"a": 0.7, "b": -0.2}, abs=1e-4)


@pytest.mark.parametrize("seed", range(6))
def test_dialects_are_read_as_one(here: Path, seed: int) -> None:
    states = [mixture(0), mixture(1), mixture(2)]
    merged = mixed(states, [0.1, 0.3, 0.6], torch.float32)
    for name, state in zip(("base", "a", "b", "m"), (*states, merged), strict=True):
        save(Path(name) / "model.safetensors", spoken(state, {"b": seed, "m": seed + 7}.get(name, 0)))
    found = document("m", "a", "b", "--base", "base")
    assert found["fits"]["least squares"]["coefficients"] == pytest.approx({"a": 0.3, "b": 0.6}, abs=1e-5)
    assert found["verdict"] == "linear"


def test_shards_folders_and_what_only_one_side_has(experts: dict[str, Path]) -> None:
    """A sharded folder with a head that the experts tie to their table, and so lack."""
    names = ("cars", "dogs")
    states = [load(f"{name}.safetensors") for name in names]
    merged = mixed(states, [0.25, 0.75], torch.float32)
    merged["lm_head.weight"] = merged["embed.weight"].clone()
    half = sorted(merged)[:5]
    for number, part in ((1, half), (2, sorted(set(merged) - set(half)))):
        save(Path(f"m/model-0000{number}-of-00002.safetensors"), {name: merged[name] for name in part})
    places = {name: f"model-0000{1 if name in half else 2}-of-00002.safetensors" for name in merged}
    Path("m/model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    found = document("m", "cars.safetensors", "dogs.safetensors")
    assert found["fits"]["soup"]["coefficients"] == pytest.approx({"cars": 0.25, "dogs": 0.75}, abs=1e-5)
    assert found["compared"]["left_out"] == 1
    assert any("left out 1 tensors of m " in note for note in found["notes"])


def test_state_dicts_in_memory(here: Path) -> None:
    base = model(0)
    states = {"a": model(1, near=base), "b": model(2, near=base)}
    merged = mixed([base, *states.values()], [0.2, 0.3, 0.5], torch.float32)
    found = taskmerge.recover(merged, states, base=base)
    assert isinstance(found, Recovery)
    assert found.coefficients == pytest.approx({"a": 0.3, "b": 0.5}, abs=1e-5)
    assert not any(here.iterdir())


def test_nothing_depends_on_order_or_threads(experts: dict[str, Path]) -> None:
    merge("-m", "average", "cars.safetensors", "dogs.safetensors", "maps.safetensors", "-o", "m.safetensors")
    one = run("recover", "m.safetensors", "cars.safetensors", "dogs.safetensors", "maps.safetensors", "--json", "-j", 1)
    other = run(
        "recover", "m.safetensors", "maps.safetensors", "cars.safetensors", "dogs.safetensors", "--json", "-j", 3
    )
    assert one.out == other.out
    assert one.code == 0


def test_a_glob_may_hold_the_merged_file_and_the_base(experts: dict[str, Path]) -> None:
    files = ("cars.safetensors", "dogs.safetensors")
    merge("-m", "task_arithmetic", "--base", "base.safetensors", *files, "-o", "m.safetensors")
    found = document("m.safetensors", "*.safetensors")
    assert set(found["experts"]) == {"cars", "dogs", "maps"}
    assert found["base"] == "base.safetensors"
    assert any("m.safetensors is the merged checkpoint, and no candidate" in note for note in found["notes"])


def test_the_page_is_80_columns_wide_and_quotes_names(here: Path) -> None:
    write_experts(here, "a" * 40, "b\x1b[31m")
    experts = [f"{'a' * 40}.safetensors", "b\x1b[31m.safetensors"]
    merge("-m", "ties", "--base", "base.safetensors", *experts, "-o", "m.safetensors")
    outcome = run("recover", "m.safetensors", *experts, "--base", "base.safetensors")
    assert outcome.code == 0
    assert max(map(len, outcome.out.split("\n"))) <= 80, outcome.out
    assert "\x1b" not in outcome.out + outcome.err


# --- what stops it ---------------------------------------------------------------------------------------------


def test_another_shape_is_named_with_the_way_out(experts: dict[str, Path]) -> None:
    save(Path("m.safetensors"), {**load("cars.safetensors"), "proj": torch.randn(8, 7)})
    says = ("`proj`", "[8, 7]", "--exclude 'proj'")
    refused(4, "recover", "m.safetensors", "cars.safetensors", "dogs.safetensors", folder=Path(), says=says)


def test_what_the_merged_lacks_is_named(experts: dict[str, Path]) -> None:
    save(Path("m.safetensors"), {name: one for name, one in load("cars.safetensors").items() if name != "proj"})
    files = ("m.safetensors", "cars.safetensors", "dogs.safetensors")
    refused(
        4, "recover", *files, "--base", "base.safetensors", folder=Path(), says=("lacks 1 tensors", "--on-missing skip")
    )
    assert (
        document(*files, "--base", "base.safetensors", "--on-missing", "skip")["compared"]["tensors"] == len(SHAPES) - 1
    )


def test_nothing_in_common(experts: dict[str, Path]) -> None:
    save(Path("m.safetensors"), {"other.weight": torch.randn(3, 3)})
    refused(4, "recover", "m.safetensors", "cars.safetensors", "dogs.safetensors", folder=Path())


@pytest.mark.parametrize(("file", "code"), [("gone.safetensors", 3), ("cut.safetensors", 3), ("nan.safetensors", 3)])
@pytest.mark.parametrize("role", ["merged", "expert", "base"])
def test_bad_files(experts: dict[str, Path], file: str, code: int, role: str) -> None:
    Path("cut.safetensors").write_bytes(Path("cars.safetensors").read_bytes()[:-7])
    save(Path("nan.safetensors"), {**load("cars.safetensors"), "norm.weight": torch.full((8,), torch.nan)})
    places = {"merged": "maps.safetensors", "expert": "cars.safetensors", "base": "base.safetensors", role: file}
    command = ("recover", places["merged"], places["expert"], "dogs.safetensors", "--base", places["base"])
    refused(code, *command, folder=Path(), says=(file,))


def test_too_little_memory(experts: dict[str, Path]) -> None:
    says = ("--max-memory allows",)
    refused(5, "recover", "maps.safetensors", "cars.safetensors", "--max-memory", "1M", folder=Path(), says=says)


def test_no_candidates(experts: dict[str, Path]) -> None:
    refused(2, "recover", "cars.safetensors", "cars.safetensors", folder=Path(), says=("there is no candidate",))


def test_it_writes_nothing_and_its_help_imports_no_torch(experts: dict[str, Path]) -> None:
    before = tree(Path())
    assert run("recover", "maps.safetensors", "cars.safetensors", "dogs.safetensors").code == 0
    assert tree(Path()) == before
    script = (
        "import sys; from taskmerge.cli import app\napp.run(['recover', '--help']); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, check=False).returncode == 0
