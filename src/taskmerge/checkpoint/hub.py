"""Places on a hub as paths on this machine: models and data sets, fetched once into the hub client's own cache."""

import atexit
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from taskmerge.checkpoint import hub_client
from taskmerge.errors import BadFile, TaskmergeError, UsageError
from taskmerge.specs.suite import HubPath, Location

WANTED = ("*.safetensors", "*.json", "*.txt", "*.txt.gz", "*.model")
"""What is fetched of a whole repository: weights, configurations and tokenizers, never pickles or code."""

WANTED_DATA = (
    "*.parquet", "*.arrow", "*.json", "*.jsonl", "*.jsonl.gz", "*.csv", "*.csv.gz", "*.tsv", "*.tsv.gz", "*.npz",
    "*.jpg", "*.jpeg", "*.png", "*.ppm", "*.bmp", "*.pgm", "*.tif", "*.tiff", "*.webp",
)  # fmt: skip
"""What is fetched of a whole repository of data: files that a split can be read from."""

PATIENCE = 120.0
"""Seconds in which something has to come, and the longest wait that a hub may ask for."""
PACE = 1.0
"""By which the clients' waits between attempts are multiplied."""
EXTRA = "install `huggingface_hub`, and `datasets` for data sets"
_UNREACHABLE = ("is not in the cache, and the hub cannot be reached", "check the network and HF_ENDPOINT")


def resolve(location: Location) -> Path:
    """The path of a file or folder: a path is itself; a file or repository of models is fetched into the cache.

    The client's own conventions hold: HF_ENDPOINT, HF_HOME, HF_TOKEN, HF_HUB_OFFLINE, and what is in the cache is not
    fetched again. Errors: `BadFile` that names repository and file, whatever failed or did not come within `PATIENCE`;
    `UsageError` without the extra `hub`.
    """
    return location if isinstance(location, Path) else _fetched(location, "model", WANTED)


def resolve_data(location: HubPath) -> Path:
    """As `resolve`, for a file of a data-set repository, or all its data files."""
    return _fetched(location, "dataset", WANTED_DATA)


def load_hub_dataset(location: HubPath, *, configuration: str | None) -> Any:
    """A data set of a hub, as `datasets.DatasetDict` with all its splits; errors as in `resolve`."""
    _check_installed("huggingface_hub", location)
    _check_installed("datasets", location)
    answer = _asked({"do": "data set", "configuration": configuration}, location, "dataset")
    datasets = import_module("datasets")
    return datasets.DatasetDict({
        name: datasets.concatenate_datasets([datasets.Dataset.from_file(file) for file in files])
        for name, files in answer["splits"].items() if files
    })  # fmt: skip


def _fetched(location: HubPath, kind: str, wanted: Sequence[str]) -> Path:
    _check_installed("huggingface_hub", location)
    do = "folder" if location.file is None else "file"
    return Path(_asked({"do": do, "file": location.file, "wanted": list(wanted)}, location, kind)["found"])


def _check_installed(package: str, location: HubPath) -> None:
    if find_spec(package) is None:
        raise UsageError(f"reading from a hub needs the package `{package}`", where=str(location), hint=EXTRA)


# --- the process that asks -------------------------------------------------------------------------------------


class _Client:
    """A process that asks the hub (`hub_client.py`), one question at a time; it ends with this process."""

    def __init__(self) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="taskmerge-hub-")
        command = [sys.executable, "-P", hub_client.__file__, self._scratch.name]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, question: Mapping[str, Any]) -> dict[str, Any] | None:
        """The answer; None where the process has ended without one."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        said = self._process.stdout.readline()
        return json.loads(said) if said.endswith("\n") else None

    def end(self) -> None:
        """Ends the process, whatever it is at."""
        self._process.kill()
        self._process.communicate()
        self._scratch.cleanup()


_asking = threading.Lock()
_clients: dict[tuple[object, ...], _Client] = {}  # the one of this process and its environment, once there is one


def _asked(question: Mapping[str, Any], location: HubPath, kind: str) -> dict[str, Any]:
    """What the hub answers, or the error that says why it does not."""
    about = {"where": str(location), "repository": location.repository, "revision": location.revision, "kind": kind}
    key = (os.getpid(), *sorted(item for item in os.environ.items() if item[0].startswith(("HF_", "HUGGING", "XDG_"))))
    with _asking:
        client = _clients.get(key) or _started(key, location)
        try:
            answer = client.ask({**question, **about, "patience": PATIENCE, "pace": PACE})
        except BaseException:
            _end(key)
            raise
        if answer is not None and answer.keys() & {"found", "splits"}:
            return answer
        _end(key)  # what it has learnt of a hub that something is wrong with goes with it
    raise _explained(answer or {}, location, kind)


def _started(key: tuple[object, ...], location: HubPath) -> _Client:
    """A client for this environment, in place of that for another one."""
    _end_all()
    try:
        _clients[key] = client = _Client()
    except OSError as error:
        what, hint = f"cannot be fetched: {error.strerror or error}", "set TMPDIR to a folder that can be written to"
        raise BadFile(what, where=str(location), hint=hint) from error
    return client


def _end(key: tuple[object, ...]) -> None:
    client = _clients.pop(key, None)
    if client is not None:
        client.end()


@atexit.register
def _end_all() -> None:
    for key in [key for key in _clients if key[0] == os.getpid()]:  # others are the parent's of a fork
        _end(key)


# --- what went wrong -------------------------------------------------------------------------------------------


def _explained(answer: Mapping[str, Any], location: HubPath, kind: str) -> TaskmergeError:
    """The first known cause says what to do, else the client's first line. By name: versions differ in classes."""
    causes: list[tuple[list[str], str, str]] = answer.get("causes") or [([], "", "the process that asks has ended")]
    names, text = {name for classes, _, _ in causes for name in classes}, causes[0][1]
    if "OfflineModeIsEnabled" in text:  # `datasets` drops the cause and says its class
        names.add("OfflineModeIsEnabled")
    where, home = str(location), os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    page = f"{home}/{'datasets/' if kind == 'dataset' else ''}{location.repository}"
    if "HFValidationError" in names:
        return UsageError(f"no name of a repository: {causes[0][2]}", where=where, hint="such as `hub: org/name`")
    if kind == "dataset" and "ValueError" in causes[0][0] and "config" in text.lower():
        hint = "choose one with `configuration: NAME`"
        return UsageError(" ".join(text.split()), where=where, hint=hint)
    if answer.get("outside") and "PermissionError" in names:
        what = f"an answer of the hub names a place outside the cache: {answer['outside']}"
        return BadFile(what, where=where, hint=f"nothing was written there; is {home} the hub that you mean?")
    if "silent" in answer:
        what = f"nothing came for {answer['silent']:.0f} s{_last(answer)}"
        return BadFile(what, where=where, hint="check the network and HF_ENDPOINT, and try again later")
    if "swollen" in answer:
        what = f"an answer of the hub takes more than {answer['swollen'] / 1e9:.0f} GB of memory"
        return BadFile(what, where=where, hint=f"is {home} the hub that you mean?")
    for name, what, hint in (
        ("TooLong", f"the hub is not to be had: {causes[0][2]}", "try again then"),
        ("Longer", causes[0][2], f"try again; is {home} the hub that you mean?"),
        ("GatedRepoError", "the repository is gated", f"accept its conditions at {page}, then `hf auth login`"),
        ("RevisionNotFoundError", f"the repository has no revision `{location.revision}`", f"see {page}"),
        ("RepositoryNotFoundError", "no such repository, or a private one", f"see {page}; private: `hf auth login`"),
        ("OfflineModeIsEnabled", "is not in the cache, and HF_HUB_OFFLINE is set", "unset it once to fetch this"),
        ("RemoteEntryNotFoundError", "the repository has no such file", f"see {page}"),
        ("DataFilesNotFoundError", "the repository has no data files", f"see {page}"),
        ("DatasetNotFoundError", causes[0][2], f"see {page}; private or gated: `hf auth login`"),
        ("ConnectError", *_UNREACHABLE),
        ("ConnectTimeout", *_UNREACHABLE),
        ("ConnectionError", *_UNREACHABLE),
    ):
        if name in names:
            return BadFile(what, where=where, hint=hint)
    said = " / ".join(dict.fromkeys(line for _, _, line in causes[:2]))
    return BadFile(f"cannot be fetched: {said}", where=where, hint="try again later, or fetch it by hand")


def _last(answer: Mapping[str, Any]) -> str:
    """What the client said last."""
    return f"; the client's last words: {answer['said']}" if answer.get("said") else ""
