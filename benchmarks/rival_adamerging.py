"""fusion-bench's layer-wise AdaMerging as one process of benchmarks/adapt.py; runs under the rivals' Python.

RIVALS_PYTHON benchmarks/rival_adamerging.py INPUTS
"""

import sys

import torch
from fusion_bench.models.wrappers.layer_wise_fusion import LayerWiseMergedModel, get_layer_wise_weights
from torch import Tensor, nn

from adapt_inputs import RATES, START, Inputs, answer, entropy, scores


class FusionBench:
    """Its wrapper in the order of its own loop: a backward pass a task through the graph that merges, which is kept."""

    def __init__(self, inputs: Inputs) -> None:
        torch.set_num_threads(inputs.threads)
        self.inputs = inputs
        base = inputs.module().requires_grad_(True)
        self.names = [name for name, _ in base.named_parameters()]
        weights = get_layer_wise_weights(inputs.tasks, len(self.names), START)
        experts = [self._expert(name) for name in inputs.names]
        self.model = LayerWiseMergedModel(weights, base, experts, clamp_weights=False).train()
        self.tasks = [(inputs.pixels(name), inputs.head(name)) for name in inputs.names]
        self.adam = torch.optim.Adam([self.model.merge_weight], lr=RATES[inputs.method]["coefficients"])
        self.model.merge_weights()

    def _expert(self, name: str) -> nn.Module:
        expert = self.inputs.module()
        expert.load_state_dict(self.inputs.state(name))
        return expert

    def iterate(self, mode: str) -> None:
        for pixels, head in self.tasks:
            with self.inputs.autocast():
                logits = scores(head, self.model(pixels)).float()
            entropy(logits).backward(retain_graph=True)
        self.adam.step()
        self.adam.zero_grad()
        self.model.merge_weights()

    def learned(self) -> dict[str, Tensor]:
        return {f"coefficients/{name}": self.model.merge_weight[:, place] for place, name in enumerate(self.names)}


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    given = Inputs.parse(sys.argv[1])
    answer(lambda: FusionBench(given))
