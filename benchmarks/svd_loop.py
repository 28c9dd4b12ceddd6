"""CART the obvious way: load everything, one `torch.linalg.svd` per matrix and task, all of torch's threads.

python benchmarks/svd_loop.py [--device cuda] OUTPUT INPUT...
"""

import argparse

import torch
from safetensors.torch import load_file, save_file

RATIO = 0.08


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("output")
    parser.add_argument("inputs", nargs="+")
    said = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    named = [path for path in said.inputs if not path.endswith("base.safetensors")]
    experts = [load_file(path, device=said.device) for path in named]
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
    save_file({name: one.cpu() for name, one in merged.items()}, said.output)


if __name__ == "__main__":
    main()
