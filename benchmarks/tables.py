"""The measured tables of static and adaptive methods, made again by one command that goes on where it stopped.

    python benchmarks/tables.py [--suites tiny,vision,text] [--rows GLOB] [--seeds 3] [--adapt-split adapt|test]
                                [--seconds 300] [--iterations N] [--work DIR] [--output DIR]

Every row (table_rows.py) of the embedded example, and of the experts in TASKMERGE_EXPERTS where they are, is made and
scored in a process of its own; a result is kept in the work folder as long as suite, experts and code are the same, so
that Ctrl-C loses the run under way and nothing else. The tables are printed and written to OUTPUT/SUITE.md; with
`--rows` or `--iterations` they are printed only, since they are not the whole. `--adapt-split test` measures the
papers' transductive protocol (one seed) for the page's second table. `--seconds` ends a run that takes longer.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import count
from pathlib import Path

from table_pages import Entry, Section, page
from table_results import Asked, Result, Store, digest_of_code, digest_of_inputs
from table_rows import ROWS, Row
from table_runs import apart
from taskmerge.errors import TaskmergeError, UsageError, listed
from taskmerge.specs.suite import Suite
from taskmerge.specs.suite_file import load_suite

ROOT = Path(__file__).resolve().parent.parent
SPLITS = ("adapt", "test")
SEEDS = {"adapt": 3, "test": 1}
Make = Callable[[Asked, Path], Result]


def told(text: str) -> None:
    """Says how it goes, beside the tables."""
    print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Plan:
    """What is measured of every suite: rows, how many seeds on which split, and how long a run may take."""

    rows: Sequence[Row] = ROWS
    split: str = "adapt"
    seeds: int = SEEDS["adapt"]
    seconds: float = 300.0

    def runs(self, suite: Suite) -> list[list[Asked]]:
        """The runs of every row, by seed; what learns nothing is run once."""
        seeds = [min(self.seeds, row.seeds or self.seeds) if row.learns else 1 for row in self.rows]
        return [
            [Asked(suite, row, seed, self.split, self.seconds) for seed in range(many)]
            for row, many in zip(self.rows, seeds, strict=True)
        ]


def carry_out(name: str, plan: Plan, store: Store, make: Make = apart) -> None:
    """Makes every run whose result is not there. A run that fails ends its row; without the experts there is no table.

    Raises what `make` does not turn into a result: an interrupt, after which the next call goes on.
    """
    for runs in plan.runs(store.suite):
        for asked in runs:
            result = store.read(asked)
            if result is None:
                started = time.perf_counter()
                result = store.write(asked, make(asked, store.folder))
                told(f"{name}: {_line(result)} ({time.perf_counter() - started:.0f} s)")
            if result.error is not None:
                if asked.row.name == "experts":
                    return
                break


def _line(result: Result) -> str:
    where = f" on {result.split}, seed {result.seed}" if result.split else ""
    if result.error is not None:
        return f"{result.row}{where}: exit {result.error.exit_code}, {result.error.message}"
    return f"{result.row}{where}: {100 * (result.average or 0.0):.1f}"


def page_of(name: str, plan: Plan, store: Store) -> str:
    """The page of everything that is there of these rows, by every protocol."""
    tasks = [task.name for task in store.suite.tasks]
    sections = [Section(split, _entries(plan, store, split)) for split in SPLITS]
    shown = [section for section in sections if section.learning or section.split == "adapt"]
    return page(name, tasks, shown)


def _entries(plan: Plan, store: Store, split: str) -> tuple[Entry, ...]:
    entries = []
    for row in plan.rows:
        results = []
        for seed in count():
            result = store.read(Asked(store.suite, row, seed, split, plan.seconds))
            if result is None:
                break
            results.append(result)
            if not row.learns:
                break
        if results:
            entries.append(Entry(row, tuple(results)))
    return tuple(entries)


# --- the command -----------------------------------------------------------------------------------------------


def suites(names: Sequence[str] | None) -> Mapping[str, Suite]:
    """The suites by name: the embedded one, and those of TASKMERGE_EXPERTS that are there (all that are named)."""
    places = {"tiny": ROOT / "examples" / "tiny" / "suite.yaml"}
    if home := os.environ.get("TASKMERGE_EXPERTS"):
        places |= {name: Path(home) / name / "suite.yaml" for name in ("vision", "text")}
    places = {name: place for name, place in places.items() if place.is_file()}
    lacking = [name for name in names or () if name not in places]
    if lacking:
        hint = "TASKMERGE_EXPERTS names the folder of `vision` and `text`"
        raise UsageError(f"no suite {listed(lacking)}; there are {listed(places)}", where="--suites", hint=hint)
    return {name: load_suite(places[name]) for name in names or places}


def rows(pattern: str | None, iterations: int | None) -> tuple[Row, ...]:
    """The rows that a glob names, and the experts, which all others are measured by."""
    chosen = [row for row in ROWS if pattern is None or row.name == "experts" or fnmatchcase(row.name, pattern)]
    if len(chosen) < 2:
        names = listed((row.name for row in ROWS), len(ROWS))
        raise UsageError(f"no row is called `{pattern}`", where="--rows", hint=f"there are {names}")
    return tuple(row.within(iterations) for row in chosen)


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suites", type=lambda text: text.split(","))
    parser.add_argument("--rows", metavar="GLOB")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--adapt-split", choices=SPLITS, default="adapt")
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--iterations", type=int, help="another horizon for every row that has one")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "tables")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "tables")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None, make: Make = apart) -> None:
    said = options(arguments)
    split = said.adapt_split
    plan = Plan(rows(said.rows, said.iterations), split, said.seeds or SEEDS[split], said.seconds)
    code = digest_of_code()
    for name, suite in suites(said.suites).items():
        store = Store(said.work / name, suite, digest_of_inputs(suite), code)
        carry_out(name, plan, store, make)
        text = page_of(name, plan, store)
        print(text)
        if said.rows is None and said.iterations is None:
            said.output.mkdir(parents=True, exist_ok=True)
            (said.output / f"{name}.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except TaskmergeError as error:
        told(f"error: {error}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        told("interrupted: the same command goes on")
        sys.exit(130)
