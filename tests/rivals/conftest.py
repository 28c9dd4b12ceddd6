"""Runs other tools' own functions in their own Python; tensors go there and come back as safetensors files."""

import json
import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

Tensors = Mapping[str, Tensor]
Rival = Callable[..., dict[str, Tensor]]
LIMIT = 300  # seconds: importing fusion-bench alone takes half a minute on a slow disk

BEFORE = """
import json, sys
import torch
from safetensors.torch import load_file, save_file
torch.set_num_threads(1)
given = load_file(sys.argv[1])
options = json.loads(sys.argv[3])
result = {}
"""
AFTER = """
save_file({name: tensor.detach().clone().contiguous() for name, tensor in result.items()}, sys.argv[2])
"""


@pytest.fixture(scope="session")
def rival(tmp_path_factory: pytest.TempPathFactory) -> Rival:
    """`rival(script, tensors, **options)`: the script reads `given` and `options` and fills `result`."""
    python = os.environ.get("TASKMERGE_RIVALS")
    if not python:
        pytest.skip("TASKMERGE_RIVALS names no Python that has mergekit, fusion-bench and peft")

    def run(script: str, tensors: Tensors, **options: object) -> dict[str, Tensor]:
        folder = tmp_path_factory.mktemp("rival")
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "given.safetensors")
        (folder / "script.py").write_text(BEFORE + script + AFTER, encoding="utf-8")
        _run([python, "script.py", "given.safetensors", "result.safetensors", json.dumps(options)], folder)
        return load_file(folder / "result.safetensors")

    return run


def _run(command: list[str], folder: Path) -> None:
    quiet = {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | quiet
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False
    )
    if done.returncode:
        pytest.fail(f"the rival's script ended with {done.returncode}:\n{done.stderr[-3000:]}")
