"""The merged encoder while it learns: weights formed in place once an update, and gradients pulled back from them."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from taskmerge.adaptation.components import Composed, Effective, Factored


@dataclass(frozen=True)
class Weights:
    """An encoder's module and the tensors in it that are merged.

    `composed` are these tensors, `slots` the module's live tensors by name; `pool` forms several at once, `workers` of
    them (None: one after the other). `amp` multiplies factors in bfloat16; products are added to origins in full
    precision. The module's parameters are the leaves of every graph: gradients end there.
    """

    module: nn.Module
    composed: Sequence[Composed]
    slots: Mapping[str, Tensor]
    pool: ThreadPoolExecutor | None = None
    workers: int = 1
    amp: bool = False

    def form(self, effective: Effective) -> None:
        """Puts θ = origin + Σ_t λ_t D_t into the module, in its own dtype."""

        def work(place: int) -> None:
            one = self.composed[place]
            gates = effective.gates.get(one.name)
            with self._products(one):
                formed = one.component.form(effective.coefficients[place], gates)
            formed = formed.to(one.origin.dtype).add_(one.origin)
            for name, own in one.spots:
                target = self.slots[name]
                target.copy_(formed[own].view(target.shape))

        self._each(work)

    def pull(self, grads: Mapping[str, Tensor], effective: Effective) -> Effective:
        """∂L/∂coefficients [L, T] and ∂L/∂gates, from the gradients of the module's tensors by name.

        A tensor without a gradient (buffers, what the features don't depend on) gives zeros.
        """
        of_tasks = torch.zeros_like(effective.coefficients)
        of_gates: dict[str, Tensor] = {}

        def work(place: int) -> None:
            one = self.composed[place]
            grad = self._gathered(one, grads)
            gates = effective.gates.get(one.name)
            if grad is None:
                return
            with self._products(one):
                of_tasks[place], own = one.component.pull(grad, effective.coefficients[place], gates)
            if own is not None and gates is not None:
                of_gates[one.name] = own

        self._each(work)
        for name, gates in effective.gates.items():
            of_gates.setdefault(name, torch.zeros_like(gates))
        return Effective(of_tasks, of_gates)

    def _products(self, one: Composed) -> torch.autocast:
        """Where the factors of a tensor are multiplied."""
        enabled = self.amp and isinstance(one.component, Factored)
        return torch.autocast(one.origin.device.type, torch.bfloat16, enabled=enabled)

    def _gathered(self, one: Composed, grads: Mapping[str, Tensor]) -> Tensor | None:
        """The gradient [n] of a merged tensor from those of its parts."""
        own = [(grads[name], place) for name, place in one.spots if name in grads]
        if not own:
            return None
        if len(own) == 1 and own[0][0].numel() == len(one.origin):
            return own[0][0].reshape(-1).to(one.origin.dtype)
        whole = torch.zeros_like(one.origin)
        for grad, place in own:
            whole[place] = grad.reshape(-1)
        return whole

    def _each(self, work: Callable[[int], None]) -> None:
        """The work over all merged tensors, dealt out by size; each writes into places of its own."""
        order = sorted(range(len(self.composed)), key=lambda place: -len(self.composed[place].origin))

        @torch.no_grad()
        def hand(first: int) -> None:
            for place in order[first :: self.workers]:
                work(place)

        if self.pool is None:
            hand(0)
        else:
            for _ in self.pool.map(hand, range(self.workers)):  # few jobs: small encoders have many small tensors
                pass


def live_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of a module by name, as they are in it."""
    return {name: tensor.detach() for name, tensor in module.state_dict(keep_vars=True).items()}


def with_own(module: nn.Module, own: Mapping[str, nn.Parameter]) -> nn.Module:
    """The same module with some parameters of its own: all others, and all buffers, are shared with it."""
    names = dict(module.named_parameters())
    shared: dict[int, object] = {id(parameter): own.get(name, parameter) for name, parameter in names.items()}
    shared |= {id(buffer): buffer for buffer in module.buffers()}
    return deepcopy(module, shared)
