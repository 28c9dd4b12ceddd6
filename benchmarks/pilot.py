"""What a head of its own could win each task, over merging coefficients: the pilot study's heat map of gains.

    python benchmarks/pilot.py [--suite tiny|vision|text] [--split test] [--picture FILE] [--work DIR]

For every coefficient from 0.1 to 1.0, task arithmetic is scored with the heads of the suite, and with heads trained
WITH THE LABELS of the split on its frozen features (`supervised_heads`, one pass). They are scored on the split that
they were trained on: an upper bound of what heads alone can do, no result of a merging method. Gains are printed as a
table, in points; `--picture` draws them. Runs are kept as those of tables.py are: Ctrl-C loses the one under way.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from table_results import Asked, Store, digest_of_code, digest_of_inputs
from table_rows import Row
from table_runs import apart
from tables import ROOT, Plan, carry_out, suites
from taskmerge.errors import TaskmergeError
from taskmerge.reports.charts import png_file, svg_file, wide
from taskmerge.reports.pilot_figures import Gains, pilot_figures
from taskmerge.specs.suite import Suite

COEFFICIENTS = tuple(round(0.1 * step, 1) for step in range(1, 11))


def rows() -> Mapping[float, tuple[Row, Row]]:
    """(heads of the suite, heads trained with labels) by coefficient."""

    def of(coefficient: float) -> tuple[Row, Row]:
        keywords = {"init": "task_arithmetic", "coefficient": coefficient}
        given = Row(
            f"task-arithmetic-{coefficient}", "static", {"method": "task_arithmetic", "coefficient": coefficient}
        )
        trained = Row(f"supervised-{coefficient}", "adaptive", {"method": "supervised_heads", **keywords}, seeds=1)
        return given, trained

    return {coefficient: of(coefficient) for coefficient in COEFFICIENTS}


def measured(suite: Suite, split: str, work: Path) -> Gains:
    """The gain of every task by coefficient, in points. Raises what a run that failed had to say."""
    pairs = rows()
    store = Store(work / suite.name, suite, digest_of_inputs(suite), digest_of_code())
    carry_out(suite.name, Plan([row for pair in pairs.values() for row in pair], split, 1), store, apart)

    def scores(row: Row) -> Mapping[str, float]:
        result = store.read(Asked(suite, row, 0, split))
        if result is None or result.error is not None:
            raise TaskmergeError(f"no result of `{row.name}`: {result and result.error and result.error.message}")
        return {one["task"]: one["score"] for one in result.scores}

    found = {coefficient: [scores(row) for row in pair] for coefficient, pair in pairs.items()}
    return {
        coefficient: {task: 100 * (trained[task] - given[task]) for task in given}
        for coefficient, (given, trained) in found.items()
    }


def table(gains: Gains) -> str:
    """Markdown: a row a task, a column a coefficient."""
    tasks = list(next(iter(gains.values())))
    lines = ["| task | " + " | ".join(map(str, gains)) + " |", "| --- |" + " --: |" * len(gains)]
    for task in tasks:
        lines.append(f"| {task} | " + " | ".join(f"{of_tasks[task]:+.1f}" for of_tasks in gains.values()) + " |")
    means = (sum(of_tasks.values()) / len(of_tasks) for of_tasks in gains.values())
    return "\n".join([*lines, "| mean | " + " | ".join(f"{mean:+.1f}" for mean in means) + " |"])


def draw(gains: Gains, path: Path) -> None:
    """The same as a heat map: SVG, or PNG where the file ends so."""
    (figure,) = pilot_figures(gains)
    svg = svg_file(wide(figure))
    path.write_bytes(png_file(svg) if path.suffix.lower() == ".png" else svg.encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", default="tiny")
    parser.add_argument("--split", default="test", help="a labelled split")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "pilot")
    said = parser.parse_args()
    (suite,) = suites([said.suite]).values()
    gains = measured(suite, said.split, said.work)
    print(table(gains))
    if said.picture is not None:
        draw(gains, said.picture)


if __name__ == "__main__":
    try:
        main()
    except TaskmergeError as error:
        sys.exit(f"error: {error}")
