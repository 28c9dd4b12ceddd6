"""Every kind of plot, made by the command beside it: docs/gallery.md and docs/gallery/.

Of the embedded example, and of the real experts in TASKMERGE_EXPERTS.

    python benchmarks/gallery.py [--work FOLDER] [--only tiny] [--runs masks] [--limit 60] [--there]

Commands run in FOLDER (kept, so that a second call draws again without computing); a run that has its report.md is not
repeated. `--limit` bounds the items of sweeps, which score hundreds of merges; `--there` shows the runs that are there.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE, PICTURES = ROOT / "docs" / "gallery.md", ROOT / "docs" / "gallery"
PLOT = re.compile(
    r"### (?P<title>[^\n]+)\n\n!\[(?P<words>[^\n]*)\]\(figures/(?P<name>[\w-]+)\.svg\)\n\n(?P<caption>[^\n]*)"
)
HEAD = """# Gallery

Every kind of plot, on the embedded example (`tiny`, eight tasks of made pictures) and on eight small CLIP experts of
real data (`vision`), each made by the command above it; `python benchmarks/gallery.py` runs them all. What the plots
are for is told in [spectrum.md](spectrum.md), [sweeps.md](sweeps.md), [views.md](views.md) and
[reports.md](reports.md); the pilot study's heat map of heads is in [adapt.md](adapt.md). The sweeps here score {limit}
items a task: enough for the shape of a curve, with intervals that wide.
"""


@dataclass(frozen=True)
class Run:
    """A command that leaves a folder with a page, and the plots of it that are shown. SUITE stands for the suite."""

    title: str
    folder: str
    words: str
    plots: tuple[str, ...]


RUNS = (
    Run("Spectra, and what lies between tasks", "spectrum", "spectrum --suite SUITE -o spectrum/",
        ("energy-delta", "energy-centred", "cosine-delta", "overlap-left-delta", "interference-delta",
         "sign-conflict-delta", "depth-delta")),
    Run("What rank, coefficient and the choice of tasks do", "sweeps",
        "spectrum --suite SUITE --sweep rank,coefficient,routing,pairs --limit LIMIT -o sweeps/",
        ("sweep-rank", "sweep-coefficient", "sweep-routing", "sweep-pairs")),
    Run("The loss around experts and merges", "landscape",
        "spectrum --suite SUITE --sweep landscape,components --limit LIMIT -o landscape/",
        ("sweep-landscape", "sweep-neighbourhoods", "sweep-components")),
    Run("Every subset of the tasks", "subsets", "spectrum --suite SUITE --sweep subsets --limit LIMIT -o subsets/",
        ("sweep-subsets",)),
    Run("Coefficients that adapt", "coefficients", "adapt --suite SUITE --method adamerging --page -o coefficients/",
        ("coefficients", "trace-losses", "trace-coefficients")),
    Run("Masks that adapt", "masks", "adapt --suite SUITE --method adarank --page -o masks/",
        ("masks", "masks-depth", "masks-index", "trace-flips")),
    Run("Items that are left out", "filtered", "adapt --suite SUITE --method tint++ --page -o filtered/",
        ("trace-filter",)),
    Run("What was tried", "tried", "adapt --suite SUITE --method auto --budget 60 --page -o tried/", ("candidates",)),
    Run("Learning curves", "curves", "adapt --suite SUITE --stop agreement --watch 160 --page -o curves/",
        ("trace-agreement", "curves-held-out", "curves-scores", "trace-losses")),
    Run("Models against each other and against the experts", "scores",
        "eval base experts masks/ curves/ --suite SUITE --cross --compare experts --features 400 -o scores/",
        ("means", "scores", "normalised", "radar", "discrepancy", "cross", "cross-relative", "reliability",
         "calibration-error", "features-1")),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("gallery"))
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--limit", type=int, default=60)
    parser.add_argument("--runs", nargs="*")
    parser.add_argument("--there", action="store_true")
    asked = parser.parse_args()
    suites = {"tiny": ROOT / "examples" / "tiny" / "suite.yaml"}
    if experts := os.environ.get("TASKMERGE_EXPERTS"):
        suites["vision"] = Path(experts) / "vision" / "suite.yaml"
    chosen = {name: suite for name, suite in suites.items() if asked.only is None or name in asked.only}
    runs = [run for run in RUNS if asked.runs is None or run.folder in asked.runs]
    PICTURES.mkdir(exist_ok=True)
    pieces, missing = [HEAD.format(limit=asked.limit)], []
    for run in runs:
        heading = len(pieces)
        for name, suite in chosen.items():
            folder = (asked.work / name).absolute()
            folder.mkdir(parents=True, exist_ok=True)
            if asked.there and not (folder / run.folder / "report.md").exists():
                missing.append(f"{run.title.lower()} ({name})")
                continue
            pieces += shown(run, name, suite, folder, asked.limit)
        if len(pieces) > heading:
            pieces.insert(heading, f"## {run.title}\n")
    if missing:
        pieces.append(f"Not run for this page: {', '.join(missing)}.\n")
    PAGE.write_text("\n".join(pieces))


def shown(run: Run, name: str, suite: Path, folder: Path, limit: int) -> Iterator[str]:
    """The command on one suite, run unless it was, and its plots."""
    words = run.words.replace("LIMIT", str(limit))
    if not (folder / run.folder / "report.md").exists():
        command = [sys.executable, "-m", "taskmerge", *shlex.split(words.replace("SUITE", str(suite))), "--overwrite"]
        print(f"{name}:", shlex.join(command), file=sys.stderr)
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    said = {"tiny": "examples/tiny/suite.yaml", "vision": "vision/suite.yaml"}[name]
    yield f"```sh\ntaskmerge {words.replace('SUITE', said)}\n```\n"
    found = {plot["name"]: plot for plot in PLOT.finditer((folder / run.folder / "report.md").read_text())}
    for plot in run.plots:
        if plot in found:
            picture = f"{name}-{run.folder}-{plot}.svg"
            shutil.copyfile(folder / run.folder / "figures" / f"{plot}.svg", PICTURES / picture)
            title, words, caption = found[plot].group("title", "words", "caption")
            yield f"**{title}** ({name})\n\n![{words}](gallery/{picture})\n\n{caption}\n"


if __name__ == "__main__":
    main()
