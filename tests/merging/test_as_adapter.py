"""`merge --as-adapter`: what is written is an adapter that peft loads, and what it loses is what is said."""

import json
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import taskmerge
from taskmerge.cli.app import run
from taskmerge.errors import BadOutput, Mismatch, UsageError
from taskmerge.experts.lora_names import CONFIG, WEIGHTS

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

State = dict[str, Tensor]


def llama() -> nn.Module:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            vocab_size=60, tie_word_embeddings=False,
        )
    )  # fmt: skip


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=50, n_positions=16)
    return transformers.GPT2LMHeadModel(config)


MODELS = {
    "llama": (llama, ["q_proj", "v_proj", "down_proj"], 3), "gpt2": (gpt2, ["c_attn", "c_proj"], 2),
    "tables": (llama, ["embed_tokens", "o_proj", "lm_head"], 2),
}  # fmt: skip


def state(model: nn.Module) -> State:
    return {name: value.detach().clone().contiguous() for name, value in model.state_dict().items()}


def quietly(action: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return action()


def adapter(folder: Path, make: Any, targets: list[str], rank: int, seed: int) -> Path:
    config = peft.LoraConfig(r=rank, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM")
    model = quietly(lambda: peft.get_peft_model(make(), config))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    quietly(lambda: model.save_pretrained(folder))
    return folder


def folded(folder: Path, make: Any) -> State:
    """The state dict after peft has loaded the adapter over the base and folded it in."""
    return state(quietly(lambda: peft.PeftModel.from_pretrained(make(), folder).merge_and_unload()))


def lost(receipt: taskmerge.MergeReceipt) -> float:
    """The share of the energy that notes and warnings say is lost."""
    (said,) = [text for text in (*receipt.notes, *receipt.warnings) if "merged task vector's energy" in text]
    return float(re.search(r"loses ([\d.e+-]+)%", said)[1]) / 100  # type: ignore[index]


@pytest.mark.parametrize("name", MODELS)
def test_peft_folds_it_into_what_the_merge_is(tmp_path: Path, name: str) -> None:
    """Of rank enough for all adapters side by side nothing is lost."""
    make, targets, rank = MODELS[name]
    quietly(lambda: make().save_pretrained(tmp_path / "base"))
    inputs = [adapter(tmp_path / task, make, targets, rank, seed) for seed, task in enumerate("ab")]
    common = {"base": tmp_path / "base", "method": "average"}
    taskmerge.merge(inputs, output=tmp_path / "whole.safetensors", **common)
    receipt = taskmerge.merge(inputs, output=tmp_path / "out", as_adapter=True, rank=2 * rank, **common)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [CONFIG, WEIGHTS[0]]
    assert lost(receipt) < 1e-9
    wanted, base = load_file(tmp_path / "whole.safetensors"), state(make())
    found = folded(tmp_path / "out", make)
    for tensor, value in wanted.items():
        torch.testing.assert_close(found[tensor], value, rtol=1e-5, atol=1e-6)
    assert any(not torch.equal(found[tensor], base[tensor]) for tensor in wanted)
    config = json.loads((tmp_path / "out" / CONFIG).read_text())
    assert (config["task_type"], config["r"]) == ("CAUSAL_LM", 2 * rank)


@settings(max_examples=10, deadline=None)
@given(rank=st.integers(1, 12), seed=st.integers(0, 99), method=st.sampled_from(["task_arithmetic", "average"]))
def test_what_is_lost_is_what_is_said(
    tmp_path_factory: pytest.TempPathFactory, rank: int, seed: int, method: str
) -> None:
    """Of full fine-tunings, whose norms change too; by singular values in float64."""
    tmp = tmp_path_factory.mktemp("lost")
    generator = torch.Generator().manual_seed(seed)
    shapes = {"layers.0.fc.weight": (8, 12), "layers.0.norm.weight": (8,), "layers.1.fc.weight": (12, 5)}
    base = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    save_file(base, tmp / "base.safetensors")
    tuned = {name: value + 0.1 * torch.randn(value.shape, generator=generator) for name, value in base.items()}
    save_file(tuned, tmp / "a.safetensors")
    share = {"coefficient": 0.7} if method == "task_arithmetic" else {}
    receipt = taskmerge.merge(
        [tmp / "a.safetensors"], base=tmp / "base.safetensors", method=method, output=tmp / "out", as_adapter=True,
        adapter_rank=rank, **share,
    )  # fmt: skip
    deltas = {name: tuned[name].double() - base[name].double() for name in base}
    matrices = {name: delta for name, delta in deltas.items() if delta.dim() == 2}
    total = sum(float((delta**2).sum()) for delta in deltas.values())
    kept = sum(float((torch.linalg.svdvals(delta)[:rank] ** 2).sum()) for delta in matrices.values())
    assert lost(receipt) == pytest.approx(1 - kept / total, rel=0.01)
    assert receipt.provenance["lost_energy"] == pytest.approx(1 - kept / total, rel=1e-4)
    factors = load_file(tmp / "out" / WEIGHTS[0])
    for name, delta in matrices.items():
        module = f"base_model.model.{name.removesuffix('.weight')}"
        found = factors[f"{module}.lora_B.weight"].double() @ factors[f"{module}.lora_A.weight"].double()
        u, s, v = torch.linalg.svd(share.get("coefficient", 1.0) * delta, full_matrices=False)
        torch.testing.assert_close(found, (u[:, :rank] * s[:rank]) @ v[:rank], rtol=1e-4, atol=1e-6)


def test_it_is_an_expert_again(tmp_path: Path) -> None:
    make, targets, rank = MODELS["llama"]
    save_file(state(make()), tmp_path / "base.safetensors")
    inputs = [adapter(tmp_path / task, make, targets, rank, seed) for seed, task in enumerate("ab")]
    common = {"base": tmp_path / "base.safetensors", "method": "average"}
    taskmerge.merge(inputs, output=tmp_path / "whole.safetensors", **common)
    taskmerge.merge(inputs, output=tmp_path / "out", as_adapter=True, **common)
    taskmerge.merge([tmp_path / "out"], output=tmp_path / "again.safetensors", **common)
    wanted, found = load_file(tmp_path / "whole.safetensors"), load_file(tmp_path / "again.safetensors")
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)


def test_the_same_bytes_for_any_number_of_threads(tmp_path: Path) -> None:
    make, targets, rank = MODELS["llama"]
    save_file(state(make()), tmp_path / "base.safetensors")
    inputs = [adapter(tmp_path / task, make, targets, rank, seed) for seed, task in enumerate("ab")]
    written = []
    for threads in (1, 3):
        out = tmp_path / f"out{threads}"
        taskmerge.merge(
            inputs, base=tmp_path / "base.safetensors", method="ties", output=out, as_adapter=True, threads=threads
        )
        written.append([(out / name).read_bytes() for name in (CONFIG, WEIGHTS[0])])
    assert written[0] == written[1]


def test_the_command_says_what_is_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, targets, rank = MODELS["llama"]
    save_file(state(make()), tmp_path / "base.safetensors")
    inputs = [str(adapter(tmp_path / task, make, targets, rank, seed)) for seed, task in enumerate("ab")]
    command = ["merge", *inputs, "--base", str(tmp_path / "base.safetensors"), "-m", "average", "--as-adapter"]
    out = tmp_path / "out"
    assert run([*command, "--rank", "1", "-o", str(out)]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{out}\n"
    assert "the adapter of rank 1 loses" in printed.err
    assert run([*command, "-o", str(out)]) == 6
    assert run([*command, "-o", str(out), "--overwrite"]) == 0
    assert json.loads((out / CONFIG).read_text())["r"] == 2 * rank


def test_wrong_usage(tmp_path: Path) -> None:
    save_file({"layers.0.fc.weight": torch.ones(4, 4)}, tmp_path / "base.safetensors")
    save_file({"layers.0.fc.weight": torch.eye(4)}, tmp_path / "a.safetensors")
    inputs, base = [tmp_path / "a.safetensors"], tmp_path / "base.safetensors"
    common: dict[str, Any] = {"method": "average", "as_adapter": True, "output": tmp_path / "out"}
    with pytest.raises(UsageError, match="an adapter changes a base"):
        taskmerge.merge(inputs, **common)
    with pytest.raises(UsageError, match="an adapter is a folder"):
        taskmerge.merge(inputs, base=base, **{**common, "output": tmp_path / "out.safetensors"})
    with pytest.raises(UsageError, match="no rank of an adapter"):
        taskmerge.merge(inputs, base=base, adapter_rank=0, **common)
    with pytest.raises(UsageError, match="it is the rank of an adapter"):
        taskmerge.merge(inputs, base=base, method="average", adapter_rank=4, output=tmp_path / "out.safetensors")
    grid = {**common, "method": "task_arithmetic", "coefficient": (0.1, 0.2)}
    with pytest.raises(UsageError, match="not a grid"):
        taskmerge.merge(inputs, base=base, **grid)
    with pytest.raises(Mismatch, match="changes no matrix"):
        taskmerge.merge({"same": base}, base=base, keep_base=True, **common)
    assert not (tmp_path / "out").exists()
    taskmerge.merge(inputs, base=base, **common)
    with pytest.raises(BadOutput):
        taskmerge.merge(inputs, base=base, **common)


def test_tensors_that_the_base_lacks_have_no_place_in_an_adapter(tmp_path: Path) -> None:
    save_file({"layers.0.fc.weight": torch.ones(4, 4)}, tmp_path / "base.safetensors")
    save_file({"layers.0.fc.weight": torch.eye(4), "head.weight": torch.eye(4)}, tmp_path / "a.safetensors")
    inputs, base = [tmp_path / "a.safetensors"], tmp_path / "base.safetensors"
    with pytest.raises(Mismatch, match=r"adds no tensors: `head\.weight`"):
        taskmerge.merge(inputs, base=base, method="average", as_adapter=True, output=tmp_path / "out")
