"""CART the obvious way: load everything, one `torch.linalg.svd` per matrix and task, all of torch's threads.

python benchmarks/svd_loop.py OUTPUT INPUT...
"""

import sys

import torch
from safetensors.torch import load_file, save_file

RATIO = 0.08


def main() -> None:
    output, *inputs = sys.argv[1:]
    experts = [load_file(path) for path in inputs if not path.endswith("base.safetensors")]
    merged = {}
    for name in experts[0]:
        stack = torch.stack([expert[name] for expert in experts])
        mean = stack.mean(0)
        merged[name] = mean
        if mean.ndim == 2 and ".resblocks." in name:
            for one in stack:
                u, s, vt = torch.linalg.svd(one - mean, full_matrices=False)
                k = max(1, int(RATIO * len(s)))
                merged[name] = merged[name] + (u[:, :k] * s[:k]) @ vt[:k]
    save_file(merged, output)


if __name__ == "__main__":
    main()
