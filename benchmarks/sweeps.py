"""The merging part of sweeps against the merge engine, on synthetic ViT-B/32 encoders, interleaved; and memory.

    python benchmarks/sweeps.py [--folder FOLDER] [--layers 12] [--width 768] [--rounds 3] [--only rank,subsets,memory]
        [--sample 8]

`rank`: ten points of CART over rank, up to --largest, against one merge at the largest rank, both in this process and
without writing a result (the sweep's own files of factors count). `subsets`: all 255 subsets of 8 tasks against one
engine run a subset with its reading and writing, as a command and as a call in this process, timed on --sample subsets
of evenly spread sizes and multiplied; CART on the sample alone. `memory`: what a sweep with data holds at its peak,
beside the model and a task vector. Prints ratios of medians.
"""

import argparse
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

import taskmerge
from taskmerge.checkpoint.dtypes import DTYPES
from taskmerge.experts.inputs import InputOptions
from taskmerge.experts.rows import Rows, even
from taskmerge.merging.execute import execute
from taskmerge.merging.options import RunOptions, split_options
from taskmerge.merging.prepare import prepare
from taskmerge.merging.run import Run
from taskmerge.numerics.gray import gray_subsets
from taskmerge.numerics.lapack import load_routines
from taskmerge.numerics.rank import Rank
from taskmerge.workflows.sweeps.encoder import Encoder, spots_in
from taskmerge.workflows.sweeps.grid import GridPoint, walk
from taskmerge.workflows.sweeps.subsets import Running, cart

HERE = Path(__file__).resolve().parent
POINTS = 10


def encoder_of(folder: Path, **options: object) -> Encoder:
    """The experts of a folder, over an encoder that is nothing but its tensors."""
    said = {"method": "truncated_task_arithmetic", "base": folder / "base.safetensors", **options}
    spec, opening, _ = split_options(said)
    inputs = sorted(str(path) for path in folder.glob("expert*.safetensors"))
    prepared = prepare(inputs, spec, opening, RunOptions(output=folder / "never.safetensors", overwrite=True))
    names = {output.name: output for job in prepared.plan.jobs for output in job.outputs}
    slots = {name: torch.empty(output.shape, dtype=torch.float32) for name, output in names.items()}
    spots = spots_in(prepared.plan.jobs, {name: name for name in names})
    jobs = sorted((job for job in prepared.plan.jobs if job.name in spots), key=lambda job: -job.memory)
    costs = prepared.plan.costs
    found = prepared.inputs
    return Encoder(jobs, spots, slots, found.experts, found.base, torch.float32, torch.device("cpu"), costs.workers,
                   costs.in_flight)  # fmt: skip


class Nowhere:
    """Takes merged tensors, and does nothing with them."""

    def write(self, name: str, data: torch.Tensor, start_element: int = 0) -> None:
        data.to(DTYPES["F32"])


def merge_without_writing(folder: Path, rank: float) -> None:
    """One CART merge by the engine, whose results go nowhere."""
    spec, _, _ = split_options({"method": "cart", "rank": str(rank)})
    inputs = sorted(str(path) for path in folder.glob("expert*.safetensors"))
    running = RunOptions(output=folder / "never.safetensors", overwrite=True)
    prepared = prepare(inputs, spec, InputOptions(), running)
    rows = Rows(None, prepared.inputs.experts, "centred", even(prepared.inputs.experts))
    execute(Run(prepared.spec, prepared.plan, rows, prepared.points, [Nowhere()], lambda count: None))
    prepared.inputs.close()


Measured = tuple[float, float]
"""Seconds on the clock, and of all cores, those of commands that were started included."""


def timed(work: Callable[[], object], times: float = 1.0) -> Measured:
    started, before = time.perf_counter(), _cpu()
    work()
    return times * (time.perf_counter() - started), times * (_cpu() - before)


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def told(name: str, ours: Sequence[Measured], theirs: Sequence[Measured], what: str) -> None:
    """Medians and their ratios, of both clocks: on a busy machine the second is the steadier."""
    for place, clock in enumerate(("s", "CPU s")):
        mine, other = (statistics.median(one[place] for one in every) for every in (ours, theirs))
        ratio = f"ratio {mine / other:6.3f} (x{other / mine:.1f})"
        print(f"{name:34} {mine:9.2f} {clock:5}  {what} {other:9.2f}  {ratio}", flush=True)


# --- rank ------------------------------------------------------------------------------------------------------


def rank(folder: Path, work: Path, rounds: int, largest: float) -> None:
    """Ten ranks up to the largest, against one merge at the largest."""
    load_routines()
    grid = [Rank("ratio", largest * (index + 1) / POINTS) for index in range(POINTS)]

    def ten() -> None:
        encoder = encoder_of(folder)
        for _, form in walk(encoder, [GridPoint("cart", one, 1.0) for one in grid], work / "factors"):
            form()

    ours, theirs = [], []
    merge_without_writing(folder, largest)
    for _ in range(rounds):
        theirs.append(timed(lambda: merge_without_writing(folder, largest)))
        ours.append(timed(ten))
    told(f"ten CART points up to {largest:g}", ours, theirs, "one merge")


# --- subsets ---------------------------------------------------------------------------------------------------


def subsets(folder: Path, work: Path, rounds: int, sample: int) -> None:
    """All subsets by one change each, against one engine run a subset."""
    encoder = encoder_of(folder)
    count = len(encoder.tasks)
    every = [members for _, members in gray_subsets(count)]
    chosen = [random.Random(size).choice([one for one in every if len(one) == 1 + size % count])
              for size in range(sample)]  # fmt: skip
    scale = len(every) / sample
    for method in ("average", "task_arithmetic"):
        ours, command, call = [], [], []
        for _ in range(rounds):
            ours.append(timed(lambda method=method: all_subsets(encoder, method)))
            command.append(timed(lambda method=method: as_commands(folder, work, chosen, method), scale))
            call.append(timed(lambda method=method: as_calls(folder, work, chosen, method), scale))
        told(f"{len(every)} subsets, {method}", ours, command, "a command each")
        told(f"{len(every)} subsets, {method}", ours, call, "a call each   ")
    three = [one for one in chosen if len(one) > 2]
    ours, command, call = [], [], []
    for _ in range(rounds):
        ours.append(timed(lambda: carts(encoder, three)))
        command.append(timed(lambda: as_commands(folder, work, three, "cart")))
        call.append(timed(lambda: as_calls(folder, work, three, "cart")))
    told(f"{len(three)} subsets, CART", ours, command, "a command each")
    told(f"{len(three)} subsets, CART", ours, call, "a call each   ")


def all_subsets(encoder: Encoder, method: str) -> None:
    running = Running(encoder)
    for changed, members in gray_subsets(len(encoder.tasks)):
        running.toggle(changed, members)  # leaves the average in the encoder
        if method == "task_arithmetic":
            running.task_arithmetic()


def carts(encoder: Encoder, chosen: Sequence[Sequence[int]]) -> None:
    running = Running(encoder)
    for members in chosen:
        for member in {*members} ^ {*running.members}:
            running.toggle(member, sorted({*running.members} ^ {member}))
        cart(running)


def _files(folder: Path, members: Sequence[int]) -> list[str]:
    every = sorted(str(path) for path in folder.glob("expert*.safetensors"))
    return [every[member] for member in members]


def as_commands(folder: Path, work: Path, chosen: Sequence[Sequence[int]], method: str) -> None:
    for members in chosen:
        command = [sys.executable, "-m", "taskmerge", "merge", "-m", method, "--base", str(folder / "base.safetensors"),
                   *_files(folder, members), "-o", str(work / "out.safetensors"), "--overwrite", "--quiet"]  # fmt: skip
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def as_calls(folder: Path, work: Path, chosen: Sequence[Sequence[int]], method: str) -> None:
    for members in chosen:
        taskmerge.merge(_files(folder, members), base=folder / "base.safetensors", method=method,
                        output=work / "out.safetensors", overwrite=True)  # fmt: skip


# --- memory ----------------------------------------------------------------------------------------------------

MEMORY = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
import sweeps
from taskmerge.numerics.memory import peak_memory, resident_memory
from taskmerge.numerics.rank import Rank
from taskmerge.workflows.sweeps.grid import GridPoint, walk
encoder = sweeps.encoder_of(Path(sys.argv[1]))
for value in encoder.slots.values(): value.zero_()
before = resident_memory()
for _, form in walk(encoder, [GridPoint("cart", Rank("ratio", r), 1.0) for r in (0.04, 0.08)], Path(sys.argv[2])):
    form()
model = sum(value.nbytes for value in encoder.slots.values())
heaviest = max(job.numel for job in encoder.jobs) * 4
print(f"before {before / 1e6:.0f} MB (the model {model / 1e6:.0f} MB), at the peak {peak_memory() / 1e6:.0f} MB: "
      f"{(peak_memory() - before) / model:.2f} models more, {(peak_memory() - before - model) / heaviest:.1f} largest "
      "tensors beyond one task vector")
"""


def memory(folder: Path, work: Path) -> None:
    """What a rank sweep holds beside the model: one sum of its size, and largest tensors."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", MEMORY, str(folder), str(work / "memory"), str(HERE)], check=True,
                   env=environment)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--largest", type=float, nargs="*", default=[0.08, 0.64])
    parser.add_argument("--sample", type=int, default=8)
    parser.add_argument("--only", default="rank,subsets,memory")
    said = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        folder = said.folder or work / "inputs"
        if not folder.exists():
            size = ["--layers", str(said.layers), "--width", str(said.width)]
            subprocess.run([sys.executable, str(HERE / "synthetic.py"), str(folder), *size], check=True)
        if "rank" in said.only:
            for largest in said.largest:
                rank(folder, work, said.rounds, largest)
        if "subsets" in said.only:
            subsets(folder, work, said.rounds, said.sample)
        if "memory" in said.only:
            memory(folder, work)


if __name__ == "__main__":
    main()
