"""Places on a hub as paths on this machine: models and data sets, fetched once into the hub client's own cache."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from taskmerge.errors import BadFile, TaskmergeError, UsageError
from taskmerge.specs.suite import HubPath, Location

WANTED = ("*.safetensors", "*.json", "*.txt", "*.txt.gz", "*.model")
"""What is fetched of a whole repository: weights, configurations and tokenizers, never pickles or code."""

WANTED_DATA = (
    "*.parquet", "*.arrow", "*.json", "*.jsonl", "*.jsonl.gz", "*.csv", "*.csv.gz", "*.tsv", "*.tsv.gz", "*.npz",
    "*.jpg", "*.jpeg", "*.png", "*.ppm", "*.bmp", "*.pgm", "*.tif", "*.tiff", "*.webp",
)  # fmt: skip
"""What is fetched of a whole repository of data: files that a split can be read from."""

EXTRA = "install `huggingface_hub`, and `datasets` for data sets"
_UNREACHABLE = ("is not in the cache, and the hub cannot be reached", "check the network and HF_ENDPOINT")


def resolve(location: Location) -> Path:
    """The path of a file or folder: a path is itself; a file or repository of models is fetched into the cache.

    The client's own conventions hold: HF_ENDPOINT, HF_HOME, HF_TOKEN, HF_HUB_OFFLINE, and what is in the cache is not
    fetched again. Errors: `BadFile` that names repository and file, whatever failed; `UsageError` without the
    extra `hub`.
    """
    return location if isinstance(location, Path) else _fetched(location, "model", WANTED)


def resolve_data(location: HubPath) -> Path:
    """As `resolve`, for a file of a data-set repository, or all its data files."""
    return _fetched(location, "dataset", WANTED_DATA)


def load_hub_dataset(location: HubPath, *, configuration: str | None) -> Any:
    """A data set of a hub, as `datasets.DatasetDict` with all its splits; errors as in `resolve`."""
    library = _installed("datasets", location)
    with _no_bars_in_logs(library), _one_message(location, "dataset"):
        return library.load_dataset(
            location.repository, configuration, revision=location.revision, trust_remote_code=False
        )  # versions before 4 run, or ask whether to run, a script that a data set brings along


def _fetched(location: HubPath, kind: str, wanted: Sequence[str]) -> Path:
    client = _installed("huggingface_hub", location)
    with _no_bars_in_logs(client), _one_message(location, kind):
        if location.file is not None:
            found = client.hf_hub_download(
                location.repository, location.file, revision=location.revision, repo_type=kind
            )  # fmt: skip
        else:
            found = client.snapshot_download(
                location.repository, revision=location.revision, repo_type=kind, allow_patterns=list(wanted)
            )
    return Path(found)


def _installed(package: str, location: HubPath) -> Any:
    try:
        return import_module(package)
    except ImportError:
        raise UsageError(f"reading from a hub needs the package `{package}`", where=str(location), hint=EXTRA) from None


@contextmanager
def _no_bars_in_logs(library: Any) -> Iterator[None]:
    """Without the library's progress bars where nobody watches them: standard error is no terminal."""
    bars = import_module(f"{library.__name__}.utils")
    if sys.stderr.isatty() or bars.are_progress_bars_disabled():
        yield
        return
    bars.disable_progress_bars()
    try:
        yield
    finally:
        bars.enable_progress_bars()


@contextmanager
def _one_message(location: HubPath, kind: str) -> Iterator[None]:
    """Whatever the client raises (its errors have no common base) as one `BadFile` or `UsageError`."""
    try:
        yield
    except Exception as error:
        raise _explained(error, location, kind) from error


def _explained(error: Exception, location: HubPath, kind: str) -> TaskmergeError:
    """The first known cause says what to do, else the client's first line. By name: versions differ in classes."""
    names = {one.__name__ for cause in _causes(error) for one in type(cause).__mro__}
    if "OfflineModeIsEnabled" in str(error):  # `datasets` drops the cause and says its class
        names.add("OfflineModeIsEnabled")
    where, home = str(location), os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    page = f"{home}/{'datasets/' if kind == 'dataset' else ''}{location.repository}"
    if "HFValidationError" in names:
        return UsageError(f"no name of a repository: {_first_line(error)}", where=where, hint="such as `hub: org/name`")
    if kind == "dataset" and isinstance(error, ValueError) and "config" in str(error).lower():
        hint = "choose one with `configuration: NAME`"
        return UsageError(" ".join(str(error).split()), where=where, hint=hint)
    for name, what, hint in (
        ("GatedRepoError", "the repository is gated", f"accept its conditions at {page}, then `hf auth login`"),
        ("RevisionNotFoundError", f"the repository has no revision `{location.revision}`", f"see {page}"),
        ("RepositoryNotFoundError", "no such repository, or a private one", f"see {page}; private: `hf auth login`"),
        ("OfflineModeIsEnabled", "is not in the cache, and HF_HUB_OFFLINE is set", "unset it once to fetch this"),
        ("RemoteEntryNotFoundError", "the repository has no such file", f"see {page}"),
        ("DataFilesNotFoundError", "the repository has no data files", f"see {page}"),
        ("DatasetNotFoundError", _first_line(error), f"see {page}; private or gated: `hf auth login`"),
        ("ConnectError", *_UNREACHABLE),
        ("ConnectTimeout", *_UNREACHABLE),
        ("ConnectionError", *_UNREACHABLE),
    ):
        if name in names:
            return BadFile(what, where=where, hint=hint)
    said = " / ".join(dict.fromkeys(_first_line(cause) for cause in list(_causes(error))[:2]))
    return BadFile(f"cannot be fetched: {said}", where=where, hint="try again later, or fetch it by hand")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what led to it, outermost first."""
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        found = found.__cause__ or found.__context__


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
