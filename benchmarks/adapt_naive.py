"""Adaptation as public codes do it, in plain torch: all experts' tensors kept, the merged weights and every task's
forward pass in one graph, one backward pass through all of it.

For benchmarks/adapt.py.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from adapt_inputs import RATES, START, Inputs, entropy, factors, scores

TEMPERATURE = 10.0
OPEN = 0.1


class Naive:
    """θ = θ₀ + Σ_t λ_t τ_t, with U_t diag(b_t ∘ s_t) V_tᵀ in place of τ_t for the tensors named in `matrices`.

    `order` says in what order an iteration visits the tasks. SyMerge asks its experts at every update, heads learn.
    """

    def __init__(self, inputs: Inputs, matrices: Sequence[str], order: Callable[[int], Sequence[str]]) -> None:
        torch.set_num_threads(inputs.threads)
        self.inputs, self.order, self.iteration = inputs, order, 0
        self.module, self.base = inputs.module(), inputs.state("base")
        self.names = sorted(self.base)
        self.pixels = {name: inputs.pixels(name) for name in inputs.names}
        self.heads = {name: nn.Parameter(inputs.head(name)) for name in inputs.names}
        self.original = {name: inputs.head(name) for name in inputs.names}
        self.matrices = tuple(matrices)
        self.asks = inputs.method == "symerge"
        self.experts = {name: inputs.state(name) for name in inputs.names} if self.asks else {}
        self.vectors = [self._vector(name) for name in inputs.names]
        self.factors = {
            name: [factors(name, task, tuple(self.base[name].shape)) for task in range(inputs.tasks)]
            for name in self.matrices
        }
        self.coefficients = nn.Parameter(torch.full((len(self.names), inputs.tasks), START))
        self.masks = {name: nn.Parameter(self._open(name)) for name in self.matrices}
        self.adam = torch.optim.Adam(self._groups())

    def _vector(self, name: str) -> dict[str, Tensor]:
        """A task vector, of the tensors that are not factored."""
        expert = self.inputs.state(name)
        return {key: expert[key] - self.base[key] for key in self.names if key not in self.matrices}

    def _open(self, name: str) -> Tensor:
        return torch.full((self.inputs.tasks, min(self.base[name].shape)), OPEN)

    def _groups(self) -> list[dict[str, object]]:
        rates = RATES[self.inputs.method]
        values = {"coefficients": [self.coefficients], "masks": list(self.masks.values())}
        values["heads"] = list(self.heads.values())
        return [{"params": values[kind], "lr": rate} for kind, rate in rates.items()]

    def iterate(self, mode: str) -> None:
        order = self.order(self.iteration)
        for turn in [self.inputs.names] if mode == "joint" else [[name] for name in order]:
            self.adam.zero_grad()
            merged = {name: self._formed(place, name) for place, name in enumerate(self.names)}
            losses = [self._loss(name, merged) for name in turn]
            torch.stack(losses).sum().backward()
            self.adam.step()
        self.iteration += 1

    def _formed(self, place: int, name: str) -> Tensor:
        own = self.coefficients[place]
        if name not in self.masks:
            return self.base[name] + sum(own[task] * vector[name] for task, vector in enumerate(self.vectors))
        soft = (self.masks[name] / TEMPERATURE).sigmoid()
        gates = (self.masks[name] > 0).float() + soft - soft.detach()
        return self.base[name] + sum(
            own[task] * ((left.mT * (gates[task] * values)) @ right)
            for task, (left, values, right) in enumerate(self.factors[name])
        )

    def _loss(self, name: str, merged: dict[str, Tensor]) -> Tensor:
        with self.inputs.autocast():
            logits = scores(self.heads[name], functional_call(self.module, merged, (self.pixels[name],))).float()
        if not self.asks:
            return entropy(logits)
        with torch.no_grad(), self.inputs.autocast():
            features = functional_call(self.module, self.experts[name], (self.pixels[name],))
            expert = scores(self.original[name], features).float()
        labels = expert.argmax(1)
        ours, theirs = (one.detach().softmax(1).amax(1) for one in (logits, expert))
        kept = (logits.argmax(1) == labels) | (ours <= theirs)
        return functional.cross_entropy(logits[kept], labels[kept])

    def learned(self) -> dict[str, Tensor]:
        found = {f"coefficients/{name}": self.coefficients[place] for place, name in enumerate(self.names)}
        found |= {f"masks/{name}": value.flatten() for name, value in self.masks.items()}
        return found | ({f"heads/{name}": value for name, value in self.heads.items()} if self.asks else {})
