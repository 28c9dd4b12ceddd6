"""An update of `taskmerge adapt` against a plain forward and backward pass, public codes' way, and the floor; in turns.

    python benchmarks/adapt.py [--method all] [--tasks 4] [--rounds 7] [--amp bf16] [--model ViT-B-32] [--threads 2]
                               [--only plain,taskmerge]

Random weights, random items, 16 a task and update (32 for SyMerge, as published). Every variant runs in a process of
its own, all of them take turns, one iteration at a time: an iteration visits every task once, in one update (joint) or
in one a task (sequential). Before that each runs two iterations in another process: peak memory, and how far from ours
is what it has learnt, relative to the learning rate (Adam's first steps are the rate times the gradient's sign: where a
gradient is zero but for rounding, they differ by up to twice the rate).

`plain` is forward and backward of the model on the same batches; `passes` are taskmerge's forward and backward passes
alone; `naive` is benchmarks/adapt_naive.py; `floor` is plain with the products alone that AdaRank needs, all components
on; `fusion-bench` is its wrapper and loop, under the Python that TASKMERGE_RIVALS names. Decompositions are of one
block's matrices. Times vary with the machine; quote ratios, those of processor time (`cpu s`, all threads) where others
use it too, then with OMP_WAIT_POLICY=passive, else torch's threads spin while they wait. Peaks are without libraries.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from adapt_inputs import ANSWER, RATES, Inputs

HERE = Path(__file__).resolve().parent
ADAPTING = ("adamerging", "adarank", "symerge")
BATCH = {"symerge": 32}
JOINT, SEQUENTIAL = "joint", "sequential"
FACTORS = {"svd": "torch.linalg.svd", "all": "all components", "leading": "the first 16%"}
COLUMNS = " median s     min     max {0:>7}   cpu s {0:>7}"


@dataclass(frozen=True)
class Variant:
    """A command that takes inputs, and the modes that it is timed in."""

    name: str
    command: tuple[str, ...]
    modes: tuple[str, ...]


class Process:
    """One variant at work."""

    def __init__(self, variant: Variant, inputs: Inputs) -> None:
        command = [*variant.command, inputs.text()]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate()

    def asked(self, line: str) -> str:
        """What it answers; what libraries print is passed over."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(line, file=self.process.stdin, flush=True)
        for answer in self.process.stdout:
            if answer.startswith(ANSWER):
                return answer.removeprefix(ANSWER).strip()
        sys.exit(f"a worker has failed: {self.process.args}")


def variants(method: str) -> list[Variant]:
    """Plain first."""

    def own(name: str, *modes: str) -> Variant:
        return Variant(name, (sys.executable, str(HERE / "adapt_worker.py"), name), modes)

    if method == "decomposition":
        return [own("svd", ""), own("all", ""), own("leading", "")]
    found = [own("plain", JOINT), own("taskmerge", JOINT, SEQUENTIAL, "passes"), own("naive", JOINT, SEQUENTIAL)]
    if method == "adarank":
        found.append(own("floor", JOINT, SEQUENTIAL))
    rivals = os.environ.get("TASKMERGE_RIVALS")
    if method == "adamerging" and rivals:
        found.append(Variant("fusion-bench", (rivals, str(HERE / "rival_adamerging.py")), (JOINT,)))
    return found


@dataclass(frozen=True)
class Tried:
    """Two iterations of a variant: peak bytes, and what it has learnt."""

    peak: int
    learned: Mapping[str, Tensor]


def tried(variant: Variant, mode: str, inputs: Inputs) -> Tried:
    with Process(variant, inputs) as process:
        for _ in range(2):
            process.asked(f"iterate {mode}")
        path = Path(inputs.folder) / "learned.safetensors"
        process.asked(f"learned {path}")
        return Tried(int(process.asked("peak")), {name: value.clone() for name, value in load_file(path).items()})


@dataclass(frozen=True)
class Taken:
    """What iterations took: wall seconds and processor seconds of each."""

    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)

    def row(self, unit: "Taken") -> str:
        """Medians, and their ratios to those of another."""
        wall, processor = statistics.median(self.wall), statistics.median(self.processor)
        times, of_processor = wall / statistics.median(unit.wall), processor / statistics.median(unit.processor)
        return (
            f"{wall:9.2f} {min(self.wall):7.2f} {max(self.wall):7.2f} {times:7.2f} {processor:7.2f} {of_processor:7.2f}"
        )


def timed(chosen: Sequence[Variant], inputs: Inputs, rounds: int) -> dict[tuple[str, str], Taken]:
    """Every variant and mode in turns, after one iteration of each that does not count."""
    found = {(variant.name, mode): Taken() for variant in chosen for mode in variant.modes}
    with ExitStack() as stack:
        processes = {one.name: stack.enter_context(Process(one, inputs)) for one in chosen}
        for round_ in range(rounds + 1):
            for (name, mode), taken in found.items():
                wall, processor = map(float, processes[name].asked(f"iterate {mode}").split())
                if round_:
                    taken.wall.append(wall)
                    taken.processor.append(processor)
    return found


def distance(found: Mapping[str, Tensor], ours: Mapping[str, Tensor], kind: str, rate: float) -> str:
    """How far what was learnt of one kind is from ours, over the learning rate: largest difference, and how many
    values differ by more than a hundredth of the rate."""
    pairs = [(value, ours[name]) for name, value in found.items() if name.startswith(f"{kind}/")]
    if not pairs:
        return ""
    apart = [(value - mine).abs() / rate for value, mine in pairs]
    off, total = sum(int((one > 0.01).sum()) for one in apart), sum(one.numel() for one in apart)
    return f"{kind} {max(float(one.max()) for one in apart):.0e} ({off} of {total:,})"


def adapting(inputs: Inputs, rounds: int, only: Sequence[str] | None) -> None:
    """The table of one method: of all variants, or of plain, ours and some."""
    chosen = [one for one in variants(inputs.method) if only is None or one.name in ("plain", "taskmerge", *only)]
    updating = [(one, mode) for one in chosen for mode in one.modes if mode in (JOINT, SEQUENTIAL)]
    tries = {(one.name, mode): tried(one, mode, inputs) for one, mode in updating}
    found = timed(chosen, inputs, rounds)
    print(f"{'variant':24} {COLUMNS.format('x plain')} {'peak MB':>8} {'x plain':>7}  from ours")
    for (name, mode), taken in found.items():
        label = name if name in ("plain", "fusion-bench") else f"{name}, {mode}"
        row = f"{label:24} {taken.row(found['plain', JOINT])}"
        if (own := tries.get((name, mode))) is not None:
            row += f" {own.peak / 1e6:8.0f} {own.peak / tries['plain', JOINT].peak:7.2f}  "
            if own.learned and name != "taskmerge":
                row += apart(own.learned, tries["taskmerge", mode].learned, inputs.method)
        print(row.rstrip(), flush=True)


def apart(found: Mapping[str, Tensor], ours: Mapping[str, Tensor], method: str) -> str:
    return ", ".join(filter(None, (distance(found, ours, kind, rate) for kind, rate in RATES[method].items())))


def decomposing(inputs: Inputs, rounds: int) -> None:
    """The table of factorisations."""
    found = timed(variants(inputs.method), inputs, rounds)
    print(f"{'factors':24} {COLUMNS.format('x svd')}")
    for (name, _), taken in found.items():
        print(f"{FACTORS[name]:24} {taken.row(found['svd', ''])}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="all", choices=(*ADAPTING, "decomposition", "all"))
    parser.add_argument("--tasks", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--amp", choices=("bf16",))
    parser.add_argument("--model", default="ViT-B-32", help="a name that open_clip knows, or a configuration file")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", type=lambda text: text.split(","), help="variants, besides plain and taskmerge")
    said = parser.parse_args()
    methods = (*ADAPTING, "decomposition") if said.method == "all" else (said.method,)
    with tempfile.TemporaryDirectory() as folder:
        asked = [folder, said.model, str(said.tasks), str(max(16, *BATCH.values()))]
        subprocess.run([sys.executable, str(HERE / "adapt_inputs.py"), *asked], check=True)
        for method in methods:
            batch = BATCH.get(method, 16)
            inputs = Inputs(folder, said.model, method, said.tasks, batch, said.amp == "bf16", said.threads)
            precision = "bfloat16 autocast" if inputs.amp and method in ADAPTING else "float32"
            about = f"{said.tasks} tasks, batches of {batch}, {precision}, {said.threads} threads"
            print(
                f"\n{method}, {Path(said.model).stem}: {about}; medians of {said.rounds} iterations in turns",
                flush=True,
            )
            if method == "decomposition":
                decomposing(inputs, said.rounds)
            else:
                adapting(inputs, said.rounds, said.only)


if __name__ == "__main__":
    main()
