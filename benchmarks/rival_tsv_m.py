"""fusion-bench's own TSV-M function on the task vectors of the same files; runs under the rivals' Python.

RIVALS_PYTHON benchmarks/rival_tsv_m.py INPUT...
"""

import sys

from fusion_bench.method.task_singular_vector.utils.TSVM_utils import compute_and_sum_svd_mem_reduction
from safetensors.torch import load_file


def main() -> None:
    paths = sys.argv[1:]
    base = load_file(next(path for path in paths if path.endswith("base.safetensors")))
    vectors = []
    for path in paths:
        if not path.endswith("base.safetensors"):
            expert = load_file(path)
            vectors.append({name: value - base[name] for name, value in expert.items()})
    compute_and_sum_svd_mem_reduction(vectors, accelerator="cpu")


if __name__ == "__main__":
    main()
