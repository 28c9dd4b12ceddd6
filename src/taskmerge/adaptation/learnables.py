"""What shapes merged weights, as values that an optimiser moves: coefficients, masks on components, one relaxed mask.

Each turns its raw values into effective ones, differentiably and without a step through the weights themselves.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from taskmerge.adaptation.components import Composed, Effective, Factored, Masked
from taskmerge.methods.adaptive import Coefficients, Masks, Parts, Relaxed, usual_start
from taskmerge.methods.composed import Learned, entry_gates
from taskmerge.numerics.rank import Rank
from taskmerge.numerics.spectral import energy_rank
from taskmerge.seeds import RESOLUTION, uniform_at

COEFFICIENTS, MASKS, RELAXED = "coefficients", "masks/", "relaxed/"
OPEN = 0.1
"""Where the logit of a component that is on starts (AdaRank); -0.1 where it is off."""


@dataclass(frozen=True)
class OnWeights:
    """The learnables that shape merged weights: raw values by name, and how they become effective ones.

    Updates see `effective` values; the model that is looked at, and written, has `settled` ones. They differ in relaxed
    masks alone. `values` holds `coefficients` [L, T] (or [T], one a task), `masks/NAME` [K] and `relaxed/NAME` [n];
    those that are not learnt have no gradient.
    """

    parts: Parts
    composed: Sequence[Composed]
    values: Mapping[str, nn.Parameter]
    seed: int = 0

    def effective(self, update: int) -> Effective:
        """Coefficients and gates of one update, as functions of the raw values."""
        return Effective(self._coefficients(), {**self._masks(), **self._drawn(update)})

    def settled(self) -> Effective:
        """Coefficients and gates of what is written: of a relaxed mask the bits, over their mean."""
        with torch.no_grad():
            return Effective(self._coefficients(), {**self._masks(), **self._settled()})

    def kept(self) -> float | None:
        """The share of components that masks keep, or of entries that draws keep on average; None without masks."""
        masks = [(value.detach() > 0).double() for name, value in self.values.items() if name.startswith(MASKS)]
        masks += [value.detach().sigmoid() for name, value in self.values.items() if name.startswith(RELAXED)]
        stored = sum(mask.numel() for mask in masks)
        return sum(float(mask.sum(dtype=torch.float64)) for mask in masks) / stored if stored else None

    def push(self, effective: Effective, grads: Effective) -> None:
        """Adds the gradients of effective values to those of the raw ones."""
        pairs = [(effective.coefficients, grads.coefficients)]
        pairs += [(gates, grads.gates[name]) for name, gates in effective.gates.items()]
        alive = [(value, grad.to(value)) for value, grad in pairs if value.requires_grad]
        torch.autograd.backward([value for value, _ in alive], [grad for _, grad in alive])

    def learned(self, tasks: tuple[str, ...]) -> Learned:
        """What the merge engine needs to form the same weights: coefficients, and bits where there are any."""
        settled = self.settled()
        coefficients = {
            one.name: settled.coefficients[place].detach().float().cpu().clone()
            for place, one in enumerate(self.composed)
        }
        masks = {
            one.name: one.component.bits(settled.gates[one.name], len(tasks))
            for one in self.composed
            if isinstance(one.component, Factored | Masked) and one.name in settled.gates
        }
        return Learned(tasks, coefficients, masks)

    def _coefficients(self) -> Tensor:
        """λ [L, T]."""
        raw = self.values[COEFFICIENTS]
        shape = self.parts.shaped_by(Coefficients)
        clamped = raw.clamp(0, 1) if isinstance(shape, Coefficients) and shape.clamped else raw
        return clamped if clamped.dim() > 1 else clamped.expand(len(self.composed), -1)

    def _masks(self) -> dict[str, Tensor]:
        """b = 1[β > 0] forward, σ(β / temperature) backward."""
        shape = self.parts.shaped_by(Masks)
        temperature = shape.temperature if isinstance(shape, Masks) else 1.0
        gates = {}
        for name, raw in self.values.items():
            if name.startswith(MASKS):
                hard = (raw > 0).to(raw.dtype)
                soft = (raw / temperature).sigmoid()
                gates[name.removeprefix(MASKS)] = hard + (soft - soft.detach()) if raw.requires_grad else hard
        return gates

    def _drawn(self, update: int) -> dict[str, Tensor]:
        """m / mean(m) with m = σ((logit + noise) / τ), drawn anew for every update."""
        learnt = self.parts.of(Relaxed)
        if not isinstance(learnt, Relaxed):
            return {}
        gates = {}
        for name, raw in self.values.items():
            if name.startswith(RELAXED):
                logs = functional.logsigmoid((raw + self._noise(name, f"update {update}")) / learnt.temperature)
                mask = (logs - logs.detach().max()).exp()  # m up to a factor: it never vanishes everywhere
                gates[name.removeprefix(RELAXED)] = mask / mask.mean()
        return gates

    def _settled(self) -> dict[str, Tensor]:
        """m / mean(m) with m = 1[logit + noise > 0], the limit of draws at temperature 0.

        The sign of logits alone would not do: most stay near 0, where it makes certain what every update drew at even
        odds. A tensor whose logits are all equal, or of which nothing is drawn, has all of its entries.
        """
        gates = {}
        for name, raw in self.values.items():
            if name.startswith(RELAXED):
                bits = raw + self._noise(name, "final") > 0
                if bool(raw.min() == raw.max()) or not bool(bits.any()):
                    bits = torch.ones_like(bits)
                share = int(bits.count_nonzero()) / bits.numel()
                gates[name.removeprefix(RELAXED)] = entry_gates(bits, share, raw.dtype)
        return gates

    def _noise(self, name: str, when: str) -> Tensor:
        """Logistic noise [n]: a function of seed, tensor, moment and entry."""
        raw = self.values[name]
        uniform = uniform_at(self.seed, name, when, 0, raw.numel()).to(raw)
        return uniform.clamp_(min=RESOLUTION).logit()


def fresh(parts: Parts, composed: Sequence[Composed], tasks: int, seed: int, start: Learned | None = None) -> OnWeights:
    """The raw values at the start: usual coefficients, masks on their first components; or those that were learnt."""
    dtype = composed[0].origin.dtype if composed else torch.float32
    device = composed[0].origin.device if composed else torch.device("cpu")
    learnt = parts.of(Coefficients)
    per_task = isinstance(learnt, Coefficients) and learnt.layout == "task"
    coefficients = torch.full((len(composed), tasks), usual_start(parts, tasks))
    if start is not None and composed:
        coefficients = torch.stack([start.of(one.name).coefficients for one in composed])
    coefficients = coefficients[0] if per_task and composed else coefficients
    values = {COEFFICIENTS: _parameter(coefficients.to(device, dtype), learnt is not None)}
    values |= _fresh_masks(parts, composed, tasks, start)
    relaxed = parts.of(Relaxed)
    if isinstance(relaxed, Relaxed):
        values |= {
            RELAXED + one.name: _parameter(torch.full_like(one.origin, relaxed.start), learnt=True)
            for one in composed if isinstance(one.component, Masked) and one.component.stored
        }  # fmt: skip
    return OnWeights(parts, composed, values, seed)


def _fresh_masks(
    parts: Parts, composed: Sequence[Composed], tasks: int, start: Learned | None
) -> dict[str, nn.Parameter]:
    """Logits at +0.1 of the components that are on, at -0.1 of the others."""
    masks = parts.shaped_by(Masks)
    if not isinstance(masks, Masks):
        return {}
    learnt = parts.of(Masks) is not None
    found = {}
    for one in composed:
        if isinstance(one.component, Factored):
            bits = None if start is None else start.of(one.name).masks
            on = _kept(one.component, masks.kept, tasks) if bits is None else one.component.gates(bits)
            found[MASKS + one.name] = _parameter(torch.where(on, OPEN, -OPEN).to(one.origin), learnt)
    return found


def _kept(component: Factored, rank: Rank, tasks: int) -> Tensor:
    """bool [K]: the components that are on at the start; a matrix that a task did not move has none of it."""
    counts = []
    for triplets in component.matrices:
        full = min(component.unit.matrix)
        if rank.kind == "energy":
            counts.append([energy_rank(triplets.values[triplets.tasks == task], rank.value) for task in range(tasks)])
        else:
            counts.append([rank.resolve(full)] * tasks)
    return component.starts(counts)


def _parameter(value: Tensor, learnt: bool) -> nn.Parameter:
    return nn.Parameter(value.clone(), requires_grad=learnt)
