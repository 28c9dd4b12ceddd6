"""Exit code 3: an input cannot be read, or its numbers are bad. The message names the file and the tensor."""

import json
import struct
from pathlib import Path

import pytest
import torch
from merge_cases import load, merge, model, refused, refused_merge, same_tensors, save, write_experts

Files = dict[str, Path]
ALL = "*.safetensors"
METHODS = ["cart", "average", "task_arithmetic", "ties", "dare", "breadcrumbs", "tsv_m", "iso_c", "pcb", "magmax"]


def raw(path: Path, header: object, data: bytes = b"", length: int | None = None) -> None:
    """A safetensors file by hand, with any header length."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def tensor(begin: int, end: int, shape: list[int]) -> dict[str, object]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}


def test_a_missing_file(experts: Files, here: Path) -> None:
    refused_merge(
        3,
        "cars.safetensors",
        "dog.safetensors",
        folder=here,
        says=("dog.safetensors: there is no such file", "did you mean `dogs.safetensors`?"),
    )
    refused_merge(
        3,
        "cars.safetensors",
        "far/away.safetensors",
        folder=here,
        says=("far/away.safetensors: there is no such file",),
    )
    refused_merge(
        3, "cars.safetensors", "x=dog.safetensors", folder=here, says=("dog.safetensors: there is no such file",)
    )
    refused_merge(
        3, "cars.safetensors", "--base", "bse.safetensors", folder=here, says=("bse.safetensors", "`base.safetensors`")
    )
    refused_merge(3, "*.sft", folder=here, says=("*.sft: no file matches", "check the pattern"))
    refused_merge(3, ALL, "--recipe", "no.yaml", folder=here, says=("no.yaml: no such file",))
    refused_merge(3, "--recipe", "no.safetensors", folder=here, says=("no.safetensors",))
    refused_merge(3, ALL, "--coefficients", "no.yaml", folder=here, says=("no.yaml: no such file",))


@pytest.mark.parametrize("where", ["cars.safetensors", "base.safetensors"])
@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: path.write_bytes(b""), ("empty",)),
        (lambda path: path.write_bytes(b"\x01\x02"), ("too short",)),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), ("truncated",)),
        (lambda path: path.write_bytes(path.read_bytes()[:100]), ("header",)),
        (lambda path: path.write_bytes(path.read_bytes() + b"\0"), ("follow the last tensor",)),
        (lambda path: path.write_text("once upon a time there was a checkpoint\n"), ("is a text file",)),
        (lambda path: raw(path, {}, length=2**40), ("header",)),
        (lambda path: raw(path, {}, length=100), ("header",)),
        (lambda path: raw(path, b"{not json}"), ("header",)),
        (lambda path: raw(path, [1]), ("header",)),
        (lambda path: raw(path, {"a": tensor(0, 8, [2]), "b": tensor(4, 12, [2])}, b"\0" * 12), ("`b`", "overlaps")),
        (lambda path: raw(path, {"a": tensor(4, 12, [2])}, b"\0" * 12), ("`a`", "hole")),
        (lambda path: raw(path, {"a": tensor(0, 8, [2])}, b"\0" * 4), ("`a`", "out of range")),
        (lambda path: raw(path, {"a": tensor(0, 8, [3])}, b"\0" * 8), ("`a`", "span 8 bytes")),
        (lambda path: raw(path, {"a": tensor(-8, 0, [2])}, b"\0" * 8), ("`a`", "data_offsets")),
        (lambda path: raw(path, {"a": tensor(0, 0, [0]) | {"dtype": "F99"}}), ("`a`", "unknown dtype")),
    ],
)  # fmt: skip
def test_a_damaged_file(experts: Files, here: Path, where: str, damage: object, says: tuple[str, ...]) -> None:
    damage(here / where)
    refused_merge(3, ALL, "-m", "task_arithmetic", folder=here, says=(where, *says))


def test_a_provenance_that_is_none(experts: Files, here: Path) -> None:
    save(here / "cars.safetensors", model(1), {"taskmerge": "{"})
    refused_merge(3, ALL, folder=here, says=("cars.safetensors: its metadata `taskmerge` is no JSON object",))


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ("[]", "no JSON object"),
        ('{"tasks": 5}', "`tasks` is malformed"),
        ('{"tasks": ["a"]}', "`tasks.0` is malformed"),
        ('{"kind": "merge", "recipe": {}}', "`tasks` is missing"),
        ('{"kind": "merge", "tasks": []}', "`recipe` is missing"),
        ('{"recipe": {"options": [1]}}', "`recipe.options` is malformed"),
        ('{"base": 7}', "`base` is malformed"),
        ('{"kind": "factors", "ranks": 5}', "`ranks` is malformed"),
        ('{"kind": "vector", "experts": [1]}', "`experts` is malformed"),
    ],
)
def test_a_record_that_somebody_else_made_up(experts: Files, here: Path, record: str, says: str) -> None:
    save(here / "cars.safetensors", model(1), {"taskmerge": record})
    said = ("cars.safetensors: its metadata `taskmerge` is", says)
    refused_merge(3, ALL, folder=here, says=said)
    for command in ("inspect", "verify"):
        refused(3, command, "cars.safetensors", folder=here, says=said)


def test_a_folder_without_weights(experts: Files, here: Path) -> None:
    (here / "empty").mkdir()
    refused_merge(3, "cars.safetensors", "empty", folder=here, says=("empty: folder without weights",))


def test_a_folder_of_several_models(experts: Files, here: Path) -> None:
    refused_merge(3, ".", folder=here, says=("holds 4 weight files and no index",))


@pytest.mark.parametrize(
    ("shard", "says"),
    [
        (
            "model-00002-of-00002.safetensors",
            ("model.safetensors.index.json", "do not exist", "model-00002-of-00002.safetensors"),
        ),
        ("../cars.safetensors", ("index.json", "'../cars.safetensors' is not a file inside the index's folder")),
        ("/etc/passwd", ("index.json", "'/etc/passwd' is not a file inside")),
        ("a/../../cars.safetensors", ("is not a file inside the index's folder",)),
    ],
)
@pytest.mark.parametrize("named", ["sharded", "sharded/model.safetensors.index.json"])
def test_an_index_that_names_what_is_not_there(
    experts: Files, here: Path, shard: str, says: tuple[str, ...], named: str
) -> None:
    save(here / "sharded" / "model-00001-of-00002.safetensors", {"a": torch.ones(2)})
    index = {"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors", "b": shard}}
    (here / "sharded" / "model.safetensors.index.json").write_text(json.dumps(index))
    refused_merge(3, "cars.safetensors", named, folder=here, says=says)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_in_an_expert(experts: Files, here: Path, method: str, value: float) -> None:
    bad = load(experts["dogs"])
    bad["blocks.1.mlp.fc.weight"][3, 5] = value
    save(experts["dogs"], bad)
    says = ("dogs.safetensors: `blocks.1.mlp.fc.weight`", "NaN or infinity")
    refused_merge(3, ALL, "-m", method, folder=here, says=says)


@pytest.mark.parametrize("name", ["logit_scale", "norm.weight", "embed.weight"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_nan_in_any_tensor_of_any_type(here: Path, name: str, dtype: torch.dtype) -> None:
    files = write_experts(here, dtype=dtype)
    bad = load(files["dogs"])
    bad[name].view(-1)[-1] = float("nan")
    save(files["dogs"], bad)
    refused_merge(3, ALL, folder=here, says=(f"dogs.safetensors: `{name}`", "NaN or infinity"))


def test_nan_in_the_base_counts_only_where_the_base_is_read(experts: Files, here: Path) -> None:
    bad = load(experts["base"])
    bad["proj"][0, 0] = float("nan")
    save(experts["base"], bad)
    refused_merge(3, ALL, "-m", "ties", folder=here, says=("base.safetensors: `proj`",))
    merge(ALL, "-m", "cart")


def test_pickles_need_leave(experts: Files, here: Path) -> None:
    for name in ("x.bin", "x.pt", "folder/pytorch_model.bin"):
        (here / name).parent.mkdir(exist_ok=True)
        torch.save(model(5), here / name)
    for name in ("x.bin", "x.pt", "folder"):
        says = ("x." if "x" in name else "folder/pytorch_model.bin", "can run code", "--allow-pickle")
        refused_merge(3, "cars.safetensors", name, folder=here, says=says)
    outcome = merge("x.bin", "-m", "average", "--allow-pickle", "-o", "out.safetensors")
    assert same_tensors(load(outcome.paths[0]), model(5))


def test_a_pickle_that_runs_code_is_never_loaded(experts: Files, here: Path) -> None:
    class Evil:
        def __reduce__(self) -> object:
            return open, (str(here / "evil"), "w")

    torch.save({"a": Evil()}, here / "x.bin")
    says = ("x.bin", "weights-only: it needs `io.open`, which is no part of a state dict", "convert it to safetensors")
    said = refused_merge(3, "cars.safetensors", "x.bin", "--allow-pickle", folder=here, says=says)
    assert "weights_only" not in said.err, "torch's advice to load it all the same is not handed on"


def test_a_directory_that_is_named_like_a_file(experts: Files, here: Path) -> None:
    (here / "d.safetensors").mkdir()
    refused_merge(3, ALL, folder=here, says=("d.safetensors: folder without weights",))
