"""One process of benchmarks/adapt.py: VARIANT INPUTS, then lines as adapt_inputs.py says.

Variants are `plain`, `floor`, `taskmerge`, `naive`, and for decompositions `svd`, `all`, `leading`.
"""

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from adapt_inputs import RATES, Inputs, Worker, answer, entropy, factors, scores
from adapt_naive import Naive
from taskmerge.adaptation.build import Workers, workers
from taskmerge.adaptation.components import Composed, Dense, Factored
from taskmerge.adaptation.learnables import fresh
from taskmerge.adaptation.loop import Adaptation, Horizon
from taskmerge.adaptation.objectives import objective_of
from taskmerge.adaptation.passes import Setting, passes
from taskmerge.adaptation.state import Optimised
from taskmerge.adaptation.tasks import TaskSide
from taskmerge.adaptation.teachers import Teacher
from taskmerge.adaptation.weights import Weights, live_tensors
from taskmerge.checkpoint.header import TensorSpec
from taskmerge.data.batches import task_order
from taskmerge.data.items import Items
from taskmerge.experts.tensors import Unit, units
from taskmerge.methods.adaptive_registry import find_adaptive
from taskmerge.methods.composed import Triplets
from taskmerge.models.heads import LinearHead
from taskmerge.numerics.lapack import settle_thread, single_threaded
from taskmerge.numerics.memory import settled_memory
from taskmerge.numerics.rank import Rank
from taskmerge.numerics.spectral import Factors, TaskMatrices
from taskmerge.specs.suite import Task

SEED = 0
LEADING = Rank("ratio", 0.16)
CPU = torch.device("cpu")


def units_of(state: dict[str, Tensor]) -> list[Unit]:
    return units({name: TensorSpec(name, "F32", tuple(one.shape), Path(), 0, 0) for name, one in state.items()})


def order_of(inputs: Inputs, iteration: int) -> tuple[str, ...]:
    return task_order(SEED, iteration, inputs.names)


class Plain:
    """Forward and backward of the model on every task's batch: the unit of all ratios. Nothing else."""

    def __init__(self, inputs: Inputs) -> None:
        torch.set_num_threads(inputs.threads)
        self.inputs, self.module = inputs, inputs.module().requires_grad_(True)
        self.tasks = [(inputs.pixels(name), inputs.head(name)) for name in inputs.names]

    def iterate(self, mode: str) -> None:
        self.module.zero_grad()
        for pixels, head in self.tasks:
            with self.inputs.autocast():
                logits = scores(head, self.module(pixels)).float()
            entropy(logits).backward()

    def learned(self) -> dict[str, Tensor]:
        return {}


class Floor(Plain):
    """Plain, and the products alone by which AdaRank's weights are formed and the gradients of its masks are found:
    of the same shapes, one of each for a matrix and update."""

    def __init__(self, inputs: Inputs) -> None:
        super().__init__(inputs)
        state = self.module.state_dict()
        shapes = {unit.name: unit.matrix for unit in units_of(state) if unit.truncated()}
        self.parameters = dict(self.module.named_parameters())
        self.sides = {name: self._sides(name, shape) for name, shape in shapes.items()}
        ranks = inputs.tasks * max(min(shape) for shape in shapes.values())
        self.formed = torch.empty(max(m * n for m, n in shapes.values()))
        self.pulled = torch.empty(ranks * max(n for _, n in shapes.values()))

    def _sides(self, name: str, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
        of_tasks = [factors(name, task, shape) for task in range(self.inputs.tasks)]
        return torch.cat([left for left, _, _ in of_tasks]), torch.cat([right for _, _, right in of_tasks])

    def iterate(self, mode: str) -> None:
        super().iterate(mode)
        for _ in range(1 if mode == "joint" else self.inputs.tasks):
            for name, (left, right) in self.sides.items():
                (total, m), n = left.shape, right.shape[1]
                torch.mm(left.mT, right, out=self.formed[: m * n].view(m, n))
                torch.mm(left, self.parameters[name].grad, out=self.pulled[: total * n].view(total, n))


class Encoder(nn.Module):
    """The visual encoder, called with inputs by name."""

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        return self.visual(inputs["pixels"])


class Taskmerge:
    """The loop as `taskmerge adapt` runs it; `passes` is its forward and backward passes alone."""

    def __init__(self, inputs: Inputs, crew: Workers) -> None:
        settled_memory()  # as every run does before it reads experts
        self.inputs, self.crew = inputs, crew
        self.module = Encoder(inputs.module())
        self.parts = find_adaptive(inputs.method).parts()
        self.sides = [self._side(name) for name in inputs.names]
        self.composed = self._composed()
        self.shared = dict(self.module.requires_grad_(True).named_parameters())
        self.runs = {mode: self._run(mode) for mode in ("joint", "sequential")}
        self.updates = {mode: run.updates() for mode, run in self.runs.items()}
        self.last = "joint"

    def _side(self, name: str) -> TaskSide:
        inputs, parts = self.inputs, self.parts
        items = Items({"pixels": inputs.pixels(name)}, "", torch.arange(inputs.batch_size))
        head = LinearHead(inputs.head(name), None, normalise=True, regression=False)
        self.module.visual.load_state_dict(inputs.state(name))
        with torch.no_grad():
            teacher = Teacher(head(self.module(items.inputs)), torch.empty(0))
        objective = objective_of("classification", parts.objective, parts.on, parts.filter)
        own = {}
        if "heads" in parts.learns:
            own = {f"head/{key}": value for key, value in head.requires_grad_(True).named_parameters()}
        task = Task(name, None, "zero_shot", "classification", "accuracy")
        return TaskSide(task, items, items.indices, teacher, objective, self.module, head, own=own)

    def _composed(self) -> list[Composed]:
        base = self.inputs.state("base")
        factored = {unit.name for unit in units_of(base) if self.inputs.method == "adarank" and unit.truncated()}
        rows = {name: torch.empty(self.inputs.tasks, base[name].numel()) for name in base if name not in factored}
        for task, name in enumerate(self.inputs.names):
            expert = self.inputs.state(name)
            for key, own in rows.items():
                torch.sub(expert[key].flatten(), base[key].flatten(), out=own[task])
        return [self._composed_of(unit, base[unit.name].flatten(), rows.get(unit.name)) for unit in units_of(base)]

    def _composed_of(self, unit: Unit, origin: Tensor, rows: Tensor | None) -> Composed:
        if rows is None:
            found = [factors(unit.name, task, unit.matrix) for task in range(self.inputs.tasks)]
            triplets = Triplets.of([Factors(left.mT, values, right) for left, values, right in found])
            component = Factored(unit, (triplets,))
        else:
            component = Dense(rows)
        return Composed(unit, origin.clone(), component, ((f"visual.{unit.name}", slice(0, unit.numel)),))

    def _run(self, mode: str) -> Adaptation:
        on_weights = fresh(self.parts, self.composed, self.inputs.tasks, SEED)
        groups = {kind: {} for kind in RATES[self.inputs.method]}
        for name, value in on_weights.values.items():
            groups[name.partition("/")[0]][name] = value
        for side in self.sides:
            for name, value in side.own.items():
                groups["heads"][f"{side.name}/{name}"] = value
        setting = Setting(CPU, self.inputs.amp, self.crew.pool, self.crew.count, self.shared, SEED)
        weights = Weights(self.module, self.composed, live_tensors(self.module), self.crew.pool, self.crew.count)
        horizon = Horizon(iterations=1 << 20, batch_size=self.inputs.batch_size, updates=mode, seed=SEED)
        optimised = Optimised(groups, RATES[self.inputs.method])
        return Adaptation(self.sides, weights, on_weights, optimised, horizon, setting)

    def iterate(self, mode: str) -> None:
        if mode == "passes":
            passes(self.runs["joint"].setting, [(side, side.places) for side in self.sides], 0)
            return
        self.last = mode
        for _ in range(1 if mode == "joint" else self.inputs.tasks):
            next(self.updates[mode])

    def learned(self) -> dict[str, Tensor]:
        values = self.runs[self.last].on_weights.values
        rows = zip(self.composed, values["coefficients"], strict=True)
        found = {f"coefficients/{one.name}": row for one, row in rows}
        found |= {name: value for name, value in values.items() if name != "coefficients"}
        return found | {f"heads/{side.name}": value for side in self.sides for value in side.own.values()}


class Decomposed:
    """The matrices of one of the model's blocks factored, of all tasks: by one torch.linalg.svd each, or as ours."""

    def __init__(self, inputs: Inputs, rank: Rank | None) -> None:
        self.inputs, self.rank = inputs, rank
        base = inputs.state("base")
        found = [unit for unit in units_of(base) if unit.truncated() and unit.position and unit.position[0] == 0]
        chosen = sorted(found, key=lambda unit: -unit.numel)
        experts = [inputs.state(name) for name in inputs.names]
        self.stacks = [torch.stack([expert[unit.name] - base[unit.name] for expert in experts]) for unit in chosen]

    def iterate(self, mode: str) -> None:
        if self.rank is None:
            torch.set_num_threads(self.inputs.threads)
            for stack in self.stacks:
                for matrix in stack:
                    torch.linalg.svd(matrix, full_matrices=False)
            return
        work = [TaskMatrices(stack[None, task]) for stack in self.stacks for task in range(len(stack))]
        with single_threaded(), ThreadPoolExecutor(self.inputs.threads, initializer=settle_thread) as pool:
            list(pool.map(lambda matrices: matrices.top(self.rank), work))

    def learned(self) -> dict[str, Tensor]:
        return {}


def naive(inputs: Inputs) -> Naive:
    found = units_of(inputs.state("base"))
    matrices = [unit.name for unit in found if inputs.method == "adarank" and unit.truncated()]
    return Naive(inputs, matrices, partial(order_of, inputs))


MADE: dict[str, Callable[[Inputs], Worker]] = {
    "plain": Plain,
    "floor": Floor,
    "naive": naive,
    "svd": lambda inputs: Decomposed(inputs, None),
    "all": lambda inputs: Decomposed(inputs, Rank("ratio", 1.0)),
    "leading": lambda inputs: Decomposed(inputs, LEADING),
}


def main(variant: str, inputs: Inputs) -> None:
    if variant != "taskmerge":
        answer(lambda: MADE[variant](inputs))
        return
    with workers(CPU, inputs.threads) as crew:
        answer(lambda: Taskmerge(inputs, crew))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(sys.argv[1], Inputs.parse(sys.argv[2]))
