"""Whatever stops a run, and whatever runs beside it: an output is the old one or the new one, whole."""

import json
import os
import random
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from fault_cases import (
    DONE,
    FOLDER,
    FORKED,
    KINDS,
    REFUSED,
    SHARDED,
    SHARDS,
    Kind,
    Part,
    Scene,
    cases,
    ended,
    kill_group,
    left,
    released,
    run,
    seed_in,
    seen,
    shown,
    start,
    write,
)  # fmt: skip

from taskmerge.checkpoint.checkpoint import open_checkpoint
from taskmerge.errors import BadFile

pytestmark = pytest.mark.filterwarnings(FORKED)
RUNS = 8


# --- stops -----------------------------------------------------------------------------------------------------


def check(scene: Scene, chosen: Callable[[list[str]], list[str]]) -> int:
    """Tries the chosen cases of a kind; how many there were. Every wrong one is told."""
    every = dict(cases(scene))
    names = chosen(list(every))
    wrong = {name: problem for name in names if (problem := every[name]()) is not None}
    assert not wrong, f"{len(wrong)} of {len(names)} are wrong: {json.dumps(wrong, indent=1)}"
    return len(names)


@pytest.mark.parametrize("kind", KINDS)
def test_a_few_stops_of_every_kind(tmp_path: Path, kind: str) -> None:
    chance = random.Random(kind)
    assert check(Scene(kind, tmp_path), lambda names: chance.sample(names, 4)) == 4


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_stop_of_every_kind(tmp_path: Path, kind: str) -> None:
    tried = check(Scene(kind, tmp_path), list)
    print(f"{kind}: {tried} stops")
    assert tried >= 112  # times 18 kinds: more than 2,000


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_kills_at_random_moments(tmp_path: Path, kind: str) -> None:
    scene, chance = Scene(kind, tmp_path), random.Random(kind)
    started = time.monotonic()
    whole = scene.fresh()
    assert ended(start(lambda: run(scene.kind, whole), tmp_path / "log")) == DONE
    took = time.monotonic() - started
    for _ in range(20):
        folder = scene.fresh()
        child = start(lambda folder=folder: run(scene.kind, folder), tmp_path / "log")
        time.sleep(chance.uniform(0, 1.1 * took))
        kill_group(child)
        ended(child)
        released(folder)
        assert seen(folder) is None
        assert scene.state(folder) in ("old", "new")
        assert scene.next_run(folder) is None


# --- eight at once ---------------------------------------------------------------------------------------------

FORMS = {
    "file": KINDS["file"],
    "shards": KINDS["shards"],
    "folder": KINDS["folder"],
    "folder of shards": Kind((SHARDED,)),
    "grid": KINDS["grid"],
    "heads": KINDS["heads"],
    "vectors": KINDS["vectors"],
    "new folders": KINDS["new folders"],
}


def together(kind: Kind, folder: Path, *, overwrite: bool) -> list[int | None]:
    """Runs that start at one time, each with values of its own; how they ended."""
    read, gate = os.pipe()

    def one(seed: int) -> Callable[[], None]:
        def work() -> None:
            os.close(gate)
            os.read(read, 1)  # returns when the gate closes
            write(folder, kind.parts, seed, overwrite=overwrite, whole=kind.whole)

        return work

    children = [start(one(seed), folder.parent / f"log {seed}") for seed in range(RUNS)]
    os.close(gate)
    os.close(read)
    return [ended(child) for child in children]


def rounds_of_eight(home: Path, form: str, rounds: int) -> None:
    """Without --overwrite one wins and the others are refused; with it all end well and the last stands whole."""
    kind, wholes = FORMS[form], []
    for seed in range(RUNS):
        (home / f"whole {seed}").mkdir()
        write(home / f"whole {seed}", kind.parts, seed, overwrite=False, whole=kind.whole)
        wholes.append(shown(home / f"whole {seed}"))
    for number in range(rounds):
        folder = home / f"round {number}"
        folder.mkdir()
        overwrite = number % 3 != 0
        if number % 3 == 2:
            write(folder, kind.parts, 5, overwrite=False, whole=kind.whole)
        codes = together(kind, folder, overwrite=overwrite)
        told = [
            (home / f"log {seed}").read_text()
            for seed in range(RUNS)
            if codes[seed] and (home / f"log {seed}").exists()
        ]
        found = shown(folder)
        assert found in wholes, f"a mixture: {codes} {sorted(found)}"
        assert not left(folder)
        if overwrite:
            assert codes == [DONE] * RUNS, told
        else:
            assert sorted(codes, key=str) == [DONE] + [REFUSED] * (RUNS - 1), told
            assert found == wholes[codes.index(DONE)]


@pytest.mark.parametrize("form", FORMS)
def test_eight_at_once(tmp_path: Path, form: str) -> None:
    rounds_of_eight(tmp_path, form, 2)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_eight_at_once_again_and_again(tmp_path: Path, form: str) -> None:
    rounds_of_eight(tmp_path, form, 27)  # times 8 forms: more than 200


# --- a reader meanwhile ----------------------------------------------------------------------------------------


def names_and_bytes(folder: Path) -> list[bytes]:
    """A model's weight files, read one after the other by their names, as other programs do."""
    index = next((path for path in folder.glob("*.index.json")), None)
    if index is None:
        return [(folder / "model.safetensors").read_bytes()]
    shards = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    return [(folder / shard).read_bytes() for shard in shards]


def by_our_reader(path: Path) -> set[str]:
    """The seeds of a model's files, by taskmerge's own reader."""
    with open_checkpoint(path) as checkpoint:
        values = {int(checkpoint.tensor(name)[0]) // 100 for name in checkpoint.specs}
        checkpoint.check_unchanged()
    return {str(value) for value in values}


def watched(home: Path, part: Part, seconds: float) -> tuple[int, int]:
    """Reads while another process overwrites; how often, and how often a file had just gone. Mixtures fail."""
    folder = home / "watched"
    folder.mkdir()
    write(folder, (part,), 0, overwrite=False)

    def overwriting() -> None:
        end, seed = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            seed = (seed + 1) % RUNS
            write(folder, (part,), seed, overwrite=True)

    child = start(overwriting, home / "log")
    looks = gone = 0
    where = folder / part.path if part.folder else folder
    opened = folder / part.path if part.folder else folder / f"{part.path}.index.json"
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        looks += 1
        try:
            assert len({seed_in(content) for content in names_and_bytes(where)}) == 1
        except FileNotFoundError:
            gone += 1
        with suppress(BadFile):  # it says that the file has changed, or gone
            assert len(by_our_reader(opened)) == 1
    assert seen(folder) is None
    return looks, gone


@pytest.mark.parametrize("part", [SHARDS, SHARDED, FOLDER])
def test_a_reader_never_sees_a_mixture(tmp_path: Path, part: Part) -> None:
    looks, gone = watched(tmp_path, part, 1.0)
    assert looks > 10
    assert gone < looks


@pytest.mark.slow
@pytest.mark.parametrize("part", [SHARDS, SHARDED, FOLDER])
def test_a_reader_never_sees_a_mixture_for_long(tmp_path: Path, part: Part) -> None:
    looks, _ = watched(tmp_path, part, 15.0)
    assert looks > 500
