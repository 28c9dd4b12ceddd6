"""`verify` over all that a merge wrote: what is not as it was is named, what others put beside it is not opened."""

import json
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import taskmerge
from taskmerge.errors import BadFile, TaskmergeError
from taskmerge.merging.verification import Changed
from vector_cases import record_of, resealed

TASKS = ("cars", "dogs", "signs")
TEXTS = {
    "config.json": json.dumps({"model_type": "bert", "hidden_size": 8}),
    "generation_config.json": json.dumps({"eos_token_id": 2}),
    "tokenizer.json": json.dumps({"version": "1.0", "model": {"vocab": {"a": 0}}}),
    "tokenizer_config.json": json.dumps({"model_max_length": 64}),
    "chat_template.jinja": "{{ messages }}",
    "additional_chat_templates/tools.jinja": "{{ tools }}",
    "modules.json": json.dumps([{"idx": 0, "name": "1", "path": "1_Pooling", "type": "Pooling"}]),
    "1_Pooling/config.json": json.dumps({"word_embedding_dimension": 8}),
    "LICENSE": "MIT\n",
}
opened: list[str] | None = None


def audited(event: str, arguments: tuple[object, ...]) -> None:
    """Notes every file that is opened, as long as somebody wants to know."""
    if event == "open" and opened is not None and isinstance(arguments[0], str | bytes | os.PathLike):
        opened.append(os.path.basename(os.fsdecode(arguments[0])))


sys.addaudithook(audited)  # there is no taking it away


def put(place: Path, content: str = "") -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(content)


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Experts in folders (`experts`), and of them a folder `out` with everything that a merge can write: shards with an
    index, heads, configuration, tokenizer, templates, modules, licence, card."""
    here = tmp_path_factory.mktemp("merged")
    for seed, task in enumerate(TASKS):
        generator = torch.Generator().manual_seed(seed)
        shapes = {f"blocks.{n}.fc.weight": (8, 8) for n in range(3)}
        shapes |= {"norm.weight": (8,), "head.weight": (2 + seed, 8)}
        for name, text in TEXTS.items():
            put(here / "experts" / task / name, text)
        tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        save_file({**tensors, "position_ids": torch.arange(4)}, here / "experts" / task / "model.safetensors")
    taskmerge.merge(
        [here / "experts" / task for task in TASKS], method="cart", rank=3, heads="keep", shard_size=400,
        output=here / "out",
    )  # fmt: skip
    return here


@pytest.fixture
def out(merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the output; the working directory is elsewhere."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return Path(shutil.copytree(merged / "out", tmp_path / "out"))


@pytest.fixture(autouse=True)
def soon() -> Iterator[None]:
    """What waits for a pipe, or reads on without end, is stopped before it fills the memory."""

    def late(number: int, frame: FrameType | None) -> None:
        raise AssertionError("verify hangs")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def files_of(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def of_weights(name: str) -> bool:
    return name.endswith(".safetensors")


def refused(out: Path, merged: Path, name: str) -> TaskmergeError:
    """The error that verify ends with; what lies beside the weights is seen without the experts."""
    with pytest.raises(TaskmergeError) as error:
        taskmerge.verify(out, [merged / "experts"], replay=of_weights(name), threads=1)
    assert error.value.exit_code in (3, 7), name
    assert name in str(error.value) or (name.endswith("index.json") and "no index" in str(error.value))
    return error.value


def test_everything_that_was_written_is_compared(out: Path, merged: Path) -> None:
    found = taskmerge.verify(out, [merged / "experts"])
    assert (found.verdict, found.same_file, found.notes) == ("same bytes", True, ())
    assert sorted(found.files) == files_of(out)
    assert {*TEXTS, "README.md", "model.safetensors.index.json"} < {*found.files}
    assert sum(name.startswith("heads/") for name in found.files) == len(TASKS)
    assert sum(name.startswith("model-") for name in found.files) > 2


# --- one file is not as it was ---------------------------------------------------------------------------------


def flip(path: Path, chance: random.Random) -> None:
    raw = bytearray(path.read_bytes())
    raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
    path.write_bytes(raw)


def cut(path: Path, chance: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: chance.randrange(path.stat().st_size)])


def lengthen(path: Path, chance: random.Random) -> None:
    with path.open("ab") as file:
        file.write(chance.randbytes(chance.randrange(1, 9)))


def delete(path: Path, chance: random.Random) -> None:
    path.unlink()


def empty(path: Path, chance: random.Random) -> None:
    path.write_bytes(b"")


def pipe(path: Path, chance: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


def endless(path: Path, chance: random.Random) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def loop(path: Path, chance: random.Random) -> None:
    path.unlink()
    path.symlink_to(path)


def huge(path: Path, chance: random.Random) -> None:
    os.truncate(path, 1 << 40)


def folder(path: Path, chance: random.Random) -> None:
    path.unlink()
    path.mkdir()


WAYS = (flip, cut, lengthen, delete, empty, pipe, endless, loop, huge, folder)


def restore(path: Path, original: Path) -> None:
    if path.is_dir():
        path.rmdir()
    path.unlink(missing_ok=True)
    shutil.copyfile(original, path)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_file_that_is_not_as_it_was_is_named(
    way: Callable[[Path, random.Random], None], out: Path, merged: Path
) -> None:
    chance = random.Random(way.__name__)
    names = files_of(out)
    shards = [name for name in names if of_weights(name)]
    for name in [*(name for name in names if name not in shards), *chance.sample(shards, 2)]:
        way(out / name, chance)
        refused(out, merged, name)
        restore(out / name, merged / "out" / name)
    assert taskmerge.verify(out, replay=False).files


def test_all_that_is_wrong_is_named_at_once(out: Path, merged: Path) -> None:
    (out / "config.json").unlink()
    put(out / "tokenizer.json", "{}")
    put(out / "heads/dogs.safetensors")
    shard = next(path for path in sorted(out.glob("model-*")) if "norm.weight" in load_file(path))
    changed_tensors(shard, {"norm.weight": load_file(shard)["norm.weight"] * 1.01})
    with pytest.raises(Changed) as error:
        taskmerge.verify(out, [merged / "experts"])
    named = {change.file: change.what for change in error.value.verification.changed}
    assert named.keys() == {"config.json", "tokenizer.json", "heads/dogs.safetensors", shard.name}
    assert named["config.json"] == "is not there"
    assert "1 of 5 tensors are not what the recipe gives: `norm.weight`" in named[shard.name]
    assert all(name in str(error.value) for name in named)
    assert error.value.exit_code == 3


def changed_tensors(file: Path, tensors: dict[str, torch.Tensor]) -> None:
    with safe_open(file, "pt") as opened_file:
        metadata = dict(opened_file.metadata())
    save_file({**load_file(file), **tensors}, file, metadata)


@pytest.mark.parametrize("seed", range(4))
def test_swapped_files_are_named(seed: int, out: Path, merged: Path) -> None:
    chance, names = random.Random(seed), files_of(out)
    groups = (
        [name for name in names if name.startswith("model-")],
        [name for name in names if name.startswith("heads/")],
        sorted(TEXTS.keys() - {"LICENSE"}),
        names,
    )
    one, other = chance.sample(groups[seed], 2)
    shutil.move(out / one, out / "kept")
    shutil.move(out / other, out / one)
    shutil.move(out / "kept", out / other)
    with pytest.raises(TaskmergeError) as error:
        taskmerge.verify(out, [merged / "experts"])
    assert error.value.exit_code == 3
    assert one in str(error.value) or other in str(error.value)


@pytest.mark.parametrize("seed", range(3))
def test_swapped_and_changed_tensors_are_named(seed: int, out: Path, merged: Path) -> None:
    chance = random.Random(seed)
    held = {file: load_file(file) for file in sorted(out.glob("model-*"))}
    (one, first), (other, second) = chance.sample(
        [(file, name) for file, own in held.items() for name in own if "fc" in name], 2
    )
    if seed:  # one value of one tensor
        tensor = held[one][first]
        tensor.view(-1)[chance.randrange(tensor.numel())] += chance.choice((1e-3, -1.0, 1e4))
        changed_tensors(one, {first: tensor})
        names = [first]
    else:
        changed_tensors(one, {first: held[other][second]})
        changed_tensors(other, {second: held[one][first]})
        names = [first, second]
    with pytest.raises(Changed) as error:
        taskmerge.verify(out, [merged / "experts"])
    assert all(f"`{name}`" in str(error.value) for name in names)


# --- the record ------------------------------------------------------------------------------------------------


def test_no_flipped_bit_of_the_record_is_verified(merged: Path, tmp_path: Path) -> None:
    """Of any file's record: what cannot be replayed (versions, digests of what lies beside) is under its seal."""
    chance = random.Random(5)
    one = [merged / "experts" / task for task in TASKS]
    file = Path(taskmerge.merge(one, method="average", exclude=["head.*"], output=tmp_path / "m.safetensors").paths[0])
    raw = file.read_bytes()
    end = raw.index(b'"},"')  # of the metadata
    for _ in range(150):
        data = bytearray(raw)
        data[chance.randrange(8, end)] ^= 1 << chance.randrange(8)
        file.write_bytes(data)
        try:
            found = taskmerge.verify(file, replay=False)
        except BadFile:
            continue
        assert found.provenance is None, data[8:end]  # it is no file of ours any more


@pytest.mark.parametrize("name", ["heads", "shard"])
def test_a_record_is_as_whole_in_every_file(name: str, out: Path, merged: Path) -> None:
    for file in sorted(out.glob("heads/*" if name == "heads" else "model-*")):
        raw = file.read_bytes()
        at = raw.index(b'\\"version\\":\\"') + len(b'\\"version\\":\\"')
        file.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
        with pytest.raises(BadFile) as error:
            taskmerge.verify(out, [merged / "experts"])
        assert file.name in str(error.value)
        file.write_bytes(raw)


def test_a_record_says_what_lies_beside_the_weights(out: Path) -> None:
    record = record_of(next(out.glob("model-*")))
    assert record["files"].keys() == {*TEXTS, "README.md"}
    assert record["files"]["LICENSE"]["bytes"] == 4
    assert record == resealed(record)


def test_a_records_files_outside_the_folder_are_not_looked_at(tmp_path: Path) -> None:
    path = Path(save_one(tmp_path / "a.safetensors"))
    record = {"kind": "centre", "experts": {}, "files": {"../secret": {"bytes": 1, "digest": "sha256:" + "0" * 64}}}
    put(tmp_path.parent / "secret", "?")
    save_file(load_file(path), path, {"format": "pt", "taskmerge": json.dumps(resealed(record))})
    watch = watched(lambda: taskmerge.verify(path, replay=False))
    assert "secret" not in watch


def save_one(path: Path) -> Path:
    save_file({"x": torch.ones(3)}, path)
    return path


# --- what others put there -------------------------------------------------------------------------------------


def watched(act: Callable[[], object]) -> list[str]:
    """The names of the files that are opened meanwhile."""
    global opened
    opened = []
    try:
        act()
        return opened
    finally:
        opened = None


STRANGERS: dict[str, Callable[[Path], object]] = {
    "notes.txt": lambda path: path.write_text("mine"),
    "zero.bin": lambda path: path.symlink_to("/dev/zero"),
    "pytorch_model.bin": lambda path: path.symlink_to("/dev/zero"),
    "pipe.safetensors": os.mkfifo,
    "pipe.index.json": os.mkfifo,
    "loop.safetensors": lambda path: path.symlink_to(path),
    "loop": lambda path: path.symlink_to(path),
    "huge.safetensors": lambda path: (path.touch(), os.truncate(path, 1 << 40)),
    "weights.pt": lambda path: path.write_bytes(b"no pickle"),
    "adapter_model.safetensors": os.mkfifo,
    "runs": lambda path: (path.mkdir(), os.mkfifo(path / "model.safetensors")),
    "locked": lambda path: path.mkdir(mode=0),
}


def test_strangers_beside_an_output_are_not_opened(out: Path, merged: Path) -> None:
    for name, make in STRANGERS.items():
        make(out / name)
    found = None

    def act() -> None:
        nonlocal found
        found = taskmerge.verify(out, [merged / "experts"])

    assert not STRANGERS.keys() & {*watched(act)}
    assert found is not None
    assert found.same_file
    assert all(name in found.notes[-1] for name in STRANGERS)


@pytest.mark.parametrize("given", [True, False])
def test_strangers_beside_a_file_stop_nobody(given: bool, merged: Path, tmp_path: Path) -> None:
    """A file lies among whatever else there is; without experts that are named, they are looked for there."""
    file = tmp_path / "m.safetensors"
    experts = {task: merged / "experts" / task for task in TASKS}
    taskmerge.merge(experts, method="average", exclude=["head.*"], output=file)
    for name, make in {**STRANGERS, "config.json": os.mkfifo, "adapter_config.json": os.mkfifo}.items():
        make(tmp_path / name)
    for task, place in experts.items() if not given else ():
        shutil.copyfile(place / "model.safetensors", tmp_path / f"{task}.safetensors")
    assert taskmerge.verify(file, [merged / "experts"] if given else []).same_file


@pytest.mark.parametrize("make", [lambda path: path.symlink_to("/dev/zero"), os.mkfifo, lambda path: path.mkdir()])
def test_a_config_beside_a_file_is_read_only_if_it_is_one(make: Callable[[Path], object], tmp_path: Path) -> None:
    """Every checkpoint that is opened looks for a configuration beside it."""
    save_one(tmp_path / "a.safetensors")
    make(tmp_path / "config.json")
    assert taskmerge.inspect(tmp_path / "a.safetensors").tensors


def test_a_huge_stranger_of_the_same_names_is_not_read(merged: Path, tmp_path: Path) -> None:
    """What has a tensor in another shape was not merged, and is not digested to find that out."""
    file = tmp_path / "m.safetensors"
    taskmerge.merge([merged / "experts" / task for task in TASKS], method="average", exclude=["head.*"], output=file)
    side = 1 << 17
    entry = {"dtype": "F32", "shape": [side, side], "data_offsets": [0, 4 * side * side]}
    rest = {"blocks.1.fc.weight", "blocks.2.fc.weight", "norm.weight", "position_ids"}
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [4 * side * side] * 2}
    header = json.dumps({"blocks.0.fc.weight": entry, **dict.fromkeys(rest, empty)}).encode()
    (tmp_path / "huge.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(tmp_path / "huge.safetensors", 8 + len(header) + 4 * side * side)
    with pytest.raises(BadFile, match="cannot find again"):
        taskmerge.verify(file)
    assert taskmerge.verify(file, [tmp_path, merged / "experts"]).same_file


LOADED = (
    "preprocessor_config.json", "added_tokens.json", "special_tokens_map.json", "adapter_config.json",
    "chat_template.json", "vocab.txt", "spiece.model", "additional_chat_templates/more.jinja",
)  # fmt: skip


@pytest.mark.parametrize("name", LOADED)
def test_what_loaders_would_take_for_the_models_is_a_change(name: str, out: Path, merged: Path) -> None:
    put(out / name, "{}")
    found = None
    with pytest.raises(Changed, match="was not written by the merge") as error:
        taskmerge.verify(out, replay=False)
    found = error.value.verification
    assert [change.file for change in found.changed] == [name]
