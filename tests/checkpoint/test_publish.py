"""How finished files get their names: modes, locks, journals, folders that are exchanged, disks that lack something."""

import errno
import json
import os
import resource
import shutil
import signal
import stat
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import in_child
from fault_cases import (
    DONE,
    FOLDER,
    FORKED,
    GRID,
    HEADS,
    KINDS,
    SHARDED,
    SHARDS,
    VECTORS,
    Part,
    Scene,
    alone,
    ended,
    exchanges,
    left,
    made_before,
    run,
    seed_of,
    shown,
    start,
    strike,
    write,
)  # fmt: skip

from taskmerge.checkpoint import claims, publish, switching, twins
from taskmerge.checkpoint.canonical import OutputSpec
from taskmerge.checkpoint.claims import CLAIM, claimed
from taskmerge.checkpoint.disk import temporary_folder
from taskmerge.checkpoint.publish import publish_folder
from taskmerge.checkpoint.small_files import write_small
from taskmerge.checkpoint.staging import staging_folder
from taskmerge.checkpoint.writer import lay_out, stage
from taskmerge.errors import BadOutput

pytestmark = pytest.mark.filterwarnings(FORKED)


# --- modes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664])
@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if kind.over])
def test_what_replaces_something_has_its_mode(tmp_path: Path, kind: str, mode: int) -> None:
    folder = made_before(KINDS[kind], tmp_path / "x")
    for path in folder.rglob("*"):
        path.chmod(mode if path.is_file() else 0o750)
    run(KINDS[kind], folder)
    assert {found for found, _ in shown(folder).values()} == {mode}
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if path.is_dir()} <= {0o750}


def test_a_small_file_and_a_whole_folder_keep_their_modes_too(tmp_path: Path) -> None:
    small, folder = tmp_path / "report.json", tmp_path / "out"
    small.write_text("old")
    small.chmod(0o600)
    write_small(small, "new")
    assert (small.read_text(), stat.S_IMODE(small.stat().st_mode)) == ("new", 0o600)
    folder.mkdir(0o700)
    (folder / "old").touch()
    with staging_folder(folder) as work:
        (work / "new").touch()
        publish_folder(work, folder)
    assert [path.name for path in folder.iterdir()] == ["new"]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not left(tmp_path)


# --- folders that are exchanged --------------------------------------------------------------------------------


def moved(folder: Path, part: Part, *, whole: str | None = None) -> bool:
    """Whether overwriting has put another folder in the place of the one that was there."""
    before = (folder / (whole or part.path)).stat().st_ino
    write(folder, (part,) if whole is None else VECTORS, 2, overwrite=True, whole=whole)
    return (folder / (whole or part.path)).stat().st_ino != before


@pytest.mark.parametrize("part", [FOLDER, SHARDED])
def test_a_folder_changes_in_one_exchange_and_keeps_what_is_not_ours(tmp_path: Path, part: Part) -> None:
    write(tmp_path, (part,), 1, overwrite=False)
    mine = tmp_path / "out" / "notes" / "mine.txt"
    mine.parent.mkdir(0o711)
    mine.write_text("mine")
    (tmp_path / "out" / "link").symlink_to("notes/mine.txt")
    assert moved(tmp_path, part) == exchanges()
    assert mine.read_text() == (tmp_path / "out" / "link").read_text() == "mine"
    assert (tmp_path / "out" / "link").is_symlink()
    assert stat.S_IMODE(mine.parent.stat().st_mode) == 0o711
    assert not left(tmp_path)


def test_vectors_change_in_one_exchange(tmp_path: Path) -> None:
    write(tmp_path, VECTORS, 1, overwrite=False, whole="v")
    assert moved(tmp_path, FOLDER, whole="v") == exchanges()


@pytest.mark.parametrize(
    "obstacle", ["cwd", "pipe", "mount", "no exchange", "overlay", "no links", "not ours to write"]
)
def test_what_cannot_be_exchanged_changes_name_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, obstacle: str
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    write(home, (SHARDED,), 1, overwrite=False)
    (home / "out" / "mine.txt").write_text("mine")
    if obstacle == "cwd":
        monkeypatch.chdir(home / "out")
    elif obstacle == "pipe":
        os.mkfifo(home / "out" / "pipe")
    elif obstacle == "mount":
        monkeypatch.setattr(twins, "_is_mount", lambda folder: folder == home / "out")
    elif obstacle == "no exchange":
        monkeypatch.setattr(switching, "exchange", lambda one, other: False)
    elif obstacle == "overlay":  # of folders from a lower layer
        whole = os.rename

        def rename(one: str, other: str) -> None:
            if os.path.isdir(one):
                raise OSError(errno.EXDEV, "Invalid cross-device link")
            whole(one, other)

        monkeypatch.setattr(switching, "exchange", lambda one, other: False)
        monkeypatch.setattr(os, "rename", rename)
        monkeypatch.setattr(publish, "_by_another", lambda under: False)
    elif obstacle == "no links":

        def refuse(*_: object) -> None:
            raise PermissionError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
    else:
        access = os.access
        monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != home and access(path, mode))
    assert moved(home, SHARDED) == (obstacle == "no exchange")
    assert (home / "out" / "mine.txt").read_text() == "mine"
    assert {seed_of(file) for file in (home / "out").glob("*.safetensors")} == {"2"}
    assert not left(home)


def test_what_comes_into_a_folder_while_it_is_exchanged_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, (FOLDER,), 1, overwrite=False)
    whole = publish._switch

    def late(*arguments: Any) -> None:
        (tmp_path / "out" / "late.txt").write_text("late")
        whole(*arguments)

    monkeypatch.setattr(publish, "_switch", late)
    write(tmp_path, (FOLDER,), 2, overwrite=True)
    assert (tmp_path / "out" / "late.txt").read_text() == "late"


# --- journals --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", [name for name, kind in KINDS.items() if len(kind.parts) > 1 or kind.parts == (SHARDS,)]
)
def test_what_a_power_failure_left_half_done_is_taken_back_before_anything_is_looked_at(
    tmp_path: Path, kind: str
) -> None:
    scene = Scene(kind, tmp_path)

    def half() -> None:
        alone()
        whole, calls = switching._do, []

        def counted(change: switching.Step) -> None:
            calls.append(change)
            if len(calls) == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            whole(change)

        switching._do = counted
        run(scene.kind, folder)

    folder = scene.fresh()
    if ended(start(half, tmp_path / "log")) == DONE:
        pytest.skip("it has one step alone")
    assert left(folder)
    lay_out(folder / scene.kind.parts[0].path, (), overwrite=True)
    assert scene.state(folder) == "old"
    assert scene.next_run(folder) is None


def test_a_journal_of_somebody_else_is_neither_believed_nor_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret, area = tmp_path / "secret", tmp_path / ".out.safetensors.tmp-0123abcd"
    secret.write_text("secret")
    area.mkdir()
    (area / "kept").write_text("planted")
    switching.write_journal(str(area), [switching.step(secret, area / "gone", area / "kept")])
    monkeypatch.setattr(switching, "is_ours", lambda folder: False)
    write(tmp_path, (SHARDS,), 1, overwrite=False)
    assert secret.read_text() == "secret"
    assert (area / "kept").exists()


@pytest.mark.parametrize("moved_how", ["renamed", "copied", "link"])
def test_a_journal_holds_wherever_its_folder_has_gone(tmp_path: Path, moved_how: str) -> None:
    scene = Scene("grid over", tmp_path)

    def half() -> None:
        alone()
        switching.sync_folder = lambda folder: os.kill(os.getpid(), signal.SIGKILL) if made else None
        whole, made = switching._do, []

        def counted(change: switching.Step) -> None:
            made.append(whole(change))

        switching._do = counted
        run(scene.kind, folder)

    folder = scene.fresh()
    assert ended(start(half, tmp_path / "log")) == -signal.SIGKILL
    assert scene.state(folder) == "new"  # but it was not committed
    other = tmp_path / "elsewhere"
    if moved_how == "renamed":
        folder.rename(other)
    elif moved_how == "copied":
        shutil.copytree(folder, other)
    else:
        other.symlink_to(folder)
    lay_out(other / scene.kind.parts[0].path, (), overwrite=True)
    expected = "new" if moved_how == "copied" else "old"  # the new files of a copy are its own
    assert scene.state(other) == expected
    assert scene.next_run(other) is None
    if moved_how == "copied":
        assert scene.state(folder) == "new"
        assert scene.next_run(folder) is None


@pytest.mark.parametrize("damage", [b"", b"[", b"[{}]x", b"\xff"])
def test_a_journal_that_was_not_written_to_its_end_stands_for_nothing(tmp_path: Path, damage: bytes) -> None:
    area = tmp_path / ".out.safetensors.tmp-0123abcd"
    area.mkdir()
    (area / switching.JOURNAL).write_bytes(damage)
    write(tmp_path, (SHARDS,), 1, overwrite=False)
    assert not left(tmp_path)


@pytest.mark.parametrize("kind", ["shards over", "folder over", *(
    pytest.param(kind, marks=pytest.mark.slow) for kind in ("grid over", "file over shards")
)])  # fmt: skip
def test_an_undoing_that_fails_loses_nothing(tmp_path: Path, kind: str) -> None:
    """The disk refuses every change of a name from some moment on: what is needed to take them back stays."""
    for number in range(1, 12):
        scene = Scene(kind, tmp_path / str(number))
        folder = scene.fresh()

        def refused(number: int = number, scene: Scene = scene, folder: Path = folder) -> None:
            alone()
            calls = [0]

            def wrapped(whole: Any) -> Any:
                def call(*arguments: Any) -> Any:
                    calls[0] += "kept" in str(arguments) or "safetensors" in str(arguments[-1])
                    if calls[0] >= number:
                        raise OSError(errno.EIO, "Input/output error")
                    return whole(*arguments)

                return call

            switching.exchange = wrapped(switching.exchange)
            for name in ("link", "rename", "replace"):
                setattr(os, name, wrapped(getattr(os, name)))
            run(scene.kind, folder)

        assert ended(start(refused, tmp_path / "log")) in (DONE, 6), (tmp_path / "log").read_text()
        assert scene.next_run(folder) is None


@pytest.mark.parametrize("answer", ["killed", "not started", "no interpreter"])
def test_names_are_given_without_another_process_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    scene = Scene("shards over", tmp_path)
    folder = scene.fresh()
    script = tmp_path / "script.py"
    if answer == "killed":
        words = "import os, sys; print('ready', flush=True); sys.stdin.readline(); os.kill(os.getpid(), 9)"
    else:
        words = "raise SystemExit"
    script.write_text(words)
    if answer == "no interpreter":
        monkeypatch.setattr("sys.executable", str(tmp_path / "nowhere"))
    else:
        monkeypatch.setattr(switching, "__file__", str(script))
    run(scene.kind, folder)
    assert scene.state(folder) == "new"
    assert not left(folder)


def test_the_other_process_finishes_what_it_was_told(tmp_path: Path) -> None:
    """kill -9 of the run and its group, at the moment at which the other process has the word."""
    scene = Scene("shards over", tmp_path)
    folder = scene.fresh()

    def told() -> None:
        whole = publish.subprocess.Popen

        def popen(command: list[str], **options: Any) -> Any:
            process = whole(command, **options)

            class Killing:
                def write(self, text: bytes) -> None:
                    plain.write(text)
                    plain.flush()
                    os.killpg(0, signal.SIGKILL)

            plain, process.stdin = process.stdin, Killing()  # type: ignore[assignment]
            return process

        publish.subprocess.Popen = popen  # type: ignore[assignment,misc]
        run(scene.kind, folder)

    assert ended(start(told, tmp_path / "log")) == -signal.SIGKILL
    end = time.monotonic() + 10
    while scene.state(folder) != "new" and time.monotonic() < end:
        time.sleep(0.005)
    assert scene.state(folder) == "new"
    assert scene.next_run(folder) is None


# --- locks -----------------------------------------------------------------------------------------------------


def test_a_run_waits_for_one_that_gives_names_and_says_so_if_it_takes_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "PATIENCE", 0.05)
    with claimed([tmp_path]):
        with pytest.raises(BadOutput, match="another run is writing here"):
            write(tmp_path, GRID, 1, overwrite=False)
        assert not shown(tmp_path)
    write(tmp_path, GRID, 1, overwrite=False)
    assert len(shown(tmp_path)) == len(GRID)
    assert not left(tmp_path)


def test_a_lock_of_a_killed_run_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / CLAIM).touch()
    write(tmp_path, GRID, 1, overwrite=False)
    assert not left(tmp_path)


def test_a_lock_that_is_no_file_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / CLAIM)
    with pytest.raises(BadOutput, match="in the way"):
        write(tmp_path, GRID, 1, overwrite=False)


def test_a_disk_without_locks_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(claims.fcntl, "flock", refuse)
    for seed in (1, 2):
        write(tmp_path, GRID, seed, overwrite=seed > 1)
    assert {seed_of(path) for path in tmp_path.glob("*.safetensors")} == {"2"}


def test_a_file_that_others_share_may_be_there_already_if_it_is_the_same(tmp_path: Path) -> None:
    path, specs = tmp_path / "head.safetensors", [OutputSpec("w", "F32", (2,))]

    def one(value: float) -> None:
        with stage(path, specs, shared=True) as first, stage(path, specs, shared=True) as second:
            for sink, number in ((first, 1.0), (second, value)):
                sink.write("w", torch.full((2,), number))
                sink.commit({"format": "pt"})

    one(1.0)
    path.unlink()
    with pytest.raises(BadOutput, match="exists already"):
        one(2.0)


# --- what stands under staging names ---------------------------------------------------------------------------


@pytest.mark.parametrize("make", ["pipe", "device", "link", "foreign folder"])
def test_strange_things_under_staging_names_stay_and_stop_nobody(tmp_path: Path, make: str) -> None:
    place = tmp_path / ".out.safetensors.tmp-0123abcd"
    if make == "pipe":
        os.mkfifo(place)
    elif make == "device":
        place.symlink_to("/dev/zero")
    elif make == "link":
        place.symlink_to(tmp_path)
    else:
        place.mkdir()
        os.mkfifo(place / "pipe")
    assert in_child(lambda: write(tmp_path, (SHARDS,), 1, overwrite=False)) == 0
    assert os.path.lexists(place) == (make != "foreign folder")  # a folder of that name is what a killed run leaves


# --- what a disk refuses ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["close", "statvfs", "rename", "link", "replace", "fsync"])
@pytest.mark.parametrize("kind", ["file", "shards over", "folder over", "heads over"])
def test_errors_of_late_calls_are_refusals_with_the_path(tmp_path: Path, kind: str, call: str) -> None:
    scene = Scene(kind, tmp_path)
    folder = scene.fresh()

    def refused() -> None:
        alone()
        strike(fail, 1, (call,))
        run(scene.kind, folder)

    def fail(name: str) -> None:
        raise OSError(errno.EIO, "Input/output error")

    code = ended(start(refused, tmp_path / "log"))
    assert scene.state(folder) == ("new" if code == DONE else "old")
    assert code in (DONE, 6)
    if code:
        assert str(folder) in (tmp_path / "log").read_text()


def test_a_machine_without_a_place_for_temporary_files_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    with pytest.raises(BadOutput, match="temporary files") as caught, temporary_folder():
        pytest.fail("there is none")
    assert "TMPDIR" in str(caught.value.hint)


def test_a_disk_that_tells_no_size_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent:
        f_blocks = f_bavail = f_frsize = 0

    monkeypatch.setattr(os, "statvfs", lambda path: Silent())
    write(tmp_path, GRID, 1, overwrite=False)
    assert len(shown(tmp_path)) == len(GRID)


@pytest.mark.parametrize("limit", [80, 100])
def test_few_descriptors_are_enough_for_many_shards(tmp_path: Path, limit: int) -> None:
    def limited() -> None:
        while os.dup(0) <= highest:
            pass
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + limit, highest + limit))
        specs = [OutputSpec(f"t{number}", "F32", (8,)) for number in range(200)]
        with stage(tmp_path / "out.safetensors", specs, shard_size=32) as sink:
            for spec in specs:
                sink.write(spec.name, zeros)
            sink.commit({"format": "pt"})

    zeros = torch.zeros(8)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    assert in_child(limited) == 0
    assert len(list(tmp_path.glob("*.safetensors"))) == 200


def test_too_few_descriptors_are_told(tmp_path: Path) -> None:
    def limited() -> None:
        while os.dup(0) <= highest:
            pass
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 4, highest + 4))
        with pytest.raises(BadOutput, match="Too many open files") as caught:
            write(tmp_path, HEADS, 1, overwrite=False)
        assert "ulimit -n" in str(caught.value.hint)

    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    assert in_child(limited) == 0
    assert not shown(tmp_path)


def test_shards_of_another_output_with_a_similar_name_stay(tmp_path: Path) -> None:
    """`run-20240101` and `run` are two models, though a date might be taken for a generation."""
    for stem in ("run-20240101", "run-g2024", "run2"):
        index = tmp_path / f"{stem}.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": {"a": f"{stem}-00001-of-00002.safetensors"}}))
        (tmp_path / f"{stem}-00001-of-00002.safetensors").touch()
    before = shown(tmp_path)
    for seed in (1, 2):
        write(tmp_path, (Part("run.safetensors", shards=True),), seed, overwrite=seed > 1)
    assert before.items() <= shown(tmp_path).items()
