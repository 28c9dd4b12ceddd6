"""Adaptation as its formulas say it, in float64: dense task vectors, one graph from what is learnt to the loss.

Nothing here calls the code under test: experts' files, `torch.linalg.svd`, `torch.func.functional_call`, plain losses.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from adaptation_cases import TASKS, State, doubles
from torch import Tensor, nn
from torch.func import functional_call

from taskmerge.specs.suite import Suite

Qkv = Literal["as-is", "split", "fused"]
BLOCKS = re.compile(r"\.\d+\.")
TRIO = re.compile(r"self\.(query|key|value)\.")
SIDE_BY_SIDE = re.compile(r"in_proj_weight$|c_attn\.weight$")


@dataclass(frozen=True, kw_only=True)
class Form:
    """A method's formula: θ = origin + Σ_t λ_t D_t. `rank`: D_t = U_t diag(b_t s_t) V_tᵀ on matrices, as many stored
    components as it says of the full rank; `density`: D_t trimmed as TIES does; else D_t is the task vector.

    `temperature` where masks are learnt, `relaxed` that of one mask over entries for all tasks; `clamped` coefficients
    are put into [0, 1] in the forward pass.
    """

    origin: Literal["base", "mean"] = "base"
    rank: float | None = None
    density: float | None = None
    clamped: bool = False
    temperature: float | None = None
    relaxed: float | None = None
    qkv: Qkv = "as-is"


@dataclass(frozen=True)
class Merged:
    """The experts of a suite under a formula. `wrapper` stands before the encoder's names in the files."""

    suite: Suite
    form: Form
    wrapper: str = ""
    states: Mapping[str, State] = field(default_factory=dict)

    @classmethod
    def of(cls, suite: Suite, form: Form, wrapper: str = "") -> "Merged":
        """Reads the experts' files."""
        return cls(
            suite, form, wrapper, {name: doubles(suite.folder / f"{name}.safetensors") for name in ("base", *TASKS)}
        )

    @cached_property
    def units(self) -> dict[str, tuple[str, ...]]:
        """The tensors that have coefficients of their own, sorted by name; q, k and v are one where they are fused."""
        names = [name for name in self.states["base"] if name.startswith(self.wrapper)]
        if self.form.qkv != "fused":
            return {name: (name,) for name in sorted(names)}
        found: dict[str, tuple[str, ...]] = {}
        for name in sorted(names):
            trio = tuple(TRIO.sub(f"self.{part}.", name) for part in ("query", "key", "value"))
            if not TRIO.search(name):
                found[name] = (name,)
            elif "self.query." in name:
                found[name] = trio
        return found

    def origin(self, name: str) -> Tensor:
        """The base's tensor, or the experts' mean."""
        if self.form.origin == "base":
            return self.states["base"][name]
        return torch.stack([self.states[task][name] for task in TASKS]).mean(0)

    def differences(self, unit: str) -> Tensor:
        """[T, *shape]: θ_t - origin of a unit, its parts below each other."""
        parts = [
            torch.stack([self.states[task][name] for task in TASKS]) - self.origin(name) for name in self.units[unit]
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    @cached_property
    def factors(self) -> dict[str, list[list[tuple[Tensor, Tensor, Tensor]]]]:
        """Of every factored unit, of its matrices, of every task: u [m, k], s [k], vᵀ [k, n]."""
        if self.form.rank is None:
            return {}
        found = {}
        for unit in self.units:
            stack = self.differences(unit)
            if stack.dim() != 3 or min(stack.shape[1:]) < 2 or not BLOCKS.search(unit):
                continue
            found[unit] = [
                [self._svd(matrix, self.form.rank) for matrix in piece] for piece in self._pieces(unit, stack)
            ]
        return found

    @cached_property
    def trimmed(self) -> State:
        """[T, *shape] of every unit: entries from the model's (k + 1)-th largest on that are of the elected sign."""
        stacks = {unit: self.differences(unit) for unit in self.units}
        flat = torch.cat([stack.reshape(len(TASKS), -1) for stack in stacks.values()], dim=1)
        density = self.form.density or 1.0
        kept = torch.zeros_like(flat)
        for row, whole in zip(kept, flat, strict=True):
            order = whole.abs().argsort(descending=True)[: int(density * flat.shape[1]) + 1]
            row[order] = whole[order]
        up = kept.sum(0) > 0
        kept = torch.where(torch.where(up, kept > 0, kept < 0), kept, 0)
        pieces = kept.split([stack[0].numel() for stack in stacks.values()], dim=1)
        return {unit: piece.reshape(stack.shape) for (unit, stack), piece in zip(stacks.items(), pieces, strict=True)}

    def logits(self, unit: str) -> int:
        """How many components of a unit have a mask bit."""
        return sum(len(s) for tasks in self.factors[unit] for _, s, _ in tasks)

    def weights(self, coefficients: Tensor, logits: Mapping[str, Tensor], uniform: Mapping[str, Tensor]) -> State:
        """The encoder's tensors under its own names, as a graph of coefficients [L, T] (or [T]) and mask logits; those
        of a mask over entries come with `uniform` numbers."""
        scales = coefficients.clamp(0, 1) if self.form.clamped else coefficients
        found: State = {}
        for row, (unit, parts) in enumerate(self.units.items()):
            own = scales if scales.dim() == 1 else scales[row]
            if self.form.relaxed is None:
                step = self._step(unit, own, logits.get(unit))
            else:
                step = self._step(unit, own, None)
                if unit in logits:
                    step = step * self._mask(logits[unit], uniform[unit]).view(step.shape)
            sizes = [self.states["base"][part].shape[0] for part in parts] if len(parts) > 1 else None
            pieces = [step] if sizes is None else list(step.split(sizes))
            for part, piece in zip(parts, pieces, strict=True):
                found[part.removeprefix(self.wrapper)] = self.origin(part) + piece
        return found

    def expert(self, task: str) -> State:
        """An expert's encoder under its own names."""
        return {
            name.removeprefix(self.wrapper): self.states[task][name] for parts in self.units.values() for name in parts
        }

    def _step(self, unit: str, scales: Tensor, logits: Tensor | None) -> Tensor:
        """Σ_t λ_t D_t of one unit."""
        if unit not in self.factors:
            stack = self.trimmed[unit] if self.form.density is not None else self.differences(unit)
            return torch.einsum("t,t...->...", scales, stack)
        bits = None if logits is None else self._bits(logits)
        done, matrices = 0, []
        for tasks in self.factors[unit]:
            total = torch.zeros(())
            for scale, (u, s, vt) in zip(scales, tasks, strict=True):
                own = s if bits is None else s * bits[done : done + len(s)]
                total = total + scale * (u @ torch.diag(own) @ vt)
                done += len(s)
            matrices.append(total)
        return torch.cat(matrices, dim=self._axis(unit))

    def _bits(self, logits: Tensor) -> Tensor:
        """1[β > 0] forward, σ(β / temperature) backward."""
        soft = torch.sigmoid(logits / (self.form.temperature or 1.0))
        return (logits > 0).double() + soft - soft.detach()

    def _mask(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """A draw from the concrete distribution, over its mean; uniform numbers are multiples of 2^-24."""
        tiny = torch.full_like(uniform, 2.0**-24)
        uniform = torch.where(uniform == 0, tiny, uniform)
        noise = torch.log(uniform) - torch.log1p(-uniform)
        mask = torch.sigmoid((logits + noise) / (self.form.relaxed or 1.0))
        return mask / mask.mean()

    def _pieces(self, unit: str, stack: Tensor) -> Sequence[Tensor]:
        """The matrices [T, m, n] of a unit: three where q, k and v of one tensor are taken apart."""
        if self.form.qkv == "split" and SIDE_BY_SIDE.search(unit):
            return stack.chunk(3, dim=self._axis(unit) + 1)
        return [stack]

    @staticmethod
    def _axis(unit: str) -> int:
        """Along which q, k and v lie: GPT-2's weights are transposed."""
        return 1 if unit.endswith("c_attn.weight") else 0

    @staticmethod
    def _svd(matrix: Tensor, rank: float) -> tuple[Tensor, Tensor, Tensor]:
        u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
        k = max(1, int(rank * len(s) + 1e-9))
        return u[:, :k], s[:k], vt[:k]


# --- a task's model and its loss -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """Features [B, D] and outputs [B, C] of a batch."""

    features: Tensor
    outputs: Tensor


def answer(
    module: nn.Module, weights: State, inputs: State, head: State, *, normalise: bool, adapter: State | None = None
) -> Answer:
    """What an encoder with these weights, an adapter and a head make of a batch."""
    features = functional_call(module, weights, (inputs,))
    if adapter is not None:
        features = features - torch.relu(features @ adapter["down"].T) @ adapter["up"].T
    seen = features / features.norm(dim=1, keepdim=True) if normalise else features
    if "hidden.weight" in head:
        seen = torch.tanh(seen @ head["hidden.weight"].T + head["hidden.bias"])
        head = {name.removeprefix("output."): tensor for name, tensor in head.items()}
    outputs = seen @ head["weight"].T + head.get("bias", torch.zeros(()))
    return Answer(features, outputs)


def item_loss(objective: str, ours: Tensor, theirs: Tensor) -> Tensor:
    """The loss of one item from two vectors."""
    p, q = ours.softmax(0), theirs.softmax(0)
    apart = ours - theirs
    if objective == "entropy":
        return -(p * p.log()).sum()
    if objective == "self":
        return -p[int(theirs.argmax())].log()
    if objective == "soft":
        return -(q * p.log()).sum()
    if objective == "l1":
        return apart.abs().mean()
    if objective == "smooth_l1":
        return torch.where(apart.abs() < 1, apart.square() / 2, apart.abs() - 0.5).mean()
    if objective == "l2":
        return apart.square().mean()
    if objective == "cosine":
        return 1 - (ours @ theirs) / (ours.norm() * theirs.norm())
    if objective == "kl":
        return (q * (q.log() - p.log())).sum()
    middle = (p + q) / 2
    return ((p * (p.log() - middle.log())).sum() + (q * (q.log() - middle.log())).sum()) / 2


def is_kept(filter_: str, ours: Tensor, theirs: Tensor) -> bool:
    """Whether an item counts. `paper`: not where the model is surer than the expert; `code`: only there, and only where
    the two name different classes, it doesn't."""
    surer = float(ours.softmax(0).max()) > float(theirs.softmax(0).max())
    if filter_ == "none":
        return True
    return not surer if filter_ == "paper" else not (surer and int(ours.argmax()) != int(theirs.argmax()))


def task_loss(objective: str, on: str, filter_: str, merged: Answer, expert: Answer) -> Tensor | None:
    """The mean over the items that count; None where none does."""
    losses = []
    for item in range(len(merged.outputs)):
        if is_kept(filter_, merged.outputs[item].detach(), expert.outputs[item]):
            pair = (merged.features, expert.features) if on == "features" else (merged.outputs, expert.outputs)
            losses.append(item_loss(objective, pair[0][item], pair[1][item]))
    return torch.stack(losses).mean() if losses else None
