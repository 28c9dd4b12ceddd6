"""What training leaves behind that is no checkpoint to read: states in shards, and states without weights.

Known by the names of files and folders alone: what each is, and the command that makes a checkpoint of it.
"""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from taskmerge.errors import BadFile, listed

NEW = "NEW"
"""What the commands call the folder that they write."""
_ASIDE = re.compile(
    r"training_args\.bin|optimizer(_\d+)?\.(pt|bin)|scheduler(_\d+)?\.(pt|bin)|scaler\.pt|sampler(_\d+)?\.bin"
    r"|rng_state(_\d+)?\.pth|.*_optim_states\.pt|optim_world_size_.*\.pt|extra_state_world_size_.*\.pt"
)
"""Pickles that lie beside weights and hold none."""

_ZERO_STATE = re.compile(r"((bf16_|fp16_)?zero_pp_rank_\d+_mp_rank_\d+|mp_rank_\d+)_(optim|model)_states\.pt")
_ZERO = re.compile(rf"zero_to_fp32\.py|global_step\d+|{_ZERO_STATE.pattern}")
_FSDP = re.compile(r"pytorch_model_fsdp_\d+")
_LOCAL = re.compile(r"pytorch_model_fsdp(_\d+)?_rank\d+\.bin")
_MEGATRON = re.compile(r"mp_rank_\d+(_\d+)*|iter_\d{7}|latest_checkpointed_iteration\.txt|model_optim_rng\.pt")
_SHARD = re.compile(r"__\d+_\d+\.distcp|\.metadata")
_VERL = re.compile(r"(model|optim)_world_size_\d+_rank_\d+\.pt")
_RUN = re.compile(r"checkpoint-\d+")
_TRAINER = re.compile(rf"trainer_state\.json|{_ASIDE.pattern}")


@dataclass(frozen=True, slots=True)
class State:
    """What a path is, and how a checkpoint is made of it."""

    what: str
    way: str

    def at(self, path: Path) -> BadFile:
        """The error for it."""
        return BadFile(self.what, where=str(path), hint=self.way)


def candidates(names: Sequence[str]) -> list[str]:
    """The names in a folder that may be weights: pickles of other things are not, nor is any beside torch's shards."""
    shards = any(map(_SHARD.fullmatch, names))
    return [name for name in names if not (_ASIDE.fullmatch(name) or (shards and name.endswith(".pt")))]


def state_in(folder: Path) -> State | None:
    """What a folder without weights is of what training leaves behind; None for anything else."""
    return _state(folder, _names(folder))


def state_of(file: Path) -> State | None:
    """What a file is, whatever lies beside it; None for what may be weights."""
    return _state(file.parent, [file.name])


def _state(folder: Path, names: Sequence[str]) -> State | None:
    return next((say(folder, names) for pattern, say in _KINDS if any(map(pattern.fullmatch, names))), None)


def _names(folder: Path) -> list[str]:
    """The names in a folder, sorted; of hidden ones only that of a distributed checkpoint's metadata."""
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith(".") or name == ".metadata")
    except OSError:
        return []


# --- the kinds -------------------------------------------------------------------------------------------------


def _deepspeed(folder: Path, names: Sequence[str]) -> State:
    within = any(map(_ZERO_STATE.fullmatch, names))
    root, tag = (folder.parent, f" -t {quote(folder.name)}") if within else (folder, "")
    script = root / "zero_to_fp32.py"
    program = quote(str(script)) if script.is_file() else "-m deepspeed.utils.zero_to_fp32"
    return State(
        "is a checkpoint of DeepSpeed (ZeRO), whose weights lie in shards among the optimizer's states",
        f"put them together: `python {program} {quote(str(root))} {NEW} --safe_serialization{tag}`, then name {NEW}",
    )


def _accelerate(folder: Path, names: Sequence[str]) -> State:
    inner = folder / next(name for name in names if _FSDP.fullmatch(name))
    return State(
        f"is a checkpoint of FSDP in shards ({inner.name}/), as accelerate and transformers' Trainer write it",
        f"put them together: `accelerate merge-weights {quote(str(inner))} {NEW}`, then name {NEW}",
    )


def _unsharded(folder: Path, names: Sequence[str]) -> State:
    return State(
        "is a checkpoint of FSDP in which every process has saved its own part (LOCAL_STATE_DICT)",
        "nothing puts these together: load it where it was trained, and save it with FULL_STATE_DICT",
    )


def _megatron(folder: Path, names: Sequence[str]) -> State:
    return State(
        "is a checkpoint of Megatron-LM, in its own layout",
        "convert it to Hugging Face's: `python tools/checkpoint/convert.py` of Megatron-LM, or Megatron Bridge's "
        "`AutoBridge.export_ckpt`",
    )


def _distributed(folder: Path, names: Sequence[str]) -> State:
    place = quote(str(folder))
    if _FSDP.fullmatch(folder.name):
        way, new = f"accelerate merge-weights {place} {NEW}", NEW
    elif "meta.pt" in names:
        way = f"python -m lightning.pytorch.utilities.consolidate_checkpoint {place} --output_file {NEW}.ckpt"
        new = f"{NEW}.ckpt with --allow-pickle"
    else:
        way = f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {place} {NEW}.pt"
        new = f"{NEW}.pt with --allow-pickle"
    what = "is a distributed checkpoint of torch (DCP), in shards"
    return State(what, f"put them together: `{way}`, then name {new}")


def _verl(folder: Path, names: Sequence[str]) -> State:
    way = f"python -m verl.model_merger merge --backend fsdp --local_dir {quote(str(folder))} --target_dir {NEW}"
    return State(
        "is a checkpoint of verl, of which every process has saved its own shard",
        f"put them together: `{way}`, then name {NEW}",
    )


def _run(folder: Path, names: Sequence[str]) -> State:
    steps = sorted((name for name in names if _RUN.fullmatch(name)), key=lambda name: int(name.rpartition("-")[2]))
    return State(
        f"is the folder of a training run, whose checkpoints are in {listed(steps, 5)}",
        f"name one of them, such as {folder / steps[-1]}",
    )


def _trainer(folder: Path, names: Sequence[str]) -> State:
    held = [name for name in names if _TRAINER.fullmatch(name)]
    return State(
        f"is what a trainer continues from, without the model's weights: it holds {listed(held, 5)}",
        "name a checkpoint that has model.safetensors: `trainer.save_model(FOLDER)` writes one",
    )


_KINDS: Sequence[tuple[re.Pattern[str], Callable[[Path, Sequence[str]], State]]] = (
    (_ZERO, _deepspeed), (_FSDP, _accelerate), (_LOCAL, _unsharded), (_MEGATRON, _megatron), (_SHARD, _distributed),
    (_VERL, _verl), (_RUN, _run), (_TRAINER, _trainer),
)  # fmt: skip
"""A name that tells each kind, and what to say of it; the first that is there counts."""
