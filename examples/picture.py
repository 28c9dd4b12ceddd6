"""Draws docs/idea.svg: accuracy of CART on the embedded example over the kept rank; run in the project's root.

At full rank the differences from the average cancel; their leading components add back what averaging lost.
"""

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt

import taskmerge

TINY = Path("examples/tiny")
RANKS = (0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.0)


def measure() -> tuple[dict[str, float], list[float]]:
    """Average accuracy in percent of the fixed points, and of CART at every rank."""
    with tempfile.TemporaryDirectory() as folder:
        inputs = sorted(TINY.glob("*.safetensors"))
        fixed = {"base": "base", "experts": "experts"}
        for method in ("average", "task_arithmetic"):
            (fixed[method],) = taskmerge.merge(inputs, method=method, output=f"{folder}/{method}.safetensors").paths
        curve = taskmerge.merge(inputs, method="cart", rank=RANKS, output=f"{folder}/cart.safetensors").paths
        report = taskmerge.evaluate([*fixed.values(), *curve], suite=TINY / "suite.yaml")
        found = {one.encoder: 100 * one.average for one in report.averages}
        return {name: found[Path(path).stem] for name, path in fixed.items()}, [found[Path(one).stem] for one in curve]


def draw(fixed: dict[str, float], cart: list[float]) -> None:
    """One curve and four levels."""
    plt.rcParams.update({"svg.hashsalt": "taskmerge", "font.size": 11})
    figure, axes = plt.subplots(figsize=(7.2, 3.6), layout="constrained")
    axes.plot(RANKS, cart, "o-", color="#b5482f", label="CART: average + Σ truncated differences", linewidth=2)
    colours = {"experts": "#2c6e49", "task_arithmetic": "#3d6cb0", "average": "#555555", "base": "#999999"}
    for name, colour in colours.items():
        axes.axhline(fixed[name], color=colour, linestyle="--", linewidth=1)
        axes.annotate(
            f"{name.replace('_', ' ')} {fixed[name]:.1f}", (1.02, fixed[name]), xycoords=("axes fraction", "data"),
            color=colour, va={"base": "top", "task_arithmetic": "bottom"}.get(name, "center"), fontsize=10,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xticks(RANKS, [f"{rank:.0%}" for rank in RANKS])
    axes.minorticks_off()
    axes.set_xlabel("share of the singular components kept of each centred task vector")
    axes.set_ylabel("accuracy over 8 tasks, %")
    axes.legend(frameon=False, loc="upper right", bbox_to_anchor=(1, 0.86))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig("docs/idea.svg", metadata={"Date": None})


if __name__ == "__main__":
    draw(*measure())
