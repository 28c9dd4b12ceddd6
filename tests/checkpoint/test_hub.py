"""Places on a hub, by the real clients against a hub on this machine: faults are one message and leave nothing half."""

import io
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save

from hub_server import COMMIT, Hub, serving
from taskmerge.checkpoint.checkpoint import open_checkpoint
from taskmerge.checkpoint.hub import resolve
from taskmerge.errors import UsageError
from taskmerge.specs.suite import HubPath

CLIENT = """
import json, sys
from pathlib import Path
from taskmerge.checkpoint import hub
from taskmerge.data.sources.open import open_source
from taskmerge.errors import TaskmergeError
from taskmerge.specs.suite import HubPath, Split
hub.PACE = 0  # the clients wait between attempts
for line in sys.stdin:
    said = json.loads(line)
    try:
        place = HubPath(*said["place"])
        if said["do"] == "resolve":
            found = str(hub.resolve(place))
        else:
            chosen = {"configuration": said["configuration"], "name": said["split"]}
            split = Split(said["do"], place, ("text",), "label", **chosen)
            source = open_source(split, "test", hub.resolve)
            places = range(source.length)
            found = [[source.decode(one) for one in source.read(places)], [int(one) for one in source.labels(places)]]
        reply = {"found": found}
    except TaskmergeError as error:
        reply = {"error": type(error).__name__, "message": error.message}
    print(json.dumps(reply), flush=True)
"""


@dataclass
class Client:
    """Another process with the clients' environment; answers one question at a time."""

    process: subprocess.Popen[str]

    def __call__(
        self, *place: str | None, do: str = "resolve", split: str | None = None, configuration: str | None = None
    ) -> Any:
        """What was found; an error is its class and message."""
        assert self.process.stdin
        assert self.process.stdout
        question = {"do": do, "place": place, "split": split, "configuration": configuration}
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        reply = json.loads(self.process.stdout.readline())
        return reply["found"] if "found" in reply else (reply["error"], reply["message"])


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with serving() as found:
        yield found


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def start(home: Path) -> Iterator[Callable[[Mapping[str, str]], Client]]:
    clients: list[subprocess.Popen[str]] = []

    def started(more: Mapping[str, str]) -> Client:
        known = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        environment = {**known, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", **more}
        log = (home / f"log{len(clients)}").open("w")
        pipe = subprocess.PIPE
        command = [sys.executable, "-c", CLIENT]
        with log:
            clients.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=log, text=True, env=environment))
        return Client(clients[-1])

    yield started
    for client in clients:
        with client:
            client.kill()


@pytest.fixture(scope="module")
def client(start: Callable[[Mapping[str, str]], Client], hub: Hub) -> Client:
    return start({"HF_ENDPOINT": hub.url})


@pytest.fixture(scope="module")
def offline(start: Callable[[Mapping[str, str]], Client], hub: Hub) -> Client:
    return start({"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "1"})


@pytest.fixture(scope="module")
def unconnected(start: Callable[[Mapping[str, str]], Client]) -> Client:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    return start({"HF_ENDPOINT": f"http://127.0.0.1:{port}"})


def leftovers(home: Path, repository: str) -> list[str]:
    """Files of a repository in the cache that are neither whole nor bookkeeping."""
    folder = home / "hub" / f"models--{repository.replace('/', '--')}"
    return [
        str(one) for one in folder.rglob("*") if one.is_file() and (one.suffix == ".incomplete" or "blobs" in one.parts)
    ]


def parquet(texts: int, start: int = 0) -> bytes:
    sink = io.BytesIO()
    labels = [n % 2 for n in range(texts)]
    pq.write_table(pa.table({"text": [f"text {start + n}" for n in range(texts)], "label": labels}), sink)
    return sink.getvalue()


# --- models ----------------------------------------------------------------------------------------------------


def test_a_path_is_itself(tmp_path: Path) -> None:
    assert resolve(tmp_path / "not" / "there") == tmp_path / "not" / "there"


def test_one_file_is_fetched_once(hub: Hub, client: Client, offline: Client) -> None:
    hub.repositories["models/org/one"] = {"heads/a.safetensors": b"head", "b": b"other"}
    hub.asked.clear()
    found = Path(client("org/one", "heads/a.safetensors"))
    assert found.read_bytes() == b"head"
    assert client("org/one", "heads/a.safetensors") == str(found)
    assert hub.downloads() == ["heads/a.safetensors"]
    assert offline("org/one", "heads/a.safetensors") == str(found)


def test_a_sharded_repository_without_its_pickles(hub: Hub, client: Client, offline: Client) -> None:
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.float16)}
    shards = {f"model-0000{n}-of-00002.safetensors": {name: tensors[name]} for n, name in ((1, "a"), (2, "b"))}
    index = {"metadata": {}, "weight_map": {next(iter(part)): file for file, part in shards.items()}}
    wanted = {
        **{file: save(part) for file, part in shards.items()},
        "model.safetensors.index.json": json.dumps(index).encode(),
        "config.json": b"{}",
        "vocab.txt": b"a\nb",
        "merges.txt": b"a b",
    }
    unwanted = {"pytorch_model.bin": b"pickle", "model.pt": b"pickle", "run.py": b"evil", "big.onnx": b"", "a.pkl": b""}
    hub.repositories["models/org/sharded"] = {**wanted, **unwanted}
    hub.asked.clear()
    folder = Path(client("org/sharded"))
    assert hub.downloads() == sorted(wanted)
    assert sorted(one.name for one in folder.iterdir()) == sorted(wanted)
    with open_checkpoint(folder) as found:
        assert sorted(found.specs) == ["a", "b"]
        assert all(torch.equal(found.tensor(name), tensors[name]) for name in tensors)
    assert offline("org/sharded") == str(folder)


def test_a_revision_is_asked_for(hub: Hub, client: Client) -> None:
    hub.repositories["models/org/revised"] = {"config.json": b"{}"}
    assert COMMIT in client("org/revised", "config.json", COMMIT)
    for place in (("org/revised", "config.json", "v9"), ("org/revised", None, "v9")):
        error, message = client(*place)
        assert error == "BadFile"
        assert "the repository has no revision `v9`" in message


@pytest.mark.parametrize("file", [None, "config.json"])
def test_what_is_not_there_is_named(hub: Hub, client: Client, file: str | None) -> None:
    error, message = client("org/none", file)
    assert error == "BadFile"
    assert message.startswith(f"hub org/none{'/config.json' if file else ''}: no such repository, or a private one\n")
    assert f"{hub.url}/org/none" in message


def test_a_missing_file_is_named(hub: Hub, client: Client) -> None:
    hub.repositories["models/org/little"] = {"config.json": b"{}"}
    error, message = client("org/little", "model.safetensors")
    assert (error, message.splitlines()[0]) == (
        "BadFile", "hub org/little/model.safetensors: the repository has no such file",
    )  # fmt: skip


@pytest.mark.parametrize("file", [None, "config.json"])
def test_a_gated_repository_says_what_to_do(hub: Hub, client: Client, file: str | None) -> None:
    hub.repositories["models/org/gated"] = {"config.json": b"{}"}
    hub.gated.add("models/org/gated")
    error, message = client("org/gated", file)
    assert error == "BadFile"
    assert "the repository is gated" in message
    assert f"hint: accept its conditions at {hub.url}/org/gated" in message


def test_a_name_that_is_none(client: Client) -> None:
    error, message = client("a/b/c", "x")
    assert error == "UsageError"
    assert "no name of a repository" in message


@pytest.mark.parametrize("whole", [False, True])
def test_a_download_that_breaks_leaves_nothing_half(hub: Hub, client: Client, home: Path, whole: bool) -> None:
    repository, weights = f"org/broken-{whole}", os.urandom(100_000)
    hub.repositories[f"models/{repository}"] = {"model.safetensors": weights}
    hub.cut = "model.safetensors"
    try:
        error, message = client(repository, None if whole else "model.safetensors")
    finally:
        hub.cut = None
    assert error == "BadFile"
    assert message.startswith(f"hub {repository}")
    assert "cannot be fetched" in message
    assert len(message.splitlines()) == 2
    assert leftovers(home, repository) == []
    found = Path(client(repository, None if whole else "model.safetensors"))  # and the next try is not misled
    assert (found / "model.safetensors" if whole else found).read_bytes() == weights


@pytest.mark.parametrize("file", [None, "config.json"])
def test_no_network_and_not_in_the_cache(hub: Hub, offline: Client, unconnected: Client, file: str | None) -> None:
    hub.repositories["models/org/far"] = {"config.json": b"{}"}
    error, message = offline("org/far", file)
    assert (error, "HF_HUB_OFFLINE is set" in message) == ("BadFile", True)
    error, message = unconnected("org/far", file)
    assert (error, "the hub cannot be reached" in message) == ("BadFile", True)


@pytest.mark.parametrize(("package", "form"), [("huggingface_hub", "model"), ("datasets", "data")])
def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, package: str, form: str) -> None:
    from taskmerge.checkpoint import hub as module

    monkeypatch.setattr(module, "find_spec", lambda name: None if name == package else find_spec(name))
    ask = {"model": resolve, "data": partial(module.load_hub_dataset, configuration=None)}[form]
    with pytest.raises(UsageError, match=rf"`{package}`\nhint: install `huggingface_hub`"):
        ask(HubPath("org/name"))


# --- data sets -------------------------------------------------------------------------------------------------


def test_a_data_set_with_splits(hub: Hub, client: Client, offline: Client) -> None:
    hub.repositories["datasets/org/texts"] = {
        "data/train-00000-of-00001.parquet": parquet(5),
        "data/test-00000-of-00002.parquet": parquet(2, 100),
        "data/test-00001-of-00002.parquet": parquet(1, 200),
    }
    wanted = [["text 100", "text 101", "text 200"], [0, 1, 0]]
    assert client("org/texts", do="hub") == wanted
    assert client("org/texts", do="hub", split="train") == [[f"text {n}" for n in range(5)], [0, 1, 0, 1, 0]]
    error, message = client("org/texts", do="hub", split="tran")
    assert error == "UsageError"
    assert message.endswith("unknown split `tran`\nhint: did you mean `train`?")
    error, message = client("org/texts", do="hub", configuration="other")
    assert error == "UsageError"
    assert "BuilderConfig 'other' not found" in message
    assert offline("org/texts", do="hub") == wanted


def test_a_file_of_a_data_set(hub: Hub, client: Client) -> None:
    hub.repositories["datasets/org/texts2"] = {"parts/a.parquet": parquet(3), "b.jsonl": b'{"text": "x", "label": 1}\n'}
    assert client("org/texts2", "parts/a.parquet", do="parquet") == [["text 0", "text 1", "text 2"], [0, 1, 0]]
    assert client("org/texts2", "b.jsonl", do="jsonl") == [["x"], [1]]


def test_data_sets_that_cannot_be_had(hub: Hub, client: Client, offline: Client, unconnected: Client) -> None:
    hub.repositories["datasets/org/empty"] = {"README.md": b"nothing"}
    hub.repositories["datasets/org/bad"] = {"test.parquet": b"PAR1" + bytes(np.arange(60, dtype=np.uint8))}
    hub.repositories["datasets/org/texts3"] = {"test.parquet": parquet(3)}
    hub.repositories["datasets/org/shut"] = {"test.parquet": parquet(3)}
    hub.gated.add("datasets/org/shut")
    for ask, name, says in (
        (client, "none", "doesn't exist"),
        (client, "empty", "contain any data files"),
        (client, "bad", "cannot be fetched"),
        (client, "shut", "gated"),
        (offline, "texts3", "HF_HUB_OFFLINE is set"),
        (unconnected, "texts3", "the hub cannot be reached"),
    ):
        error, message = ask(f"org/{name}", do="hub")
        assert error == "BadFile", message
        assert message.startswith(f"hub org/{name}: ")
        assert says in message
