"""Writes synthetic ViT visual encoders: a base and experts whose task vectors have a decaying spectrum plus noise.

python benchmarks/synthetic.py FOLDER [--experts 8] [--layers 12] [--width 768] [--dtype float32]
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file


def shapes(layers: int, width: int, patch: int = 32, features: int = 512) -> dict[str, tuple[int, ...]]:
    """The tensors of an open_clip visual tower."""
    found: dict[str, tuple[int, ...]] = {
        "visual.class_embedding": (width,),
        "visual.positional_embedding": (50, width),
        "visual.proj": (width, features),
        "visual.conv1.weight": (width, 3, patch, patch),
    }
    for place in ("ln_pre", "ln_post"):
        found |= {f"visual.{place}.weight": (width,), f"visual.{place}.bias": (width,)}
    for layer in range(layers):
        block = f"visual.transformer.resblocks.{layer}."
        for place in ("ln_1", "ln_2"):
            found |= {f"{block}{place}.weight": (width,), f"{block}{place}.bias": (width,)}
        for name, (rows, columns) in {
            "attn.in_proj_": (3 * width, width),
            "attn.out_proj.": (width, width),
            "mlp.c_fc.": (4 * width, width),
            "mlp.c_proj.": (width, 4 * width),
        }.items():
            found |= {f"{block}{name}weight": (rows, columns), f"{block}{name}bias": (rows,)}
    return found


def task_vector(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """A random task vector: for matrices directions with power-law strengths, and noise, 1% of the weights."""
    noise = torch.randn(shape, generator=generator) * 1e-4
    if len(shape) != 2 or min(shape) < 2:
        return noise
    rank = min(64, min(shape))
    strengths = torch.arange(1, rank + 1).float().pow(-0.7)
    left = torch.randn(shape[0], rank, generator=generator)
    right = torch.randn(rank, shape[1], generator=generator)
    return noise + 2e-4 * (left * strengths) @ right / rank**0.5


def write(folder: Path, experts: int, layers: int, width: int, dtype: torch.dtype) -> None:
    """base.safetensors and expert0.safetensors, expert1.safetensors, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    base = {name: torch.randn(shape, generator=generator) * 0.02 for name, shape in shapes(layers, width).items()}
    save_file({name: value.to(dtype) for name, value in base.items()}, folder / "base.safetensors")
    for index in range(experts):
        generator = torch.Generator().manual_seed(1 + index)
        tuned = {name: (value + task_vector(tuple(value.shape), generator)).to(dtype) for name, value in base.items()}
        save_file(tuned, folder / f"expert{index}.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--dtype", default="float32")
    said = parser.parse_args()
    write(said.folder, said.experts, said.layers, said.width, getattr(torch, said.dtype))


if __name__ == "__main__":
    main()
