"""`taskmerge spectrum`: its numbers are those of whole matrices in float64, on every kind of input; refusals."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from merge_cases import Outcome, load, model, refused, run, save, tree, write_experts
from torch import Tensor

import taskmerge
from dialect_cases import model as mixture
from dialect_cases import one_by_one
from fp8_cases import stored
from taskmerge.spectra.report import SpectrumReport, schema

CHECK = jsonschema.Draft202012Validator(schema())
MATRICES = [f"blocks.{block}.{part}.weight" for block in (0, 1) for part in ("attn.in_proj", "mlp.fc")]
MATRICES = [name.replace("in_proj.weight", "in_proj_weight") for name in MATRICES]
Document = dict[str, Any]


def spectrum(*arguments: object) -> Outcome:
    outcome = run("spectrum", *arguments)
    assert outcome.code == 0, outcome.err
    assert "error:" not in outcome.err
    return outcome


def document(*arguments: object) -> Document:
    found: Document = json.loads(spectrum(*arguments, "--json").out)
    CHECK.validate(found)
    return found


def measured(paths: dict[str, Path], **options: Any) -> SpectrumReport:
    experts = {task: path for task, path in paths.items() if task != "base"}
    return taskmerge.spectrum(experts, base=paths.get("base"), **options)


def deltas(paths: dict[str, Path], name: str) -> Tensor:
    base = load(paths["base"])[name].double()
    return torch.stack([load(path)[name].double() - base for task, path in paths.items() if task != "base"])


# --- numbers ---------------------------------------------------------------------------------------------------


def test_every_number_is_that_of_whole_matrices(tmp_path: Path) -> None:
    paths = write_experts(tmp_path)
    report = measured(paths, rank=3, ratios=(0.5, 2))
    assert report.tasks == ("cars", "dogs", "maps")
    assert sorted(report.values("delta")) == sorted(report.values("centred")) == MATRICES
    for found in report.matrices:
        delta = deltas(paths, found.place.name)
        for space, stack in (("delta", delta), ("centred", delta - delta.mean(0))):
            one = found.spaces[space]  # type: ignore[index]  # one of the two
            u, s, vt = torch.linalg.svd(stack, full_matrices=False)
            full = s.shape[1]
            torch.testing.assert_close(one.spectra.values, s, rtol=1e-5, atol=0)
            torch.testing.assert_close(one.spectra.norm, stack.flatten(1).norm(dim=1), rtol=1e-6, atol=0)
            energy = s.square().cumsum(1) / s.square().sum(1, keepdim=True)
            assert one.spectra.energy_rank.tolist() == ((energy < 0.95).sum(1) + 1).tolist()
            torch.testing.assert_close(one.spectra.energy, energy[:, [full // 2 - 1, 1]], rtol=1e-5, atol=0)
            assert one.overlaps is not None
            left = torch.einsum("smk,tml->stkl", u[..., :3], u[..., :3]).square().sum((2, 3)) / 3
            right = torch.einsum("skn,tln->stkl", vt[:, :3], vt[:, :3]).square().sum((2, 3)) / 3
            torch.testing.assert_close(one.overlaps.left.value, left, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(one.overlaps.right.value, right, rtol=1e-4, atol=1e-5)
            unit = stack.flatten(1) / stack.flatten(1).norm(dim=1, keepdim=True)
            assert one.cosine is not None
            torch.testing.assert_close(one.cosine.value, unit @ unit.mT, rtol=0, atol=1e-6)
        assert found.zeros is not None
        assert found.zeros.tolist() == [0, 0, 0]


def test_groups_are_means_over_their_matrices(tmp_path: Path) -> None:
    found = document(*write_experts(tmp_path).values())
    for space in ("delta", "centred"):
        groups = {(one["by"], one["group"]): one for one in found["groups"] if one["space"] == space}
        assert list(groups) == [("all", "all"), ("role", "attention"), ("role", "mlp"), ("depth", "0"), ("depth", "1")]
        for (by, name), group in groups.items():
            key = {"role": "role", "depth": "block"}.get(by)
            own = [one for one in found["matrices"] if key is None or str(one[key]) == name]
            assert group["matrices"] == len(own)
            for key in ("overlap_left", "overlap_right"):
                for side in ("value", "chance"):
                    means = [sum(one[space][key][side][pair] for one in own) / len(own) for pair in range(3)]
                    assert group[key][side] == pytest.approx(means, rel=1e-5)
            ranks = [sum(one[space]["energy_rank"][task] / 8 for one in own) / len(own) for task in range(3)]
            assert group["energy_rank"] == pytest.approx(ranks)
            norms = [sum(one[space]["norm"][task] ** 2 for one in own) ** 0.5 for task in range(3)]
            assert group["norm"] == pytest.approx(norms, rel=1e-5)


def test_runs_differ_in_their_timing_alone(tmp_path: Path) -> None:
    paths = list(map(str, write_experts(tmp_path).values()))
    texts = []
    for name, words in (("a", [*paths, "-j", "1"]), ("b", [*reversed(paths), "-j", "3"])):
        spectrum(*words, "-o", tmp_path / name, "--quiet")
        found = json.loads((tmp_path / name / "report.json").read_text())
        assert found.pop("timing").keys() == {"seconds", "peak_memory"}
        texts.append(json.dumps(found))
        texts.append(str((tmp_path / name / "spectra.safetensors").read_bytes()))
    assert texts[:2] == texts[2:]


def test_a_merged_checkpoint_is_held_against_the_experts(tmp_path: Path) -> None:
    paths = write_experts(tmp_path)
    experts = [path for task, path in paths.items() if task != "base"]
    merged = tmp_path / "own" / "sum.safetensors"
    assert run("merge", *experts, "-m", "average", "-o", merged).code == 0
    found = document(*experts, "--base", paths["base"], "--merged", merged)
    assert found["merged"] == str(merged)
    for one in found["matrices"]:
        delta = deltas(paths, one["name"])
        u, s, _ = torch.linalg.svd(delta.mean(0), full_matrices=False)
        rank = int((s.square().cumsum(0) < (1 - 0.05**2) * s.square().sum()).sum()) + 1
        assert one["delta"]["alignment"]["rank"] == rank
        inside = (u[:, :rank].mT @ delta).square().sum((1, 2)) / delta.square().sum((1, 2))
        assert one["delta"]["alignment"]["value"] == pytest.approx(inside.tolist(), rel=1e-4)
        assert one["delta"]["alignment"]["chance"] == pytest.approx([rank / one["shape"][0]] * 3, rel=1e-6)


# --- kinds of inputs -------------------------------------------------------------------------------------------


def test_factor_files_say_what_their_experts_say(tmp_path: Path) -> None:
    paths = write_experts(tmp_path)
    assert run("vectors", *paths.values(), "--rank", "1.0", "-o", tmp_path / "whole").code == 0
    factors = sorted((tmp_path / "whole").glob("*.factors.safetensors"))
    dense, factored = document(*paths.values()), document(*factors, "--base", paths["base"])
    assert [one["kind"] for one in factored["experts"]] == ["factors"] * 3
    for one, other in zip(dense["matrices"], factored["matrices"], strict=True):
        for space in ("delta", "centred"):
            assert other[space]["energy_rank"] == one[space]["energy_rank"]
            for key in ("norm", "largest", "entropy_rank"):
                assert other[space][key] == pytest.approx(one[space][key], rel=1e-5)
            assert other[space]["overlap_left"]["value"] == pytest.approx(
                one[space]["overlap_left"]["value"], rel=1e-3, abs=1e-5
            )
        assert other["intruders"] == one["intruders"]


def test_cut_factors_end_where_they_were_cut(tmp_path: Path) -> None:
    paths = write_experts(tmp_path)
    assert run("vectors", *paths.values(), "--rank", "2", "-o", tmp_path / "cut").code == 0
    outcome = spectrum(*sorted((tmp_path / "cut").glob("*.factors.safetensors")), "--base", paths["base"], "--json")
    assert "hold some components only" in outcome.words
    for one in json.loads(outcome.out)["matrices"]:
        assert one["delta"]["components"] == [2, 2, 2]
        assert all(count <= 6 for count in one["centred"]["components"])
        stack = deltas(paths, one["name"])
        assert one["delta"]["largest"] == pytest.approx(torch.linalg.svdvals(stack)[:, 0].tolist(), rel=1e-5)


def test_centred_vectors_are_measured_about_their_centre(tmp_path: Path) -> None:
    paths = write_experts(tmp_path)
    experts = [path for task, path in paths.items() if task != "base"]
    assert run("vectors", *experts, "--centre", "-o", tmp_path / "centred").code == 0
    vectors = sorted((tmp_path / "centred").glob("*.vector.safetensors"))
    outcome = spectrum(*vectors, "--base", tmp_path / "centred" / "centre.safetensors", "--json")
    assert "those from the base are not known" in outcome.words
    found, dense = json.loads(outcome.out), document(*experts)
    assert found["spaces"] == dense["spaces"] == ["centred"]
    for one, other in zip(found["matrices"], dense["matrices"], strict=True):
        assert one["centred"]["largest"] == pytest.approx(other["centred"]["largest"], rel=1e-5)
        assert one["intruders"] is None


def adapters(folder: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Two LoRA adapters over a base, and the checkpoints that they fold into."""
    base, name = model(0), "blocks.0.mlp.fc"
    folded, lora = {"base": save(folder / "base.safetensors", base)}, {}
    for seed, task in enumerate(("cars", "dogs", "maps"), start=1):
        generator = torch.Generator().manual_seed(seed)
        a, b = torch.randn(2, 8, generator=generator), torch.randn(16, 2, generator=generator)
        front = f"base_model.model.{name}"
        pair = {f"{front}.lora_A.weight": a, f"{front}.lora_B.weight": b}
        save(folder / "lora" / task / "adapter_model.safetensors", pair)
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["fc"]}
        (folder / "lora" / task / "adapter_config.json").write_text(json.dumps(config))
        lora[task] = folder / "lora" / task
        folded[task] = save(
            folder / f"{task}.safetensors", {**base, f"{name}.weight": base[f"{name}.weight"] + 2 * b @ a}
        )
    return lora, folded


def test_adapters_are_their_factors(tmp_path: Path) -> None:
    lora, folded = adapters(tmp_path)
    found = document(*lora.values(), "--base", folded["base"])
    assert [one["kind"] for one in found["experts"]] == ["adapter"] * 3
    by_name = {one["name"]: one for one in found["matrices"]}
    own = by_name["blocks.0.mlp.fc.weight"]
    stack = deltas(folded, "blocks.0.mlp.fc.weight")
    assert own["delta"]["components"] == [2, 2, 2]
    assert own["delta"]["largest"] == pytest.approx(torch.linalg.svdvals(stack)[:, 0].tolist(), rel=1e-5)
    assert own["centred"]["components"] == [6, 6, 6]
    other = by_name["blocks.1.mlp.fc.weight"]
    assert other["zeros"] == [1, 1, 1]
    assert other["delta"]["norm"] == other["delta"]["entropy_rank"] == [0, 0, 0]
    assert other["delta"]["cosine"]["value"] == [None, None, None]


def test_folders_of_language_models_sharded_or_not(tmp_path: Path) -> None:
    for seed, task in enumerate(("base", "chat", "code")):
        state = mixture(0) if task == "base" else {n: v + 0.1 * mixture(seed)[n] for n, v in mixture(0).items()}
        if task == "code":
            state = one_by_one(state)  # another dialect of the same model
        names, folder = sorted(state), tmp_path / task
        parts = (names[::2], names[1::2])
        files = [f"model-{n}-of-00002.safetensors" for n in ("00001", "00002")]
        for file, part in zip(files, parts, strict=True):
            save(folder / file, {name: state[name] for name in part})
        places = {name: file for file, part in zip(files, parts, strict=True) for name in part}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
        (folder / "config.json").write_text(json.dumps({"model_type": "tiny"}))
    found = document(tmp_path / "chat", tmp_path / "code", "--base", tmp_path / "base")
    stacks = [one for one in found["matrices"] if one["class"] == "stack"]
    assert {one["expert"] for one in stacks} == {0, 1, 2}
    up = "model.language_model.layers.1.mlp.experts.gate_up_proj"
    for one in stacks:
        if one["name"] == up:
            delta = 0.1 * torch.stack([mixture(seed)[up][one["expert"]] for seed in (1, 2)]).double()
            assert one["delta"]["largest"] == pytest.approx(torch.linalg.svdvals(delta)[:, 0].tolist(), rel=1e-4)
    assert found["matrices"][0]["centred"]["cosine"] is None  # two experts
    towers = {one["tower"] for one in found["groups"] if one["by"] == "depth"}
    assert towers == {"model.language_model.layers", "model.vision_tower.encoder.layers"}


def test_codes_with_scales_count_as_the_numbers_that_they_stand_for(tmp_path: Path) -> None:
    base = model(0)
    paths = {"base": save(tmp_path / "base.safetensors", base)}
    plain = dict(paths)
    for seed, task in enumerate(("cars", "dogs"), start=1):
        coded, numbers = stored(model(seed, near=base))
        paths[task] = save(tmp_path / "coded" / task / "model.safetensors", coded)
        config = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [4, 4]}}
        (paths[task].parent / "config.json").write_text(json.dumps(config))
        plain[task] = save(tmp_path / "plain" / f"{task}.safetensors", numbers)
    one = measured({task: path.parent if "coded" in path.parts else path for task, path in paths.items()})
    other = measured(plain)
    for name, values in other.values("delta").items():
        torch.testing.assert_close(one.values("delta")[name], values)


def test_q_k_and_v_taken_apart_are_three_matrices(tmp_path: Path) -> None:
    paths = write_experts(tmp_path)
    found = document(*paths.values(), "--qkv", "split")
    pieces = [one for one in found["matrices"] if one["name"] == "blocks.0.attn.in_proj_weight"]
    assert [one["piece"] for one in pieces] == ["k", "q", "v"]
    delta = deltas(paths, "blocks.0.attn.in_proj_weight")
    for one, rows in zip(pieces, (delta[:, 8:16], delta[:, :8], delta[:, 16:]), strict=True):
        assert one["shape"] == [8, 8]
        assert one["delta"]["largest"] == pytest.approx(torch.linalg.svdvals(rows)[:, 0].tolist(), rel=1e-5)


def test_tensors_in_memory_are_measured_too() -> None:
    base = model(0)
    report = taskmerge.spectrum({"a": model(1, near=base), "b": model(2, near=base)}, base=base)
    assert report.spaces == ("delta", "centred")
    CHECK.validate(report.to_dict())


# --- what is absent, and said ----------------------------------------------------------------------------------


def test_one_expert_has_no_average(tmp_path: Path) -> None:
    paths = write_experts(tmp_path, "cars")
    outcome = spectrum(paths["cars"], "--base", paths["base"], "--json")
    assert "nothing lies between tasks" in outcome.words
    found = json.loads(outcome.out)
    CHECK.validate(found)
    assert found["spaces"] == ["delta"]
    assert found["pairs"] == []
    assert found["matrices"][0]["delta"]["overlap_left"] is None
    assert "1 expert" in spectrum(paths["cars"], "--base", paths["base"], "--quiet").out
    refused(2, "spectrum", paths["cars"], says=("--base",))


def test_without_a_base_only_what_is_centred(tmp_path: Path) -> None:
    paths = write_experts(tmp_path, base=False)
    outcome = spectrum(*paths.values(), "--json")
    assert "without a base" in outcome.words
    found = json.loads(outcome.out)
    CHECK.validate(found)
    assert found["spaces"] == ["centred"]
    assert found["matrices"][0]["zeros"] is None
    assert found["groups"][0]["intruders"] is None


def test_experts_that_are_the_base_have_zero_spectra(tmp_path: Path) -> None:
    base = model(0)
    paths = {task: save(tmp_path / f"{task}.safetensors", base) for task in ("base", "cars", "dogs", "maps")}
    found = document(*paths.values())
    for one in found["matrices"]:
        assert one["zeros"] == [1, 1, 1]
        assert one["intruders"] == [0, 0, 0]
        for space in ("delta", "centred"):
            assert one[space]["components"] == one[space]["energy_rank"] == [0, 0, 0]
            assert one[space]["exponent"] == [None, None, None]
            assert one[space]["interference"]["value"] == [[None] * 3] * 3
    spectrum(*paths.values(), "-o", tmp_path / "page", "--quiet")


def test_task_heads_are_left_aside(tmp_path: Path) -> None:
    base = model(0)
    paths = {"base": save(tmp_path / "base.safetensors", base)}
    for seed, task in enumerate(("cars", "dogs"), start=1):
        state = model(seed, near=base, **{"classifier.weight": torch.randn(seed + 2, 8)})
        paths[task] = save(tmp_path / f"{task}.safetensors", state)
    assert "task heads are left aside" in spectrum(*paths.values()).words


# --- refusals --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words", [("--rank", "1.5"), ("--rank", "0"), ("--rank", "energy:0.9"), ("--ratios", "0.1,x"), ("--ratios", "-1")]
)
def test_ranks_out_of_range_are_refused(tmp_path: Path, words: tuple[str, str]) -> None:
    paths = write_experts(tmp_path)
    refused(2, "spectrum", *paths.values(), *words, "-o", tmp_path / "out", folder=tmp_path, says=(words[0],))


def test_what_cannot_be_measured_has_its_code(tmp_path: Path) -> None:
    paths = write_experts(tmp_path)
    experts = [path for task, path in paths.items() if task != "base"]
    vectors = {name: value for name, value in model(0).items() if value.dim() < 2}
    lone = [save(tmp_path / "lone" / f"{one}.safetensors", vectors) for one in "ab"]
    refused(4, "spectrum", *lone, says=("no matrix",))
    refused(4, "spectrum", *experts, "--base", paths["base"], "--include", "proj", says=("--also projection",))
    assert len(document(*experts, "--include", "proj", "--also", "projection")["matrices"]) == 1
    refused(5, "spectrum", *paths.values(), "--max-memory", "1M", says=("--max-memory",))
    refused(3, "spectrum", *experts, "--merged", tmp_path / "none.safetensors", says=("no such file",))
    spoilt = {**load(paths["cars"]), "blocks.0.mlp.fc.weight": torch.full((16, 8), torch.nan)}
    save(paths["cars"], spoilt)
    refused(3, "spectrum", *paths.values(), "-o", tmp_path / "out", folder=tmp_path, says=("NaN", "cars.safetensors"))


def test_factors_of_another_base_are_refused(tmp_path: Path) -> None:
    paths = write_experts(tmp_path)
    assert run("vectors", *paths.values(), "--rank", "2", "-o", tmp_path / "cut").code == 0
    other = save(tmp_path / "other.safetensors", model(9))
    refused(
        4, "spectrum", *sorted((tmp_path / "cut").glob("*.safetensors")), "--base", other, says=("other.safetensors",)
    )


def test_nothing_is_written_over(tmp_path: Path) -> None:
    paths = write_experts(tmp_path)
    spectrum(*paths.values(), "-o", tmp_path / "out", "--quiet")
    before = tree(tmp_path / "out")
    assert {"report.json", "report.html", "report.md", "spectra.safetensors", "figures/"} <= before.keys()
    refused(6, "spectrum", *paths.values(), "-o", tmp_path / "out", folder=tmp_path, says=("--overwrite",))
    spectrum(*paths.values(), "-o", tmp_path / "out", "--quiet", "--overwrite")
    values = load(tmp_path / "out" / "spectra.safetensors")
    assert set(values) == {f"{space}/{name}" for space in ("delta", "centred") for name in MATRICES}
    assert values[f"delta/{MATRICES[0]}"].shape == (3, 8)


# --- what people see -------------------------------------------------------------------------------------------


def test_the_page_fits_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out = spectrum(*write_experts(tmp_path).values()).out
    tables = [line for line in out.splitlines() if "  " in line.strip() or "─" in line]
    assert max(map(len, tables)) <= 80  # sentences are folded by the terminal, commands never
    assert 20 < len(tables) < 60
    assert "chance" in out
    assert "cars" in out


def hostile(folder: Path, name: str) -> list[Path]:
    base = model(0)
    paths = [save(folder / "base.safetensors", base)]
    for seed in (1, 2, 3):
        paths.append(save(folder / f"{seed}{name}.safetensors", model(seed, near=base)))
    return paths


@pytest.mark.parametrize("name", ["<img src=x onerror=alert(1)>", "'\"&amp;", "\x1b[31mred", "|a|b|"])
def test_names_are_text_and_nothing_else(tmp_path: Path, name: str) -> None:
    spectrum(*hostile(tmp_path / "in", name.replace("/", "")), "-o", tmp_path / "out", "--quiet")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<img src=x" not in page
    assert "\x1b" not in page
    assert "\x1b" not in spectrum(*hostile(tmp_path / "again", name.replace("/", ""))).out


def test_progress_reaches_the_end(tmp_path: Path) -> None:
    heard: list[tuple[int, int]] = []
    measured(write_experts(tmp_path), progress=lambda done, total: heard.append((done, total)))
    assert heard[-1] == (2 * (24 * 8 + 16 * 8),) * 2
    assert heard == sorted(heard)


def test_a_worker_that_is_interrupted_leaves_nothing(tmp_path: Path) -> None:
    def stopped(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measured(write_experts(tmp_path), progress=stopped)
