"""transformers' own tables of renamed tensors: a model's file and its state dict in memory are one model."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import taskmerge
from taskmerge.checkpoint.conversions import conversions_for

transformers = pytest.importorskip("transformers")
pytest.importorskip("transformers.conversion_mapping", reason="there are tables from version 5 on")

SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
PICTURES = {"image_size": 16, "patch_size": 8}


@pytest.mark.parametrize(
    ("model", "config"),
    [("ViTForImageClassification", "ViTConfig"), ("DeiTForImageClassification", "DeiTConfig")],
)
def test_what_is_saved_and_what_is_in_memory_are_one_model(tmp_path: Path, model: str, config: str) -> None:
    torch.manual_seed(0)
    built = getattr(transformers, model)(getattr(transformers, config)(**SMALL, **PICTURES))
    built.save_pretrained(tmp_path / "saved")
    memory = {name: value.clone().contiguous() for name, value in built.state_dict().items()}
    (tmp_path / "memory").mkdir()
    save_file(memory, tmp_path / "memory" / "model.safetensors")
    (tmp_path / "memory" / "config.json").write_bytes((tmp_path / "saved" / "config.json").read_bytes())
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert saved.keys() != memory.keys(), "the library writes older names than it has in memory"
    report = taskmerge.diff(tmp_path / "saved", tmp_path / "memory")
    assert report.same
    assert len(report.tensors) == len(saved)
    assert report.notes


@pytest.mark.parametrize(
    "config", [None, {}, {"model_type": 5}, {"architectures": "x"}, {"model_type": "no-such-model"}]
)
def test_without_a_known_type_there_are_no_tables(config: dict[str, object] | None) -> None:
    assert conversions_for(config) is None


def test_a_configuration_alone_decides(tmp_path: Path) -> None:
    """The same names of another type of model stay as they are."""
    names = ("encoder.layer.0.attention.attention.query.weight", "layers.0.attention.q_proj.weight")
    for name, tensor in zip("ab", names, strict=True):
        (tmp_path / name).mkdir()
        save_file({tensor: torch.ones(2, 2)}, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text(json.dumps({"model_type": "llama"}))
    report = taskmerge.diff(tmp_path / "a", tmp_path / "b")
    assert (len(report.only_a), len(report.only_b)) == (1, 1)
