"""Files that a sweep needs while it runs: a unit's tensors, in a folder that is gone in the end."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from taskmerge.checkpoint.disk import explained
from taskmerge.errors import BadOutput
from taskmerge.merging.plan import TensorJob
from taskmerge.workflows.sweeps.points import digest_of_values


def path_of(folder: Path, job: TensorJob) -> Path:
    """The file of a unit: names of tensors are no names of files."""
    return folder / f"{digest_of_values(job.name)[:32]}.safetensors"


def keep(folder: Path, job: TensorJob, tensors: Mapping[str, Tensor]) -> None:
    """Writes a unit's tensors. Raises BadOutput where there is no room for them."""
    path = path_of(folder, job)
    try:
        with explained(path):
            save_file(dict(tensors), path)
    except SafetensorError as error:  # which is how it passes on what the system says
        hint = "free space, or choose another disk with -o: factors of every task matrix lie there while they are swept"
        raise BadOutput(f"cannot be written: {error}", where=str(path), hint=hint) from error
