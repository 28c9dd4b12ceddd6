"""The floor of a merge: import torch, read every input byte once, write one output of the base's size, synced.

python benchmarks/floor.py OUTPUT INPUT...
"""

import os
import sys

import torch


def main() -> None:
    output, *inputs = sys.argv[1:]
    buffer = torch.empty(1 << 22, dtype=torch.uint8)
    view = memoryview(buffer.numpy())
    for path in inputs:
        with open(path, "rb", buffering=0) as file:
            while file.readinto(view):
                pass
    left = os.path.getsize(inputs[0])
    with open(output, "wb", buffering=0) as file:
        while left:
            left -= file.write(view[: min(left, len(view))])
        os.fsync(file.fileno())


if __name__ == "__main__":
    main()
