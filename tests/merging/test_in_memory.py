"""State dicts in memory: the same bytes as their files give, by the same checks, and nobody's memory but one's own."""

import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import taskmerge
from taskmerge.checkpoint.dtypes import CODES, bytes_of
from taskmerge.checkpoint.held import Held, open_held
from taskmerge.merging.plan import CHUNK
from taskmerge.methods.contract import Method
from taskmerge.methods.registry import methods

State = dict[str, Tensor]
TASKS = ("a", "b", "c")
SHAPES: dict[str, tuple[int, ...]] = {
    "blocks.0.attn.weight": (24, 16),
    "blocks.0.attn.bias": (24,),
    "blocks.1.mlp.weight": (16, 40),
    "blocks.1.mlp.experts.gate_up_proj": (3, 12, 8),
    "conv.weight": (8, 3, 4, 4),
    "token_embedding.weight": (30, 16),
    "logit_scale": (),
    "empty": (0, 4),
}


def states(dtype: torch.dtype = torch.float32, tasks: tuple[str, ...] = TASKS) -> dict[str, State]:
    """A base and experts, small random steps away from it, with buffers of integers and of truth values."""
    generator = torch.Generator().manual_seed(3)
    base = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    found = {"base": base}
    for task in tasks:
        found[task] = {n: v + 0.05 * torch.randn(v.shape, generator=generator) for n, v in base.items()}
    buffers = {"bn.num_batches_tracked": torch.tensor(7), "mask": torch.tensor([True, False])}
    return {name: {n: v.to(dtype) for n, v in state.items()} | buffers for name, state in found.items()}


def by_files(folder: Path, models: Mapping[str, State], **options: Any) -> State:
    """What `merge` writes for the same tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, state in models.items():
        plain = {key: value.detach().clone(memory_format=torch.contiguous_format) for key, value in state.items()}
        save_file(plain, folder / f"{name}.safetensors")
    inputs = {name: folder / f"{name}.safetensors" for name in models if name != "base"}
    base = {"base": folder / "base.safetensors"} if "base" in models else {}
    return load_file(taskmerge.merge(inputs, **base, output=folder / "out.safetensors", **options).paths[0])


def in_memory(models: Mapping[str, State], **options: Any) -> State:
    experts = {name: state for name, state in models.items() if name != "base"}
    return taskmerge.merge(experts, base=models.get("base"), **options)


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether two models are the same, bit for bit."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert (value.dtype, value.shape) == (other[name].dtype, other[name].shape), name
        assert bytes_of(value) == bytes_of(other[name].contiguous()), name
    return True


def storages(*models: Mapping[str, Tensor]) -> set[int]:
    return {value.untyped_storage().data_ptr() for state in models for value in state.values() if value.numel()}


# --- the same bytes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("method", methods().values(), ids=lambda method: method.name)
def test_every_method_gives_what_it_writes(method: Method, dtype: torch.dtype, tmp_path: Path) -> None:
    models = states(dtype, TASKS[: method.tasks[1]])
    assert same(in_memory(models, method=method.name, seed=5), by_files(tmp_path, models, method=method.name, seed=5))


SHAPING: tuple[dict[str, Any], ...] = (
    {"method": "cart", "rank": 3, "also": "projection,embedding,conv", "coefficient": 1.5},
    {"method": "cart", "rank": "energy:0.5", "compute_dtype": "float64"},
    {"method": "dare", "then": "ties", "density": 0.5, "lines": True, "seed": 9},
    {"method": "average", "weights": {"a": 2.5}, "dtype": torch.bfloat16},
    {"method": "tsv_m", "exclude": "conv.*", "keep_from": [("a", "logit_scale")]},
    {"method": "ties", "include": ["blocks.*"], "threads": 1, "digests": False},
    {"method": "task_arithmetic", "svd": "exact", "dtype": "fp16", "map": "blocks.* = layers.*"},
    {"recipe": {"method": "iso_c", "options": {"coefficient": 0.7}, "also": ["embedding"]}},
)


@pytest.mark.parametrize("options", SHAPING, ids=lambda options: str(options.get("method", "recipe")))
def test_every_option_means_the_same(options: dict[str, Any], tmp_path: Path) -> None:
    models = states()
    assert same(in_memory(models, **options), by_files(tmp_path, models, **options))


def test_large_tensors_are_merged_in_slices(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    wide = {task: {"w": torch.randn(3, CHUNK + 17, generator=generator).mT} for task in ("a", "b")}
    assert not wide["a"]["w"].is_contiguous()
    assert same(in_memory(wide, method="average"), by_files(tmp_path, wide, method="average"))


def test_the_base_is_found_by_its_name_as_among_files(tmp_path: Path) -> None:
    models = states()
    found = taskmerge.merge(models, method="task_arithmetic")
    assert same(found, by_files(tmp_path, models, method="task_arithmetic"))
    again = taskmerge.merge({**models, "twin": models["base"]}, base=models["base"], method="task_arithmetic")
    assert same(again, found), "what is the base itself is no expert"


def test_dialects_and_codes_are_read_as_from_files(tmp_path: Path) -> None:
    models = states()
    models["b"] = {f"_orig_mod.{name}": value for name, value in models["b"].items()}
    assert same(in_memory(models, method="ties"), by_files(tmp_path, models, method="ties"))
    weights = {task: torch.randn(256, 128) for task in TASKS}
    scales = {task: torch.rand(2, 1) + 0.5 for task in TASKS}
    coded = {
        task: {"l.weight": weights[task].to(torch.float8_e4m3fn), "l.weight_scale_inv": scales[task]} for task in TASKS
    }
    assert same(in_memory(coded, method="average"), by_files(tmp_path / "fp8", coded, method="average"))


def test_lora_factors_are_merged_as_products(tmp_path: Path) -> None:
    base = {"model.layers.0.q_proj.weight": torch.randn(8, 6), "model.norm.weight": torch.ones(6)}
    adapters = {}
    for task in ("a", "b"):
        down, up = torch.randn(2, 6), torch.randn(8, 2)
        name = "model.layers.0.q_proj"
        adapters[task] = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up,
                          f"{name}.alpha": torch.tensor(4.0)}  # fmt: skip
    models = {"base": base, **adapters}
    options = {"method": "task_arithmetic", "coefficient": 1.0}
    assert same(in_memory(models, **options), by_files(tmp_path, models, **options))
    unscaled = {"a": {k: v for k, v in adapters["a"].items() if not k.endswith("alpha")}}
    with pytest.raises(taskmerge.TaskmergeError, match="does not say how its products are scaled") as caught:
        taskmerge.merge(unscaled, base=base, **options)
    assert caught.value.exit_code == 4


# --- whatever the tensors are like -----------------------------------------------------------------------------


def reversed_dims(value: Tensor) -> Tensor:
    """The same values, laid out from the last dimension to the first."""
    order = list(reversed(range(value.dim())))
    return value.permute(order).contiguous().permute(order)


def every_second(value: Tensor) -> Tensor:
    return torch.stack([value, value], dim=-1)[..., 0]


def doubled(value: Tensor) -> Tensor:
    """Twice the values in one storage."""
    return torch.cat([value, value]) if value.dim() else value


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda value: value,
    "transposed": lambda value: value.mT.contiguous().mT if value.dim() > 1 else value,
    "reversed dims": reversed_dims,
    "every second": every_second,
    "first half": lambda value: doubled(value)[: len(value)] if value.dim() else value,
    "second half": lambda value: doubled(value)[len(value) :] if value.dim() else value,
    "channels last": lambda v: v.contiguous(memory_format=torch.channels_last) if v.dim() == 4 else v,
    "parameter": lambda value: nn.Parameter(value, requires_grad=value.is_floating_point()),
    "graph": lambda value: value.requires_grad_() * 1 if value.is_floating_point() else value,
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("method", ["ties", "cart"])
def test_tensors_may_lie_anyhow(layout: str, method: str, tmp_path: Path) -> None:
    plain = states()
    models = {name: {n: LAYOUTS[layout](v.clone()) for n, v in state.items()} for name, state in plain.items()}
    merged = in_memory(models, method=method)
    assert same(merged, by_files(tmp_path, plain, method=method))
    assert not any(value.requires_grad for value in merged.values())


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_any_part_of_any_view_is_read_as_it_lies(data: st.DataObject) -> None:
    """Every element of a view, in C order, from any start: against torch's own copy."""
    shape = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    dtype = data.draw(st.sampled_from(sorted(CODES, key=str)))
    whole = torch.randint(0, 2, [side * 2 for side in shape]).to(torch.float32).to(dtype)
    view = whole[tuple(slice(None, None, data.draw(st.sampled_from([1, 2]))) for _ in shape)]
    view = view.permute(*data.draw(st.permutations(range(len(shape)))))
    if data.draw(st.booleans()):
        view = view.unsqueeze(0).expand(3, *view.shape)
    flat = view.contiguous().view(-1)
    start = data.draw(st.integers(0, len(flat) - 1))
    count = data.draw(st.integers(1, len(flat) - start))
    buffer = torch.empty(count * view.itemsize, dtype=torch.uint8)
    open_held(Held("x", {"w": view})).read_into("w", buffer, start * view.itemsize)
    assert bytes_of(buffer) == bytes_of(flat[start : start + count])


def test_inputs_stay_as_they_are_and_outputs_are_nobody_elses() -> None:
    models = states()
    models["a"]["tied"] = models["a"]["blocks.0.attn.weight"]  # one storage under two names
    for name in ("base", "b", "c"):
        models[name]["tied"] = models[name]["blocks.0.attn.weight"].clone()
    before = {name: {n: v.clone() for n, v in state.items()} for name, state in models.items()}
    versions = {(name, n): v._version for name, state in models.items() for n, v in state.items()}
    for method in ("average", "task_arithmetic", "cart", "ties"):
        merged = in_memory(models, method=method, keep_from=[("a", "logit_scale"), ("base", "conv.*")])
        assert not storages(merged) & storages(*models.values())
        assert len(storages(merged)) == sum(value.numel() > 0 for value in merged.values()), "each its own"
        if method != "cart":  # which truncates by name
            assert torch.equal(merged["tied"], merged["blocks.0.attn.weight"])
    assert all(same(models[name], before[name]) for name in models)
    assert versions == {(name, n): v._version for name, state in models.items() for n, v in state.items()}


def test_a_module_s_state_dict_goes_in_and_comes_back() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.norm, self.out = nn.Embedding(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 5, bias=False)
            self.out.weight = self.embed.weight  # tied

    nets = {name: Net() for name in ("base", "a", "b")}
    given = {name: net.state_dict() for name, net in nets.items()}
    assert isinstance(given["a"], OrderedDict)
    assert hasattr(given["a"], "_metadata")
    merged = taskmerge.merge({"a": given["a"], "b": given["b"]}, base=given["base"], method="task_arithmetic")
    nets["base"].load_state_dict(merged)
    assert type(merged) is dict
    expected = nets["a"].embed.weight * 0.3 + nets["b"].embed.weight * 0.3 + given["base"]["embed.weight"] * 0
    assert nets["base"].embed.weight.shape == expected.shape
    kept = {name: net.state_dict(keep_vars=True) for name, net in nets.items() if name != "base"}
    assert same(taskmerge.merge(kept, method="average"), taskmerge.merge({k: given[k] for k in kept}, method="average"))


def test_in_inference_mode_and_under_no_grad(tmp_path: Path) -> None:
    with torch.inference_mode():
        models = states()
        merged = in_memory(models, method="ties")
    plain = {name: {n: v.clone() for n, v in state.items()} for name, state in models.items()}
    assert same({name: value.clone() for name, value in merged.items()}, by_files(tmp_path, plain, method="ties"))


# --- what is refused -------------------------------------------------------------------------------------------


def quantised() -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(torch.ones(2, 2), 0.1, 0, torch.qint8)


def nested() -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])


class Odd(Tensor):
    """As libraries for spread or packed tensors have them."""


REFUSED: dict[str, tuple[Callable[[], object], int, str]] = {
    "meta": (lambda: torch.empty(2, 2, device="meta"), 3, "is on the meta device"),
    "sparse": (lambda: torch.eye(2).to_sparse(), 3, "is a sparse tensor"),
    "compressed": (lambda: torch.eye(2).to_sparse_csr(), 3, "is a sparse tensor"),
    "nested": (nested, 3, "is a nested tensor"),
    "quantised": (quantised, 4, "is quantised (qint8)"),
    "subclass": (lambda: torch.ones(2, 2).as_subclass(Odd), 4, "is a Odd, not a plain tensor"),
    "lazy": (nn.parameter.UninitializedParameter, 4, "is a UninitializedParameter"),
    "complex128": (lambda: torch.ones(2, 2, dtype=torch.complex128), 3, "has dtype torch.complex128"),
    "number": (lambda: 3.0, 3, "is a float, not a tensor"),
    "none": (lambda: None, 3, "is a NoneType, not a tensor"),
    "array": (lambda: [[1.0]], 3, "is a list, not a tensor"),
    "nan": (lambda: torch.full((2, 2), torch.nan), 3, "holds NaN or infinity"),
    "shape": (lambda: torch.ones(3, 2), 4, "[3, 2]"),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("role", ["expert", "base"])
def test_what_is_no_plain_tensor_is_named_with_its_code(kind: str, role: str) -> None:
    make, code, says = REFUSED[kind]
    odd: dict[str, Any] = {"w": make()}
    fine = {"w": torch.ones(2, 2)}
    experts, base = ({"a": fine, "b": odd}, fine) if role == "expert" else ({"a": fine, "b": {"w": fine["w"] * 2}}, odd)
    with pytest.raises(taskmerge.TaskmergeError) as caught:
        taskmerge.merge(experts, base=base, method="task_arithmetic")
    assert says in str(caught.value)
    assert caught.value.exit_code == code
    assert ("b (in memory)" if role == "expert" else "base (in memory)") in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({"w": torch.ones(2)}, "`w` is neither a path nor a state dict, but a Tensor"),
        ({"a": nn.Linear(1, 1)}, "`a` is neither a path nor a state dict, but a Linear"),
        ({"a": 3}, "but a int"),
        ([{"w": torch.ones(2)}], "a dict is no path, and has no name"),
        (nn.Linear(1, 1), "not a Linear"),
        (3, "not a int"),
        ({3: {"w": torch.ones(2)}}, "`3` is no name of a task"),
        ({"a/b": {"w": torch.ones(2)}}, "`a/b` is no name of a task"),
        ({}, "there is nothing to merge"),
    ],
)
def test_inputs_of_another_form_are_refused(inputs: Any, says: str) -> None:
    with pytest.raises(taskmerge.TaskmergeError) as caught:
        taskmerge.merge(inputs, method="average")
    assert says in str(caught.value)
    assert caught.value.exit_code == 2


def test_names_that_differ_are_listed() -> None:
    with pytest.raises(
        taskmerge.TaskmergeError, match=r"base \(in memory\): the base lacks 1 tensors .* `w`"
    ) as caught:
        taskmerge.merge({"a": {"w": torch.ones(2)}}, base={"v": torch.ones(2)}, method="task_arithmetic")
    assert caught.value.exit_code == 4


def test_keys_that_are_no_text() -> None:
    with pytest.raises(taskmerge.TaskmergeError, match="the key 3 is not text"):
        taskmerge.merge({"a": {3: torch.ones(2)}}, method="average")  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"rank": [1, 2]}, "a grid of 2 points is as many models"),
        ({"coefficient": "0.1:0.3:0.1"}, "a grid of 3 points"),
        ({"overwrite": True}, "--overwrite: says how a file is written"),
        ({"shard_size": "1G"}, "--shard-size"),
        ({"with_code": True}, "--with-code"),
        ({"as_adapter": True}, "--as-adapter"),
        ({"choose": "agreement", "rank": [1, 2]}, "models in memory cannot be judged"),
    ],
)
def test_what_needs_files_says_so(options: dict[str, Any], says: str) -> None:
    with pytest.raises(taskmerge.TaskmergeError) as caught:
        in_memory(states(), **options)
    assert says in str(caught.value)
    assert (caught.value.exit_code, "`output`" in str(caught.value.hint)) == (2, True)


def test_tensors_that_are_written_to_meanwhile_are_noticed() -> None:
    models = states()

    def train(done: int, total: int) -> None:
        models["b"]["conv.weight"].add_(1)

    with pytest.raises(taskmerge.TaskmergeError, match="was written to while it was being read") as caught:
        in_memory(models, method="average", progress=train)
    assert caught.value.exit_code == 3


# --- nothing without a word, no file -----------------------------------------------------------------------------


def test_warnings_are_heard(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    models = states()
    twins = {"a": models["a"], "b": {name: value.clone() for name, value in models["a"].items()}}
    with pytest.warns(taskmerge.TaskmergeWarning, match="a and b are the same, tensor for tensor"):
        taskmerge.merge(twins, method="average")
    told: list[str] = []
    more = {**models["base"], "only.here": torch.ones(2)}
    taskmerge.merge(twins, base=more, method="ties", note=told.append)  # a warning would be an error here
    assert any("are the same" in text for text in told)
    assert any("left out 1 tensors that only the base has" in text for text in told)
    idle = {"a": models["a"], "b": {name: value.clone() for name, value in models["base"].items()}}
    with pytest.warns(taskmerge.TaskmergeWarning, match="b equals the base"):
        taskmerge.merge(idle, base=models["base"], method="ties")
    assert list(tmp_path.iterdir()) == []


def test_no_file_is_read_or_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Not even what lies about in the working directory under a telling name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "gptq"}}')
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    in_memory(states(), method="cart")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_a_dry_run_plans(tmp_path: Path) -> None:
    plan = in_memory(states(), method="cart", dry_run=True)
    assert isinstance(plan, taskmerge.MergePlan)
    assert (plan.outputs, plan.bytes_written, plan.tasks) == ((), 0, TASKS)
    size = sum(value.nbytes for value in states()["a"].values())
    assert plan.bytes_read >= len(TASKS) * size
    with pytest.raises(taskmerge.TaskmergeError, match="allows 1 MB") as caught:
        in_memory(states(), method="cart", max_memory="1M")
    assert caught.value.exit_code == 5


# --- between memory and files ----------------------------------------------------------------------------------


def test_an_output_is_written_and_verified(tmp_path: Path) -> None:
    models = states()
    experts = {task: models[task] for task in TASKS}
    receipt = taskmerge.merge(experts, base=models["base"], method="ties", output=tmp_path / "out.safetensors")
    assert isinstance(receipt, taskmerge.MergeReceipt)
    written = by_files(tmp_path / "files", models, method="ties")
    assert same(load_file(receipt.paths[0]), written)
    assert (tmp_path / "out.safetensors").read_bytes() == (tmp_path / "files" / "out.safetensors").read_bytes()
    assert taskmerge.verify(receipt.paths[0], [tmp_path / "files"]).same_file
    grid = taskmerge.merge(experts, method="cart", rank=[2, 3], output=tmp_path / "grid.safetensors")
    assert len(grid.paths) == 2


def test_a_merged_file_is_replayed_from_memory(tmp_path: Path) -> None:
    """Experts and base are found by content, whatever they are called."""
    models = states()
    written = by_files(tmp_path, models, method="dare", then="ties", seed=4)
    other = tmp_path / "elsewhere"
    other.mkdir()
    merged = (tmp_path / "out.safetensors").rename(other / "out.safetensors")
    for path in tmp_path.glob("*.safetensors"):
        path.unlink()
    renamed = {"x": models["c"], "y": models["a"], "z": models["b"], "w": models["base"]}
    assert same(taskmerge.merge(renamed, recipe=merged), written)
    with pytest.raises(taskmerge.TaskmergeError, match="cannot find again, by content: `c`"):
        taskmerge.merge({name: renamed[name] for name in ("y", "z", "w")}, recipe=merged)


def test_files_beside_memory_need_an_output(tmp_path: Path) -> None:
    models = states()
    written = by_files(tmp_path, models, method="average")
    mixed = {"a": tmp_path / "a.safetensors", "b": models["b"], "c": models["c"]}
    with pytest.raises(taskmerge.TaskmergeError, match="some experts are in memory, others are files"):
        taskmerge.merge(mixed, method="average")
    receipt = taskmerge.merge(mixed, method="average", output=tmp_path / "mixed.safetensors")
    assert same(load_file(receipt.paths[0]), written)
    files = {task: tmp_path / f"{task}.safetensors" for task in TASKS}
    receipt = taskmerge.merge(files, base=models["base"], method="ties", output=tmp_path / "t.safetensors")
    in_mem = taskmerge.merge({t: models[t] for t in TASKS}, base=tmp_path / "base.safetensors", method="ties")
    assert same(load_file(receipt.paths[0]), in_mem)


def test_an_adapter_and_a_folder_are_written_from_memory(tmp_path: Path) -> None:
    base = {"layers.0.q_proj.weight": torch.randn(8, 6), "layers.0.k_proj.weight": torch.randn(4, 6)}
    experts = {}
    for task in ("a", "b"):
        experts[task] = {name: value + torch.randn(len(value), 1) @ torch.randn(1, 6) for name, value in base.items()}
    options: dict[str, Any] = {"base": base, "method": "task_arithmetic"}
    receipt = taskmerge.merge(experts, **options, as_adapter=True, adapter_rank=4, output=tmp_path / "lora")
    assert (tmp_path / "lora" / "adapter_config.json").is_file()
    assert not receipt.warnings
    folder = taskmerge.merge(experts, **options, output=tmp_path / "model")
    card = (Path(folder.paths[0]) / "README.md").read_text()
    assert "a (in memory)" in card
