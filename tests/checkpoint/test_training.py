"""What training leaves behind is called what it is, and the command that is named makes a checkpoint of it."""

import random
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from taskmerge.checkpoint.checkpoint import open_checkpoint
from taskmerge.checkpoint.training import NEW
from taskmerge.errors import BadFile

DEEPSPEED, FSDP, DCP = "DeepSpeed (ZeRO)", "FSDP", "(DCP)"
LEFT = ("trainer_state.json", "training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state_0.pth", "config.json")
"""What may lie beside, whatever it is."""
FOLDERS: dict[str, tuple[tuple[str, ...], str, str]] = {
    "Trainer with ZeRO": (
        ("zero_to_fp32.py", "latest", "global_step9/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt",
         "global_step9/zero_pp_rank_0_mp_rank_00_model_states.pt"),
        DEEPSPEED, "python {0}/zero_to_fp32.py {0} NEW --safe_serialization",
    ),
    "ZeRO without its script": (
        ("latest", "global_step9/mp_rank_00_model_states.pt"),
        DEEPSPEED, "python -m deepspeed.utils.zero_to_fp32 {0} NEW --safe_serialization",
    ),
    "a step of ZeRO": (
        ("zero_pp_rank_0_mp_rank_00_optim_states.pt", "zero_pp_rank_1_mp_rank_00_optim_states.pt",
         "mp_rank_00_model_states.pt"),
        DEEPSPEED, "python -m deepspeed.utils.zero_to_fp32 {1} NEW --safe_serialization -t {2}",
    ),
    "accelerate": (
        ("pytorch_model_fsdp_0/.metadata", "pytorch_model_fsdp_0/__0_0.distcp", "optimizer_0/__0_0.distcp"),
        FSDP, "accelerate merge-weights {0}/pytorch_model_fsdp_0 NEW",
    ),
    "each its own part": (("pytorch_model_fsdp_rank0.bin", "pytorch_model_fsdp_rank1.bin"), FSDP, "FULL_STATE_DICT"),
    "torch": (
        (".metadata", "__0_0.distcp", "__1_0.distcp"),
        DCP, "python -m torch.distributed.checkpoint.format_utils dcp_to_torch {0} NEW.pt",
    ),
    "Lightning": (
        (".metadata", "__0_0.distcp", "meta.pt"),
        DCP, "python -m lightning.pytorch.utilities.consolidate_checkpoint {0} --output_file NEW.ckpt",
    ),
    "verl": (
        ("model_world_size_2_rank_0.pt", "model_world_size_2_rank_1.pt", "optim_world_size_2_rank_0.pt"),
        "verl", "python -m verl.model_merger merge --backend fsdp --local_dir {0} --target_dir NEW",
    ),
    "Megatron": (
        ("mp_rank_00/model_optim_rng.pt", "mp_rank_01/model_optim_rng.pt"), "Megatron", "tools/checkpoint/convert",
    ),
    "a step of Megatron's": (
        ("common.pt", ".metadata", "__0_0.distcp"),
        DCP, "python -m torch.distributed.checkpoint.format_utils dcp_to_torch {0} NEW.pt",
    ),
    "a run of Megatron's": (("latest_checkpointed_iteration.txt", "iter_0000100/common.pt"), "Megatron", "AutoBridge"),
    "a run": (("checkpoint-500/optimizer.pt", "checkpoint-1500/config.json"), "a training run", "{0}/checkpoint-1500"),
    "Trainer without weights": (("trainer_state.json", "optimizer.pt"), "without the model's weights", "save_model"),
}  # fmt: skip
"""Name -> files, what the message says, what its hint says of the folder, the one above, and its name."""
FILES = {
    "__0_0.distcp": DCP, ".metadata": DCP, "bf16_zero_pp_rank_3_mp_rank_00_optim_states.pt": DEEPSPEED,
    "mp_rank_00_model_states.pt": DEEPSPEED, "model_world_size_8_rank_7.pt": "verl", "model_optim_rng.pt": "Megatron",
    "pytorch_model_fsdp_0_rank3.bin": "LOCAL_STATE_DICT", "training_args.bin": "without the model's weights",
    "optimizer.bin": "without the model's weights", "rng_state_1.pth": "without the model's weights",
}  # fmt: skip


@pytest.mark.parametrize("kind", FOLDERS)
@pytest.mark.parametrize("seed", range(3))
def test_folders_are_called_what_they_are(tmp_path: Path, kind: str, seed: int) -> None:
    names, what, way = FOLDERS[kind]
    folder = tmp_path / "a folder"
    for name in (*names, *random.Random(f"{kind} {seed}").sample(LEFT, seed)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    with pytest.raises(BadFile) as caught:
        open_checkpoint(folder, allow_pickle=True)
    assert caught.value.where == str(folder)
    assert what in caught.value.what
    command, places = str(caught.value.hint), [shlex.quote(str(one)) for one in (folder, tmp_path, folder.name)]
    if NEW in way:
        assert shlex.split(command.split("`")[1]) == shlex.split(way.format(*places))
    else:
        assert way.format(folder) in command


@pytest.mark.parametrize("name", FILES)
def test_files_are_called_what_they_are(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(BadFile) as caught:
        open_checkpoint(tmp_path / name, allow_pickle=True)
    assert FILES[name] in caught.value.message
    (tmp_path / name).unlink()
    with pytest.raises(BadFile, match="no such file"):
        open_checkpoint(tmp_path / name, allow_pickle=True)


@pytest.mark.parametrize("kind", FOLDERS)
def test_weights_in_such_a_folder_are_read(tmp_path: Path, kind: str) -> None:
    for name in (*FOLDERS[kind][0], *LEFT):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "config.json").write_text("{}")
    save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as checkpoint:
        assert list(checkpoint.specs) == ["w"]


def test_pickles_without_weights_are_not_taken_for_them(tmp_path: Path) -> None:
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "scaler.pt"):
        torch.save({"x": torch.ones(1)}, tmp_path / name)
    torch.save({"w": torch.ones(2)}, tmp_path / "weights.pth")
    with open_checkpoint(tmp_path, allow_pickle=True) as checkpoint:
        assert list(checkpoint.specs) == ["w"]


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "module"])
def test_the_state_dict_of_a_trainers_file_is_found(tmp_path: Path, key: str) -> None:
    torch.save({"step": 3, key: {"w": torch.ones(2)}, "optimizer": {"state": {}}}, tmp_path / "x.pt")
    with open_checkpoint(tmp_path / "x.pt", allow_pickle=True) as checkpoint:
        assert torch.equal(checkpoint.tensor("w"), torch.ones(2))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["torch", "a trainer's", "accelerate"])
def test_the_command_that_is_named_makes_a_checkpoint(tmp_path: Path, kind: str) -> None:
    import torch.distributed.checkpoint as dcp

    state = {"a.weight": torch.randn(4, 3), "b": torch.arange(5)}
    folder = tmp_path / ("pytorch_model_fsdp_0" if kind == "accelerate" else "shards")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nothing is distributed
        dcp.save(state if kind == "torch" else {"model": state}, checkpoint_id=folder)
    with pytest.raises(BadFile) as caught:
        open_checkpoint(tmp_path if kind == "accelerate" else folder)
    command = str(caught.value.hint).split("`")[1].replace(NEW, "new")
    program, *words = shlex.split(command)
    subprocess.run(
        [Path(sys.executable).with_name(program), *words], cwd=tmp_path, check=True, capture_output=True, timeout=120
    )
    new = tmp_path / ("new" if kind == "accelerate" else "new.pt")
    with open_checkpoint(new, allow_pickle=True) as checkpoint:
        assert set(checkpoint.specs) == set(state)
        assert all(torch.equal(checkpoint.tensor(name), tensor) for name, tensor in state.items())
