"""Content digests: their definition, and what they do and don't depend on."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from checkpoint_files import random_tensor, raw_bytes, save, tensor_maps
from hypothesis import HealthCheck, given, settings
from torch import Tensor

from taskmerge.checkpoint import checkpoint as checkpoints
from taskmerge.checkpoint.checkpoint import open_checkpoint
from taskmerge.checkpoint.digest import content_digest, digest_of, tensor_line
from taskmerge.checkpoint.dtypes import CODES

few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def test_a_known_digest() -> None:
    """Pinned: files that carry digests must stay comparable from version to version."""
    line = tensor_line("block.0.é", "F32", (2, 3), hashlib.sha256(bytes(24)).hexdigest())
    sha = "9d908ecfb6b256def8b49a7c504e6c889c4b0e41fe6ce3e01863dd7b61a20aa0"
    assert line == f'["block.0.é","F32",[2,3],"{sha}"]'
    expected = hashlib.sha256(f'["a","I64",[],"00"]\n{line}\n'.encode()).hexdigest()
    assert content_digest([line, '["a","I64",[],"00"]']) == f"sha256:{expected}"
    assert content_digest([]) == "sha256:" + hashlib.sha256().hexdigest()


@few
@given(tensors=tensor_maps)
def test_digest_is_its_definition(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    lines = []
    for name, tensor in tensors.items():
        shape = ",".join(str(side) for side in tensor.shape)
        sha = hashlib.sha256(raw_bytes(tensor)).hexdigest()
        lines.append(f'[{json.dumps(name, ensure_ascii=False)},"{CODES[tensor.dtype]}",[{shape}],"{sha}"]\n'.encode())
    with open_checkpoint(save(tmp_path / "x.safetensors", tensors)) as checkpoint:
        assert digest_of(checkpoint) == "sha256:" + hashlib.sha256(b"".join(sorted(lines))).hexdigest()


def test_transport_and_metadata_leave_it_alone_and_content_does_not(tmp_path: Path) -> None:
    tensors = {"a": random_tensor("F32", (4,), 1), "b": random_tensor("F32", (2, 2), 2)}
    variants = [
        tensors,
        {"a": tensors["a"], "c": tensors["b"]},
        {"a": tensors["a"], "b": tensors["b"].reshape(4)},
        {"a": tensors["a"].view(torch.int32), "b": tensors["b"]},
        {"a": tensors["a"]},
        {"a": tensors["b"].reshape(4), "b": tensors["a"].reshape(2, 2)},
    ]
    digests = []
    for number, variant in enumerate(variants):
        with open_checkpoint(save(tmp_path / f"{number}.safetensors", variant)) as checkpoint:
            digests.append(digest_of(checkpoint))
    assert len(set(digests)) == len(variants)

    torch.save(tensors, tmp_path / "x.pt")
    with open_checkpoint(tmp_path / "x.pt", allow_pickle=True) as pickled:
        assert digest_of(pickled) == digests[0]
        assert digest_of(pickled, ["a"]) == digests[4]
    with open_checkpoint(save(tmp_path / "meta.safetensors", tensors, {"format": "pt"})) as checkpoint:
        assert digest_of(checkpoint) == digests[0]


def test_large_tensors_are_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {"a": random_tensor("U8", (1001,), 1)}
    path = save(tmp_path / "x.safetensors", tensors)
    with open_checkpoint(path) as checkpoint:
        whole = digest_of(checkpoint)
        monkeypatch.setattr(checkpoints, "PIECE", 100)
        assert digest_of(checkpoint) == whole
