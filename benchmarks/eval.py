"""`eval` against bare forward loops, interleaved; prints medians and their ratios.

    python benchmarks/eval.py --suite SUITE [--runs 5] [--batch-size 128] [--device cpu] [--skip-whole]

First in one process: all of evaluate's work on loaded data (filling, encoding, heads, metrics with intervals) and its
encoding alone, against forward passes of the same module over the same tensors; every expert and the base on every
task. Then whole processes: `taskmerge eval experts base --cross` against benchmarks/bare_eval.py. Times vary with the
machine; quote ratios.
"""

import argparse
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import torch

import taskmerge
from taskmerge.checkpoint.checkpoint import open_checkpoint
from taskmerge.checkpoint.hub import resolve
from taskmerge.data.loading import LoadOptions
from taskmerge.evaluation.run import device_for
from taskmerge.evaluation.workload import Choice, portions
from taskmerge.models.backbones import build
from taskmerge.models.fill import fill
from taskmerge.specs.suite_file import load_suite
from taskmerge.types import Inputs

HERE = Path(__file__).resolve().parent


class Bare:
    """One backbone, filled with the base, and the suite's inputs as `evaluate` sees them."""

    def __init__(self, path: Path, batch_size: int, device: torch.device) -> None:
        suite = load_suite(path)
        self.batch_size, self.device = batch_size, device
        self.encoders = len(suite.tasks) + 1
        backbone = build(suite.backbone, resolve=resolve)
        with ExitStack() as stack:
            base = stack.enter_context(open_checkpoint(resolve(suite.base)))
            fill(backbone, base, base)
        self.module = backbone.module.to(device).eval()
        loaded = portions(
            suite.tasks, Choice("test", LoadOptions(resolve=resolve)), backbone.prepare, reading=lambda _: None
        )
        self.inputs = [group[0].items.inputs for portion in loaded for group in portion]
        self.samples = self.encoders * sum(len(next(iter(one.values()))) for one in self.inputs)

    def seconds(self) -> float:
        """Every encoder's forward passes; the weights are always the base's, which costs the same."""
        started = time.perf_counter()
        for _ in range(self.encoders):
            for inputs in self.inputs:
                self._forward(inputs)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    def _forward(self, inputs: Inputs) -> None:
        count = len(next(iter(inputs.values())))
        with torch.inference_mode():
            for start in range(0, count, self.batch_size):
                batch = {name: one[start : start + self.batch_size].to(self.device) for name, one in inputs.items()}
                self.module(batch)


def in_process(said: argparse.Namespace) -> None:
    device = device_for(said.device)
    bare = Bare(said.suite, said.batch_size, device)
    loop, work, encoding = [], [], []
    for _ in range(said.runs):
        loop.append(bare.seconds())
        report = taskmerge.evaluate(
            ["experts", "base"], suite=said.suite, cross=True, batch_size=said.batch_size, device=str(device)
        )
        timing = report.timing
        work.append(timing["filling"] + timing["encoding"] + timing["scoring"])
        encoding.append(timing["encoding"])
    middle = statistics.median(loop)
    print(f"{bare.encoders} encoders, {bare.samples:,} samples, batches of {said.batch_size}, {device}")
    print(f"{'bare forward loop':28} {middle:7.2f} s  {bare.samples / middle:9,.0f} samples/s")
    for name, seconds in (("evaluate, encoding", encoding), ("evaluate, all on loaded data", work)):
        own = statistics.median(seconds)
        print(
            f"{name:28} {own:7.2f} s  {bare.samples / own:9,.0f} samples/s  {middle / own:.1%} of the bare throughput"
        )


def whole(said: argparse.Namespace) -> None:
    suite, size = str(said.suite), str(said.batch_size)
    ours = [sys.executable, "-m", "taskmerge", "eval", "experts", "base", "--cross", "--suite", suite]
    ours += ["--batch-size", size, "--device", said.device, "--json", "--quiet"]
    commands = {"bare script": [sys.executable, str(HERE / "bare_eval.py"), suite, size], "taskmerge eval": ours}
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(said.runs):
        for name, command in commands.items():
            started = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            seconds[name].append(time.perf_counter() - started)
    bare, own = (statistics.median(one) for one in seconds.values())
    print(f"{'bare script, whole process':28} {bare:7.2f} s")
    print(f"{'taskmerge eval, whole process':28} {own:6.2f} s  {own / bare:.2f}x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--skip-whole", action="store_true", help="not the whole processes (bare_eval.py: CPU, .npz)")
    said = parser.parse_args()
    in_process(said)
    if not said.skip_whole:
        whole(said)


if __name__ == "__main__":
    main()
