"""FP8 inputs are merged, subtracted, compared and scored as the weights that they stand for."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from eval_cases import prepared
from merge_cases import Outcome, load, merge, model, provenance, run, same_tensors, save
from safetensors.torch import load_file
from torch import Tensor

from fp8_cases import stored
from taskmerge.checkpoint.checkpoint import open_checkpoint
from taskmerge.checkpoint.digest import digest_of

BF16 = torch.bfloat16
SCALES = "is dequantised while it is read: tensors of FP8 codes, "
KINDS: dict[str, dict[str, Any]] = {
    "DeepSeek": {},
    "E8M0": {"scale": "F8_E8M0"},
    "E5M2": {"dtype": "F8_E5M2", "ending": "_scale"},
    "MX": {"block": (1, 4), "scale": "U8", "ending": "_scale"},
    "rows": {"block": (1, 64), "scale": "BF16", "ending": "_scale"},
    "tensors": {"block": (64, 64), "ending": "_scale"},
    "ragged": {"block": (16, 4)},
}


def write(folder: Path, kind: str = "DeepSeek") -> None:
    """`base`, `a` and `b` as FP8 (`8/`), as what they stand for in float32 (`32/`), and that in bfloat16 (`16/`)."""
    base = model(0)
    for seed, name in enumerate(("base", "a", "b")):
        plain = base if name == "base" else model(seed, near=base)
        codes, values = stored(plain, **KINDS[kind])
        save(folder / f"8/{name}.safetensors", codes)
        save(folder / f"32/{name}.safetensors", values)
        save(folder / f"16/{name}.safetensors", {name: value.to(BF16) for name, value in values.items()})


def merged(experts: str, base: str, out: str, *words: object) -> dict[str, Tensor]:
    """What a merge of `a` and `b` of one folder over the base of another writes."""
    files = (f"{experts}/a.safetensors", f"{experts}/b.safetensors", "--base", f"{base}/base.safetensors")
    merge(*files, "-o", out, *words)
    return load(out)


METHODS: tuple[tuple[object, ...], ...] = (
    ("--method", "average"),
    ("--method", "task_arithmetic"),
    ("--method", "ties"),
    ("--method", "cart", "--rank", "0.5"),
    ("--method", "task_arithmetic", "--compute-dtype", "float64"),
)


@pytest.mark.parametrize("method", METHODS, ids=lambda words: "-".join(map(str, words[1:])))
@pytest.mark.parametrize("kind", KINDS)
def test_a_merge_is_that_of_the_float32_values_byte_for_byte(here: Path, kind: str, method: tuple[object, ...]) -> None:
    write(here, kind)
    for experts, base in (("8", "8"), ("8", "32"), ("32", "8")):
        got = merged(experts, base, f"{experts}-{base}.safetensors", *method, "--dtype", "bfloat16")
        wanted = merged("32", "32", "plain.safetensors", *method, "--dtype", "bfloat16", "--overwrite")
        assert same_tensors(got, wanted)


def test_with_powers_of_two_that_is_also_the_merge_of_bfloat16_files(here: Path) -> None:
    """Codes have 4 significant bits: bfloat16 holds them, so that dequantising beforehand loses nothing."""
    write(here, "E8M0")
    got = merged("8", "8", "codes.safetensors", "--method", "task_arithmetic", "--dtype", "bfloat16")
    matrices = {name for name, value in load("8/a.safetensors").items() if value.dtype == torch.float8_e4m3fn}
    wanted = merged("16", "16", "plain.safetensors", "--method", "task_arithmetic")
    assert matrices
    assert same_tensors({name: got[name] for name in matrices}, {name: wanted[name] for name in matrices})


def test_the_types_of_outputs(here: Path) -> None:
    """bfloat16 for what was codes alone or beside bfloat16; what is beside float32 is float32, as ever."""
    write(here)
    name = "blocks.0.mlp.fc.weight"
    for first, second, dtype in (("8", "8", BF16), ("8", "16", BF16), ("16", "8", BF16), ("8", "32", torch.float32)):
        words = (
            f"a={first}/a.safetensors",
            f"b={second}/b.safetensors",
            "--method",
            "average",
            "-o",
            "out.safetensors",
        )
        said = merge(*words, "--overwrite")
        found = load("out.safetensors")
        assert found[name].dtype == dtype
        assert found.keys() == model(0).keys()
        assert f"8/{'a' if first == '8' else 'b'}.safetensors {SCALES}" in said.words
        assert "what is dequantised is written as BF16 (`--dtype` says otherwise)" in said.words
    assert "is written as" not in merge(*words, "--overwrite", "--dtype", "float16").words
    assert load("out.safetensors")[name].dtype == torch.float16
    document = json.loads(run("merge", *words, "--overwrite", "--dry-run", "--json").out)
    (linear,) = [entry for entry in document["classes"] if entry["class"] == "linear"]
    assert linear["read_as"] == ["F32", "F8_E4M3"]


def test_what_only_the_base_has_is_copied_dequantised(here: Path) -> None:
    write(here)
    alone = "blocks.1.mlp.fc.weight"
    for name in "ab":
        tensors = load(f"16/{name}.safetensors")
        del tensors[alone]
        save(here / f"16/{name}.safetensors", tensors)
    got = merged("16", "8", "out.safetensors", "--method", "task_arithmetic", "--on-missing", "base")
    assert torch.equal(got[alone], load("32/base.safetensors")[alone].to(BF16))


def test_lora_over_codes(here: Path) -> None:
    write(here)
    generator = torch.Generator().manual_seed(5)
    module = "base_model.model.blocks.0.mlp.fc"
    down, up = torch.randn(2, 8, generator=generator), torch.randn(16, 2, generator=generator)
    save(here / "lora/adapter_model.safetensors", {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up})
    (here / "lora/adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2}))
    found = {}
    for base in ("8", "32"):
        words = (
            "--method",
            "task_arithmetic",
            "--coefficient",
            "1",
            "--dtype",
            "bfloat16",
            "-o",
            f"{base}.safetensors",
        )
        merge("lora", "--base", f"{base}/base.safetensors", *words)
        found[base] = load(f"{base}.safetensors")
    assert same_tensors(found["8"], found["32"])
    weight = load("32/base.safetensors")["blocks.0.mlp.fc.weight"].double() + up.double() @ down.double()
    assert torch.allclose(found["8"]["blocks.0.mlp.fc.weight"].double(), weight, rtol=2**-8, atol=1e-6)


def test_a_lora_s_type_is_the_dequantised_base_s(here: Path) -> None:
    write(here)
    factors = {"blocks.0.mlp.fc.lora_A.weight": torch.ones(2, 8), "blocks.0.mlp.fc.lora_B.weight": torch.ones(16, 2)}
    save(here / "lora/adapter_model.safetensors", factors)
    (here / "lora/adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2}))
    merge("lora", "--base", "8/base.safetensors", "--method", "average", "-o", "out.safetensors")
    assert load("out.safetensors")["blocks.0.mlp.fc.weight"].dtype == BF16


def test_the_record_names_codes_and_scales_and_replays(here: Path) -> None:
    write(here)
    merged("8", "8", "out.safetensors", "--method", "task_arithmetic")
    with open_checkpoint(here / "8/a.safetensors") as checkpoint:
        digest, count = digest_of(checkpoint), len(checkpoint.stored)
    (first, _) = provenance("out.safetensors")["tasks"]  # type: ignore[misc]
    assert first == {"name": "a", "digest": digest, "tensors": count}
    for words in (("8",), ("8", "16", "32")):
        done = run("verify", "out.safetensors", *words)
        assert done.code == 0, done.err
    files = ("8/a.safetensors", "8/b.safetensors", "out.safetensors", "--base", "8/base.safetensors")
    said = merge(*files, "-o", "again.safetensors")
    assert "left out out.safetensors: it is an earlier merge of a, b" in said.words
    tensors = load("8/a.safetensors")
    scale = "blocks.0.mlp.fc.weight_scale_inv"
    save(here / "8/a.safetensors", {**tensors, scale: tensors[scale] * 2})
    assert run("verify", "out.safetensors", "8").code == 3, "another scale is another expert"


def test_folders_are_written_without_their_quantisation(here: Path) -> None:
    write(here)
    config = {"model_type": "x", "ä": 1, "quantization_config": {"quant_method": "fp8", "weight_block_size": [4, 4]}}
    config["text_config"] = {"hidden_size": 8, "quantization_config": {"quant_method": "fp8"}}
    for name in "ab":
        (here / name).mkdir()
        shutil.copy(here / f"8/{name}.safetensors", here / name / "model.safetensors")
        (here / name / "config.json").write_text(json.dumps(config))
    said = merge("a", "b", "--method", "average", "-o", "out")
    assert "config.json is written without what it says of quantisation" in said.words
    written = json.loads((here / "out/config.json").read_text())
    assert written == {"model_type": "x", "ä": 1, "text_config": {"hidden_size": 8}}
    assert run("inspect", "out").err == "", "nothing is odd about it"
    plain = {"model_type": "x", "n": 1e3}
    (here / "a/config.json").write_text(json.dumps(plain))
    merge("a", "b", "--method", "average", "-o", "plain")
    assert (here / "plain/config.json").read_bytes() == (here / "a/config.json").read_bytes()


def test_heads_that_are_codes_are_kept_dequantised(here: Path) -> None:
    write(here)
    for seed, name in enumerate("ab"):
        head = {"classifier.weight": torch.randn(seed + 3, 8, generator=torch.Generator().manual_seed(seed))}
        codes, values = stored(head)
        save(here / f"8/{name}.safetensors", load(f"8/{name}.safetensors") | codes)
    files = ("8/a.safetensors", "8/b.safetensors")
    merge(*files, "--method", "average", "--heads", "keep", "-o", "out.safetensors")
    assert torch.equal(load("heads/b.safetensors")["classifier.weight"], values["classifier.weight"].to(BF16))


@pytest.mark.parametrize("words", [(), ("--rank", "0.5"), ("--centre",), ("--apply",)])
def test_vectors(here: Path, words: tuple[str, ...]) -> None:
    """Those of codes are those of the values, and merge over the codes' base again."""
    write(here)
    for kind in ("8", "32"):
        base = () if "--centre" in words else ("--base", f"{kind}/base.safetensors")
        done = run("vectors", f"{kind}/a.safetensors", f"{kind}/b.safetensors", *base, *words, "-o", f"v{kind}")
        assert done.code == 0, done.err
        assert (SCALES in done.err) == (kind == "8")
    files = sorted(path.name for path in (here / "v8").iterdir())
    assert files == sorted(path.name for path in (here / "v32").iterdir())
    for file in files:
        got, wanted = load(f"v8/{file}"), load(f"v32/{file}")
        if "--apply" in words:
            wanted = {name: value.to(got[name].dtype) for name, value in wanted.items()}
            assert got["blocks.0.mlp.fc.weight"].dtype == BF16
        assert same_tensors(got, wanted)
    if words == ():
        vectors = ("v8/a.vector.safetensors", "v8/b.vector.safetensors", "--base", "8/base.safetensors")
        merge(*vectors, "--method", "task_arithmetic", "-o", "out.safetensors")
        direct = merged("8", "8", "direct.safetensors", "--method", "task_arithmetic")
        got = load("out.safetensors")
        assert all(torch.allclose(got[name].float(), direct[name].float(), atol=1e-2) for name in direct)
        assert got["blocks.0.mlp.fc.weight"].dtype == BF16
        tensors = load("8/base.safetensors")
        save(here / "8/base.safetensors", {**tensors, "proj_scale_inv": tensors["proj_scale_inv"] * 2})
        done = run("merge", *vectors, "--method", "task_arithmetic", "-o", "no.safetensors")
        assert done.code == 4, "another scale is another base"


def test_diff_compares_values(here: Path) -> None:
    write(here)
    report = _document(run("diff", "8/a.safetensors", "32/a.safetensors", "--json"))
    assert report["only_a"] == report["only_b"] == []
    assert report["norm_difference"] == 0
    kinds = {(one["name"], one["dtype_a"], one["dtype_b"], one["changed"]) for one in report["tensors"]}
    assert ("proj", "F8_E4M3", "F32", True) in kinds
    assert ("norm.weight", "F32", "F32", False) in kinds
    other = _document(run("diff", "8/a.safetensors", "8/b.safetensors", "--json"))
    plain = _document(run("diff", "32/a.safetensors", "32/b.safetensors", "--json"))
    assert [one["relative"] for one in other["tensors"]] == [one["relative"] for one in plain["tensors"]]
    assert f"8/a.safetensors {SCALES}" in run("diff", "8/a.safetensors", "32/a.safetensors").err


def test_inspect_counts_weights(here: Path) -> None:
    write(here)
    done = run("inspect", "8/a.safetensors", "--tensors")
    assert done.code == 0
    assert f"note: 8/a.safetensors {SCALES}6 with a scale for each block of 4 x 4" in done.err
    (document,), (plain,) = (json.loads(run("inspect", f"{kind}/a.safetensors", "--json").out) for kind in ("8", "32"))
    assert document["parameters"] == plain["parameters"]
    assert document["warnings"] == []
    assert document["bytes"] == sum(one["bytes"] for one in document["tensors"])
    assert document["dtypes"] == {"F32": 10, "F8_E4M3": 6}
    assert [one["kind"] for one in document["tensors"]] == [one["kind"] for one in plain["tensors"]]
    (proj,) = [one for one in document["tensors"] if one["name"] == "proj"]
    assert (proj["dtype"], proj["bytes"]) == ("F8_E4M3", 48 + 4 * 4)


def test_suites_score_the_values(here: Path) -> None:
    """Base, expert, checkpoint: all as codes, all scored as what they stand for."""
    scores = {}
    for kind in ("codes", "values"):
        folder = here / kind

        def change(suite: dict[str, Any]) -> None:
            suite["base"] = "x-base.safetensors"
            suite["tasks"]["digits"]["expert"] = "x-digits.safetensors"

        suite = prepared(folder, change)
        for name in ("base", "digits"):
            pair = stored(load_file(folder / f"{name}.safetensors"), block=(16, 16))
            save(folder / f"x-{name}.safetensors", pair[0] if kind == "codes" else pair[1])
        words = ("base", "experts", "--suite", suite, "--tasks", "digits", "--limit", "32", "--json")
        report = _document(run("eval", *words))
        scores[kind] = [(row["checkpoint"], row["score"]) for row in report["rows"]]
        assert any(SCALES in note for note in report["notes"]) == (kind == "codes")
    assert scores["codes"] == scores["values"]
    assert len(scores["codes"]) == 2


def _document(done: Outcome) -> Mapping[str, Any]:
    assert done.code == 0, done.err
    document: Mapping[str, Any] = json.loads(done.out)
    return document
