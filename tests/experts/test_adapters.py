"""LoRA adapters as experts: a merge of adapters equals the merge of checkpoints into which peft itself folded them."""

import json
import math
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import taskmerge
from taskmerge.checkpoint.checkpoint import open_checkpoint
from taskmerge.cli.app import run
from taskmerge.errors import BadFile, Mismatch, TaskmergeError, UsageError
from taskmerge.experts.adapters import AdapterSource
from taskmerge.experts.lora_files import open_adapter
from taskmerge.experts.lora_names import CONFIG, is_adapter
from taskmerge.experts.sources import CheckpointSource
from taskmerge.merging import execute
from taskmerge.numerics import leading

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

WEIGHTS = "adapter_model.safetensors"
TASKS = ("a", "b", "c")
SPECTRAL = ("cart", "truncated_task_arithmetic", "tsv_m", "iso_c", "iso_cts", "star")
Make = Callable[[], nn.Module]


# --- models ----------------------------------------------------------------------------------------------------


def bert() -> nn.Module:
    torch.manual_seed(0)
    return transformers.BertModel(
        transformers.BertConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, vocab_size=50,
            max_position_embeddings=16,
        )
    )  # fmt: skip


def vit() -> nn.Module:
    torch.manual_seed(0)
    return transformers.ViTModel(
        transformers.ViTConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=16,
            patch_size=8,
        )
    )


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=50, n_positions=16)
    return transformers.GPT2Model(config)


def llama() -> nn.Module:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            vocab_size=60, tie_word_embeddings=False,
        )
    )  # fmt: skip


class Block(nn.Module):
    """Torch's own attention, a convolution with its counter of batches, and a table."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attn = nn.MultiheadAttention(24, 2)
        self.conv = nn.Conv2d(6, 12, 3)
        self.point = nn.Conv2d(12, 10, 1)
        self.line = nn.Conv1d(5, 8, 3)
        self.norm = nn.BatchNorm2d(12)
        self.table = nn.Embedding(40, 24)

    def forward(self, x: Tensor) -> Tensor:
        return x


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone().contiguous() for name, value in model.state_dict().items()}


def lora(**options: Any) -> Any:
    return peft.LoraConfig(**{"r": 3, "lora_alpha": 8, **options})


def quietly(action: Callable[[], Any]) -> Any:
    """peft warns of what it corrects; here that is wanted."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return action()


def adapt(folder: Path, make: Make, config: Any, seed: int) -> None:
    """Saves an adapter with random factors, as large as the weights they change."""
    model = quietly(lambda: peft.get_peft_model(make(), config))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    quietly(lambda: model.save_pretrained(folder))


def folded(folder: Path, make: Make) -> dict[str, Tensor]:
    """The state dict after peft loaded the saved adapter over its base and folded it in."""
    return state(quietly(lambda: peft.PeftModel.from_pretrained(make(), folder).merge_and_unload()))


def prepared(tmp: Path, make: Make, configs: Mapping[str, Any]) -> tuple[dict[str, Path], dict[str, Path]]:
    """Writes base.safetensors; returns the adapters' folders and the folded checkpoints, under the same task names."""
    save_file(state(make()), tmp / "base.safetensors")
    adapters, checkpoints = {}, {}
    for seed, (task, config) in enumerate(configs.items()):
        adapters[task], checkpoints[task] = tmp / "adapters" / task, tmp / f"{task}.safetensors"
        adapt(adapters[task], make, config, seed)
        save_file(folded(adapters[task], make), checkpoints[task])
    return adapters, checkpoints


def same(config: Callable[[], Any]) -> dict[str, Any]:
    return {task: config() for task in TASKS}


def merged(tmp: Path, inputs: Mapping[str, Path], method: str, **options: Any) -> dict[str, Tensor]:
    output = tmp / "merged.safetensors"
    taskmerge.merge(inputs, base=tmp / "base.safetensors", method=method, output=output, overwrite=True, **options)
    return load_file(output)


def worst(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> float:
    """The largest relative error of a tensor; the same tensors have to be there."""
    assert found.keys() == wanted.keys()
    errors = []
    for name, value in wanted.items():
        assert found[name].shape == value.shape
        assert found[name].dtype == value.dtype
        difference = (found[name].double() - value.double()).norm()
        errors.append(float(difference / value.double().norm()) if difference else 0.0)
    return max(errors)


BERT_TARGETS = ["query", "value", "dense"]


@pytest.fixture(scope="module")
def berts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path], dict[str, Path]]:
    """Three BERT adapters of different rank and scaling, and their folded checkpoints."""
    tmp = tmp_path_factory.mktemp("bert")
    configs = {
        "a": lora(target_modules=BERT_TARGETS, alpha_pattern={"uery": 50, "layer.1": 70, "value": 5, "self.value": 9}),
        "b": lora(
            target_modules=BERT_TARGETS, rank_pattern={"layer.0.attention.self.query": 1, r"layer\.1\..*": 5},
            alpha_pattern={"query": 21, "^encoder.layer.1.output.dense": 1, "encoder.layer.0": 90},
        ),
        "c": lora(target_modules=["query"], r=4, lora_alpha=3, use_rslora=True, rank_pattern={"layer.1.*query": 2}),
    }  # fmt: skip
    return tmp, *prepared(tmp, bert, configs)


# --- equal to folding ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["average", "task_arithmetic", "ties", "magmax", *SPECTRAL])
def test_adapters_merge_like_the_checkpoints_that_peft_folded_them_into(berts: Any, method: str) -> None:
    tmp, adapters, checkpoints = berts
    wanted = merged(tmp, checkpoints, method)
    assert worst(merged(tmp, adapters, method), wanted) < 1e-5
    assert worst(load_file(tmp / "base.safetensors"), wanted) > 1e-2


@pytest.mark.parametrize("method", ["average", "ties", "cart", "tsv_m"])
def test_adapters_and_checkpoints_mix(berts: Any, method: str) -> None:
    tmp, adapters, checkpoints = berts
    generator = torch.Generator().manual_seed(9)
    tuned = {
        n: v + 0.05 * torch.randn(v.shape, generator=generator) for n, v in load_file(tmp / "base.safetensors").items()
    }
    save_file(tuned, tmp / "full.safetensors")
    full = {"d": tmp / "full.safetensors"}
    found = merged(tmp, {**adapters, **full}, method)
    assert worst(found, merged(tmp, {**checkpoints, **full}, method)) < 1e-5


CASES: dict[str, tuple[Make, Callable[[], Any]]] = {
    "vit with its patches": (vit, lambda: lora(target_modules=["query", "projection", "key", "dense"])),
    "gpt-2": (gpt2, lambda: lora(target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True)),
    "gpt-2, flag left to peft": (gpt2, lambda: lora(target_modules=["c_proj"])),
    "gpt-2 embeddings": (gpt2, lambda: lora(target_modules=["wte", "wpe", "c_attn"])),
    "llama with embeddings": (llama, lambda: lora(target_modules=["q_proj", "k_proj", "embed_tokens", "lm_head"])),
    "convolutions and a table": (
        Block, lambda: lora(target_modules=["conv", "point", "line", "table"], alpha_pattern={"point": 1.5})
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_every_kind_of_module_merges_as_peft_folds_it(tmp_path: Path, case: str) -> None:
    make, config = CASES[case]
    adapters, checkpoints = prepared(tmp_path, make, same(config))
    wide = {"rank": 0.2, "also": ("projection", "embedding", "conv")}
    for method, options in {"average": {}, "task_arithmetic": {}, "cart": wide}.items():
        wanted = merged(tmp_path, checkpoints, method, **options)
        assert worst(merged(tmp_path, adapters, method, **options), wanted) < 1e-5
        assert worst(load_file(tmp_path / "base.safetensors"), wanted) > 1e-2


@pytest.mark.parametrize("method", ["average", "cart"])
def test_a_weight_that_peft_saved_whole_takes_the_base_s_place(tmp_path: Path, method: str) -> None:
    factors = {f"base_model.model.{name}": value for name, value in pair("head", 8, 6, key="{}.lora_{}.weight").items()}
    whole = torch.randn(8, 6, generator=torch.Generator().manual_seed(3))
    written(tmp_path / "x", {}, factors | {"base_model.model.head.base_layer.weight": whole})
    save_file({"head.weight": torch.ones(8, 6)}, tmp_path / "base.safetensors")
    wanted = whole.double() + torch.tensor(by_hand(*pair("head", 8, 6).values(), 1.5, False)).double()
    also = {"also": ("projection",)} if method == "cart" else {}
    found = merged(tmp_path, {"x": tmp_path / "x"}, method, **also)
    assert worst({"head.weight": found["head.weight"].double()}, {"head.weight": wanted}) < 1e-6


@pytest.mark.parametrize(("make", "qkv"), [(bert, "fused"), (gpt2, "split")])
@pytest.mark.parametrize("method", ["cart", "tsv_m"])
def test_attention_as_one_matrix_or_three(tmp_path: Path, make: Make, qkv: str, method: str) -> None:
    targets = ["query", "key", "value"] if make is bert else ["c_attn"]
    adapters, checkpoints = prepared(tmp_path, make, same(lambda: lora(target_modules=targets)))
    assert worst(merged(tmp_path, adapters, method, qkv=qkv), merged(tmp_path, checkpoints, method, qkv=qkv)) < 1e-5


@pytest.mark.parametrize("method", ["average", "cart"])
def test_a_half_precision_base_is_folded_in_float32(berts: Any, tmp_path: Path, method: str) -> None:
    tmp, adapters, _ = berts
    half = {name: value.half() for name, value in load_file(tmp / "base.safetensors").items()}
    save_file(half, tmp_path / "base.safetensors")

    def widened() -> nn.Module:
        model = bert()
        model.load_state_dict({name: value.float() for name, value in half.items()})
        return model

    checkpoints = {task: tmp_path / f"{task}.safetensors" for task in adapters}
    for task, file in checkpoints.items():
        save_file(folded(adapters[task], widened), file)
    wanted = merged(tmp_path, checkpoints, method)
    assert worst(merged(tmp_path, adapters, method, dtype="float32"), wanted) < 1e-5
    found = merged(tmp_path, adapters, method)
    assert all(value.dtype == torch.float16 for value in found.values())
    assert worst({name: value.float() for name, value in found.items()}, wanted) < 2**-11


def test_half_precision_factors_are_multiplied_in_full(berts: Any, tmp_path: Path) -> None:
    tmp, adapters, _ = berts
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / CONFIG).write_bytes((adapters["a"] / CONFIG).read_bytes())
    factors = {name: value.bfloat16() for name, value in load_file(adapters["a"] / WEIGHTS).items()}
    save_file(factors, tmp_path / "a" / WEIGHTS)
    found = merged(tmp, {"a": tmp_path / "a"}, "task_arithmetic", coefficient=1.0)
    base, name = load_file(tmp / "base.safetensors"), "encoder.layer.0.attention.self.query"
    a, b = (factors[f"base_model.model.{name}.lora_{side}.weight"].double() for side in "AB")
    wanted = base[f"{name}.weight"].double() + 8 / 3 * (b @ a)
    assert float((found[f"{name}.weight"].double() - wanted).norm() / wanted.norm()) < 1e-6


def test_integer_tensors_stay_as_in_the_base(tmp_path: Path) -> None:
    adapters, checkpoints = prepared(tmp_path, Block, same(lambda: lora(target_modules=["conv"])))
    counted = load_file(checkpoints["a"]) | {"norm.num_batches_tracked": torch.tensor(70)}
    save_file(counted, tmp_path / "full.safetensors")
    assert merged(tmp_path, adapters, "average")["norm.num_batches_tracked"] == 0
    mixed = {**adapters, "full": tmp_path / "full.safetensors"}
    assert merged(tmp_path, mixed, "average")["norm.num_batches_tracked"] == 70


# --- exact and cheap -------------------------------------------------------------------------------------------


def by_hand(a: Tensor, b: Tensor, scaling: float, transposed: bool) -> list[list[float]]:
    """scaling · B A, or its transpose, with plain loops in float64."""
    a, b = a.double(), b.double()
    rows = [
        [scaling * sum(float(b[i, k]) * float(a[k, j]) for k in range(len(a))) for j in range(a.shape[1])]
        for i in range(len(b))
    ]
    return [list(column) for column in zip(*rows, strict=True)] if transposed else rows


def written(folder: Path, config: Mapping[str, Any], factors: Mapping[str, Tensor]) -> Path:
    folder.mkdir(parents=True)
    (folder / CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 3, **config}))
    save_file({name: value.contiguous() for name, value in factors.items()}, folder / WEIGHTS)
    return folder


def opened(tmp: Path, base: Mapping[str, Tensor], folder: Path) -> AdapterSource:
    save_file(dict(base), tmp / "base.safetensors")
    return AdapterSource("task", folder, CheckpointSource("base", open_checkpoint(tmp / "base.safetensors")))


def read(source: AdapterSource, name: str, start: int, count: int, dtype: torch.dtype = torch.float64) -> Tensor:
    out = torch.full((count,), math.nan, dtype=dtype)
    source.read(name, start, out, torch.empty(count * 8, dtype=torch.uint8), None)
    return out


def pair(
    module: str, m: int, n: int, r: int = 2, *, key: str = "base_model.model.{}.lora_{}.weight"
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(m * n + r)
    a, b = torch.randn(r, n, generator=generator), torch.randn(m, r, generator=generator)
    return {key.format(module, "A"): a, key.format(module, "B"): b}


@settings(max_examples=30, deadline=None)
@given(
    m=st.integers(1, 7), n=st.integers(1, 7), r=st.integers(1, 4), alpha=st.floats(0.5, 64), rslora=st.booleans(),
    flag=st.booleans(), data=st.data(),
)  # fmt: skip
def test_any_slice_of_a_task_vector_is_its_definition(
    tmp_path_factory: pytest.TempPathFactory, m: int, n: int, r: int, alpha: float, rslora: bool, flag: bool, data: Any
) -> None:
    tmp = tmp_path_factory.mktemp("slice")
    shape = (n, m) if flag else (m, n)
    config = {"r": r, "lora_alpha": alpha, "use_rslora": rslora, "fan_in_fan_out": flag}
    folder = written(tmp / "adapter", config, pair("fc", m, n, r))
    source = opened(tmp, {"fc.weight": torch.zeros(shape), "fc.bias": torch.zeros(3)}, folder)
    a, b = pair("fc", m, n, r).values()
    wanted = torch.tensor(by_hand(a, b, alpha / (math.sqrt(r) if rslora else r), flag), dtype=torch.float64)
    start = data.draw(st.integers(0, m * n))
    count = data.draw(st.integers(0, m * n - start))
    torch.testing.assert_close(read(source, "fc.weight", start, count), wanted.flatten()[start : start + count])
    assert read(source, "fc.bias", 1, 2).tolist() == [0, 0]
    left, right = source.low_rank("fc.weight") or ()
    torch.testing.assert_close(left @ right, wanted)
    assert left.shape[1] == r


def test_merging_adapters_factors_no_matrix_larger_than_their_ranks_together(
    berts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp, adapters, checkpoints = berts
    gpts = prepared(tmp_path, gpt2, same(lambda: lora(target_modules=["c_attn", "c_fc"])))
    sides: list[int] = []

    def watch(module: Any, name: str) -> None:
        plain = getattr(module, name)

        def watched(matrix: Tensor, *rest: Any, **options: Any) -> Any:
            sides.append(min(matrix.shape[-2:]))
            return plain(matrix, *rest, **options)

        monkeypatch.setattr(module, name, watched)

    for module, name in [(leading, "gram"), *((torch.linalg, one) for one in ("svd", "svdvals", "eigh", "eigvalsh"))]:
        watch(module, name)
    runs = [(tmp, adapters, checkpoints, "fused", 3 * 10), (tmp_path, *gpts, "split", 9)]
    for folder, low, dense, qkv, together in runs:
        for method in SPECTRAL:
            merged(folder, low, method, qkv=qkv)
            assert sides, method
            assert max(sides) <= together, method
            sides.clear()
        merged(folder, dense, "cart", qkv=qkv)
        assert max(sides) >= 32  # so the watch sees dense factorisations
        sides.clear()


@pytest.mark.parametrize("method", SPECTRAL)
def test_the_common_subspace_gives_what_whole_matrices_give(
    berts: Any, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    tmp, adapters, _ = berts
    found = merged(tmp, adapters, method)
    monkeypatch.setattr(execute, "subspaces", lambda *anything: None)
    assert worst(found, merged(tmp, adapters, method)) < 1e-5


def test_the_same_bytes_for_any_number_of_threads(berts: Any) -> None:
    tmp, adapters, _ = berts
    bytes_of = []
    for threads in (1, 2, 4):
        merged(tmp, adapters, "cart", threads=threads)
        bytes_of.append((tmp / "merged.safetensors").read_bytes())
    assert bytes_of[0] == bytes_of[1] == bytes_of[2]


# --- names -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key",
    [
        "base_model.model.{}.lora_{}.weight",
        "base_model.model.{}.lora_{}.default.weight",
        "base_model.model.{}.lora_{}.my-task.weight",
        "{}.lora_{}.weight",
    ],
)
@pytest.mark.parametrize(
    ("module", "tensor"),
    [
        ("h.0.fc", "h.0.fc.weight"),
        ("h.0.fc", "transformer.h.0.fc.weight"),
        ("transformer.h.0.fc", "h.0.fc.weight"),
        ("model.visual.h.0.fc", "visual.h.0.fc.weight"),
        ("language_model.model.h.0.fc", "model.language_model.h.0.fc.weight"),
        ("h.0._orig_mod.fc", "h.0.fc.weight"),
        ("model.fc", "fc.weight"),
    ],
)
def test_targets_are_found_under_other_prefixes(tmp_path: Path, key: str, module: str, tensor: str) -> None:
    factors = pair(module, 4, 6, key=key)
    source = opened(
        tmp_path, {tensor: torch.zeros(4, 6), "other": torch.zeros(2)}, written(tmp_path / "x", {}, factors)
    )
    assert read(source, tensor, 0, 24).abs().min() > 0


@pytest.mark.parametrize("with_prefix", [True, False])
def test_an_adapter_of_a_model_with_a_head_fits_its_bare_encoder(tmp_path: Path, with_prefix: bool) -> None:
    def headed() -> nn.Module:
        torch.manual_seed(0)
        return transformers.BertForMaskedLM(bert().config)

    adapt(tmp_path / "x", headed, lora(target_modules=["query"]), 1)
    model = folded(tmp_path / "x", headed)
    base = {n: v for n, v in state(headed()).items() if n.startswith("bert.")}
    wanted = {n: model[n] for n in base}
    if not with_prefix:
        base, wanted = ({n.removeprefix("bert."): v for n, v in one.items()} for one in (base, wanted))
    save_file(base, tmp_path / "base.safetensors")
    assert worst(merged(tmp_path, {"x": tmp_path / "x"}, "task_arithmetic", coefficient=1.0), wanted) < 1e-6


def test_layers_are_never_taken_for_one_another(tmp_path: Path) -> None:
    folder = written(tmp_path / "x", {}, pair("layers.3.fc", 4, 6))
    with pytest.raises(Mismatch, match=r"1 of its 1 targets .*`layers\.3\.fc\.weight`"):
        opened(tmp_path, {"layers.0.fc.weight": torch.zeros(4, 6)}, folder)


def test_two_possible_places_are_refused(tmp_path: Path) -> None:
    folder = written(tmp_path / "x", {}, pair("layers.0.fc", 4, 6))
    towers = {f"{tower}.layers.0.fc.weight": torch.zeros(4, 6) for tower in ("text", "vision")}
    with pytest.raises(Mismatch, match=r"several places .*`text\.`, `vision\.`"):
        opened(tmp_path, towers, folder)


def test_all_targets_without_a_place_are_listed_with_their_shapes(tmp_path: Path) -> None:
    factors = pair("fc", 4, 6) | pair("gone", 4, 6) | pair("wide", 4, 6) | pair("counts", 4, 6)
    base = {
        "fc.weight": torch.zeros(4, 6), "wide.weight": torch.zeros(4, 8), "counts.weight": torch.zeros(4, 6).int()
    }  # fmt: skip
    with pytest.raises(Mismatch, match="3 of its 4 targets") as caught:
        opened(tmp_path, base, written(tmp_path / "x", {}, factors))
    for said in ("`gone.weight`", "`wide.weight` (update [4, 6]", "F32 [4, 8]", "`counts.weight`", "--base"):
        assert said in caught.value.message
    assert "`fc.weight`" not in caught.value.message


@pytest.mark.parametrize("flag", [True, False])
@pytest.mark.parametrize(("beside", "transposed"), [((4, 8), True), ((8, 4), False), (None, None)])
def test_a_square_weight_lies_as_its_neighbours_do(
    tmp_path: Path, flag: bool, beside: tuple[int, int] | None, transposed: bool | None
) -> None:
    base = {"h.0.sq.weight": torch.zeros(4, 4), "h.0.sq.bias": torch.zeros(4)}
    if beside:
        base |= {"h.0.fc.weight": torch.zeros(beside), "h.0.fc.bias": torch.zeros(8)}
    base |= {"head.weight": torch.zeros(3, 4), "head.bias": torch.zeros(3)}  # a Linear, whatever the blocks hold
    base |= {"h.1.fc.weight": torch.zeros(4, 8), "h.1.fc.bias": torch.zeros(8)}
    source = opened(tmp_path, base, written(tmp_path / "x", {"fan_in_fan_out": flag}, pair("h.0.sq", 4, 4)))
    wanted = by_hand(*pair("h.0.sq", 4, 4).values(), 1.5, flag if transposed is None else transposed)
    torch.testing.assert_close(read(source, "h.0.sq.weight", 0, 16).view(4, 4), torch.tensor(wanted).double())


# --- refused by name -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"use_dora": True}, "use_dora=True"),
        ({"bias": "all"}, "bias=all"),
        ({"modules_to_save": ["classifier"]}, "modules_to_save=['classifier']"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"lora_bias": True}, "lora_bias=True"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"target_parameters": ["experts.up"]}, "target_parameters"),
        ({"megatron_config": {"size": 2}}, "megatron_config"),
        ({"alora_invocation_tokens": [5]}, "alora_invocation_tokens"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights=pissa_niter_4"),
        ({"init_lora_weights": "olora"}, "init_lora_weights=olora"),
        ({"something_new": {"on": 1}}, "something_new"),
        ({"peft_type": "LOHA"}, "type LOHA"),
        ({"peft_type": None}, "type None"),
        ({"r": "two"}, "`r` of `fc` is 'two'"),
        ({"lora_alpha": True}, "`lora_alpha` of `fc` is True"),
        ({"r": 5}, "`fc` has rank 2, adapter_config.json says 5"),
        ({"rank_pattern": {"f.": 4}}, "`fc` has rank 2, adapter_config.json says 4"),
        ({"rank_pattern": {"(": 4}}, "`rank_pattern` is no map"),
        ({"alpha_pattern": [1]}, "`alpha_pattern` is no map"),
    ],
)
def test_what_is_not_plain_lora_is_refused_by_name(tmp_path: Path, config: dict[str, Any], said: str) -> None:
    folder = written(tmp_path / "x", config, pair("fc", 4, 6))
    with pytest.raises(BadFile) as caught:
        opened(tmp_path, {"fc.weight": torch.zeros(4, 6)}, folder)
    assert said in caught.value.message
    assert str(folder) in caught.value.message
    assert caught.value.hint
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (lambda: lora(target_modules=["query"], use_dora=True), "use_dora=True"),
        (lambda: lora(target_modules=["query"], bias="lora_only"), "bias=lora_only"),
        (lambda: lora(target_modules=["query"], modules_to_save=["pooler"]), "modules_to_save=['pooler']"),
        (lambda: peft.LoHaConfig(target_modules=["query"]), "LOHA"),
        (lambda: peft.IA3Config(target_modules=["query"], feedforward_modules=[]), "IA3"),
    ],
)
def test_what_peft_really_saves_of_other_kinds_is_refused(tmp_path: Path, config: Callable[[], Any], said: str) -> None:
    save_file(state(bert()), tmp_path / "base.safetensors")
    adapt(tmp_path / "x", bert, config(), 0)
    with pytest.raises(BadFile) as caught:
        merged(tmp_path, {"x": tmp_path / "x"}, "average")
    assert said in caught.value.message


def test_extra_tensors_are_refused_by_name(tmp_path: Path) -> None:
    extra = {
        "base_model.model.fc.lora_magnitude_vector": torch.zeros(4),
        "base_model.model.classifier.weight": torch.zeros(2, 4),
        "base_model.model.fc.lora_B.bias": torch.zeros(4),
        "base_model.model.up.lora_A.weight": torch.zeros(2, 4),
        "base_model.model.ids.lora_A.weight": torch.zeros(2, 4).int(),
        "base_model.model.fc.lora_A.two.weight": torch.zeros(2, 6),
    }
    for name, value in extra.items():
        folder = written(tmp_path / name, {}, pair("fc", 4, 6) | {name: value})
        with pytest.raises(BadFile, match=r"not pairs of LoRA factors.*") as caught:
            opened(tmp_path, {"fc.weight": torch.zeros(4, 6)}, folder)
        assert name.split(".lora")[0] in caught.value.message


def test_grouped_convolutions_are_refused(tmp_path: Path) -> None:
    def grouped() -> nn.Module:
        torch.manual_seed(0)
        return nn.ModuleDict({"conv": nn.Conv2d(4, 8, 3, groups=2)})

    save_file(state(grouped()), tmp_path / "base.safetensors")
    adapt(tmp_path / "x", grouped, lora(r=4, target_modules=["conv"]), 0)
    with pytest.raises(BadFile, match="grouped convolutions"):
        merged(tmp_path, {"x": tmp_path / "x"}, "average")


def test_factors_that_do_not_multiply_are_refused(tmp_path: Path) -> None:
    conv = {"conv.lora_A.weight": torch.zeros(2, 3, 3, 3), "conv.lora_B.weight": torch.zeros(4, 2, 3, 1)}
    with pytest.raises(BadFile, match="`conv` do not multiply"):
        opened(tmp_path, {"conv.weight": torch.zeros(4, 3, 3, 3)}, written(tmp_path / "x", {}, conv))


def test_torch_s_own_attention_is_refused(tmp_path: Path) -> None:
    """peft 0.21 adds the output projection's update twice (huggingface/peft#3774): its meaning hangs on the version."""
    save_file(state(Block()), tmp_path / "base.safetensors")
    adapt(tmp_path / "x", Block, lora(target_modules=["attn"]), 0)
    with pytest.raises(BadFile, match=r"torch's own attention.*`attn`"):
        merged(tmp_path, {"x": tmp_path / "x"}, "average")


def damaged(folder: Path, how: str) -> None:
    factors = load_file(folder / WEIGHTS)
    if how == "no configuration":
        (folder / CONFIG).unlink()
    elif how == "no JSON":
        (folder / CONFIG).write_text("{")
    elif how == "a JSON list":
        (folder / CONFIG).write_text("[]")
    elif how == "no weights":
        (folder / WEIGHTS).unlink()
    elif how == "pickled":
        torch.save(factors, folder / "adapter_model.bin")
        (folder / WEIGHTS).unlink()
    elif how == "truncated":
        (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-4])
    elif how == "NaN":
        next(iter(factors.values()))[0, 0] = math.nan
        save_file(factors, folder / WEIGHTS)
    else:
        save_file({}, folder / WEIGHTS)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("no configuration", "there is no adapter_config.json"),
        ("no JSON", "is not JSON"),
        ("a JSON list", "no JSON object"),
        ("no weights", "there is no adapter_model.safetensors"),
        ("pickled", "--allow-pickle"),
        ("truncated", WEIGHTS),
        ("NaN", "`base_model.model.fc.lora_A.weight`: the tensor holds NaN"),
        ("empty", "no LoRA factors"),
    ],
)
def test_a_damaged_adapter_is_named(tmp_path: Path, how: str, said: str) -> None:
    save_file({"fc.weight": torch.zeros(4, 6)}, tmp_path / "base.safetensors")
    folder = written(tmp_path / "x", {}, pair("fc", 4, 6))
    damaged(folder, how)
    for method in ("average", "cart"):
        with pytest.raises(BadFile) as caught:
            merged(tmp_path, {"x": folder}, method, also=("projection",))
        assert said in caught.value.message
        assert str(folder) in caught.value.message


def test_a_pickled_adapter_is_read_when_allowed(tmp_path: Path) -> None:
    save_file({"fc.weight": torch.zeros(4, 6)}, tmp_path / "base.safetensors")
    folder = written(tmp_path / "x", {}, pair("fc", 4, 6))
    wanted = merged(tmp_path, {"x": folder}, "average")
    damaged(folder, "pickled")
    assert worst(merged(tmp_path, {"x": folder}, "average", allow_pickle=True), wanted) == 0


def test_an_adapter_needs_its_base(tmp_path: Path) -> None:
    folder = written(tmp_path / "x", {}, pair("fc", 4, 6))
    with pytest.raises(UsageError, match="--base") as caught:
        taskmerge.merge([folder], method="average", output=tmp_path / "merged.safetensors")
    assert caught.value.exit_code == 2


def test_resized_embeddings_are_refused(tmp_path: Path) -> None:
    save_file(state(llama()), tmp_path / "base.safetensors")

    def resized() -> nn.Module:
        model = llama()
        model.resize_token_embeddings(64)
        return model

    adapt(tmp_path / "x", resized, lora(target_modules=["embed_tokens", "q_proj"]), 0)
    with pytest.raises(TaskmergeError, match=r"embed_tokens") as caught:
        merged(tmp_path, {"x": tmp_path / "x"}, "average")
    assert caught.value.exit_code in (3, 4)


# --- around the weights ----------------------------------------------------------------------------------------


def test_what_counts_as_an_adapter(tmp_path: Path) -> None:
    folder = written(tmp_path / "x", {}, pair("fc", 4, 6))
    assert is_adapter(folder)
    assert is_adapter(folder / WEIGHTS)
    save_file({"fc.weight": torch.zeros(4, 6)}, tmp_path / "model.safetensors")
    assert not is_adapter(tmp_path)
    assert not is_adapter(tmp_path / "model.safetensors")
    assert not is_adapter(tmp_path / ("x" * 300)), "what cannot be looked at is told by whoever opens it"


def test_the_digest_names_factors_and_scaling(tmp_path: Path) -> None:
    save_file({"fc.weight": torch.zeros(4, 6), "norm.weight": torch.zeros(3)}, tmp_path / "base.safetensors")
    one = written(tmp_path / "one", {"base_model_name_or_path": "here"}, pair("fc", 4, 6))
    moved = written(tmp_path / "moved", {"base_model_name_or_path": "there", "inference_mode": True}, pair("fc", 4, 6))
    louder = written(tmp_path / "louder", {"lora_alpha": 4}, pair("fc", 4, 6))
    assert open_adapter(one).digest == open_adapter(moved).digest != open_adapter(louder).digest
    for method in ("average", "cart"):  # dense slices, common subspace
        merged(tmp_path, {"one": one, "two": louder}, method, also=("projection",))
        with safe_open(tmp_path / "merged.safetensors", "pt") as file:
            record = json.loads(file.metadata()["taskmerge"])
        assert [task["digest"] for task in record["tasks"]] == [open_adapter(one).digest, open_adapter(louder).digest]
        assert not any("partial" in task for task in record["tasks"])


def test_the_same_adapter_twice_is_a_warning(berts: Any, tmp_path: Path) -> None:
    tmp, adapters, _ = berts
    receipt = taskmerge.merge(
        {"a": adapters["a"], "again": adapters["a"] / WEIGHTS}, base=tmp / "base.safetensors", method="average",
        output=tmp_path / "merged.safetensors",
    )  # fmt: skip
    assert any("a and again are the same" in warning for warning in receipt.warnings)


def test_an_earlier_merge_of_the_same_adapters_is_left_out_by_content(berts: Any, tmp_path: Path) -> None:
    tmp = berts[0]
    shutil.copytree(tmp / "adapters", tmp_path / "adapters")
    first, second = (tmp_path / "adapters" / f"{name}.safetensors" for name in ("first", "second"))
    inputs = [tmp_path / "adapters" / "*"]
    for output in (first, second):
        receipt = taskmerge.merge(inputs, base=tmp / "base.safetensors", output=output)
        assert [task["name"] for task in receipt.provenance["tasks"]] == ["a", "b", "c"]
    assert any("first.safetensors: it is an earlier merge of a, b, c" in one for one in receipt.warnings)
    assert first.read_bytes() == second.read_bytes()
    taskmerge.merge(inputs, base=tmp / "base.safetensors", output=second, overwrite=True)
    assert first.read_bytes() == second.read_bytes()
    shutil.rmtree(tmp_path / "adapters" / "b")
    with pytest.raises(Mismatch, match="the result of an earlier merge"):
        taskmerge.merge(inputs, base=tmp / "base.safetensors", output=tmp_path / "third.safetensors")


def test_the_plan_names_the_base_that_adapters_need(
    berts: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """CART of checkpoints needs none; CART of adapters does."""
    tmp, adapters, checkpoints = berts
    base = str(tmp / "base.safetensors")
    for inputs, said in ((adapters, f"base {base}"), (checkpoints, "no base needed")):
        command = ["merge", *map(str, inputs.values()), "--base", base, "-o", str(tmp_path / "x.safetensors")]
        assert run([*command, "--dry-run"]) == 0
        assert f"3 experts (a, b, c), {said}\n" in capsys.readouterr().err


def test_the_plan_counts_the_adapter_s_own_bytes(berts: Any, tmp_path: Path) -> None:
    tmp, adapters, _ = berts
    receipt = taskmerge.merge(
        {"a": adapters["a"]}, base=tmp / "base.safetensors", method="average", output=tmp_path / "merged.safetensors"
    )
    stored = sum(value.nbytes for value in load_file(adapters["a"] / WEIGHTS).values())
    base = sum(value.nbytes for value in load_file(tmp / "base.safetensors").values())
    assert receipt.bytes_read == stored + base


def test_without_a_base_folder_an_adapter_s_tokenizer_travels(tmp_path: Path) -> None:
    save_file({"fc.weight": torch.zeros(4, 6)}, tmp_path / "base.safetensors")
    folder = written(tmp_path / "x", {}, pair("fc", 4, 6))
    (folder / "tokenizer.json").write_text("{}")
    taskmerge.merge([folder], base=tmp_path / "base.safetensors", method="average", output=tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"


def test_a_merged_folder_carries_the_base_s_configuration(berts: Any, tmp_path: Path) -> None:
    tmp, adapters, checkpoints = berts
    quietly(lambda: bert().save_pretrained(tmp_path / "base"))
    taskmerge.merge(adapters, base=tmp_path / "base", method="cart", output=tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "model.safetensors", "README.md"} <= names
    assert CONFIG not in names
    model = quietly(lambda: transformers.BertModel.from_pretrained(tmp_path / "out"))
    assert worst(state(model), merged(tmp, checkpoints, "cart")) < 1e-5
