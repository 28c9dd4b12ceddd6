"""What an evaluation reads, and that none of its outputs takes the place of it, with --overwrite neither."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from taskmerge.checkpoint.identity import FileId, file_id, file_ids
from taskmerge.checkpoint.weights import find_weights
from taskmerge.documents import parse_json, read_regular
from taskmerge.errors import BadFile, TaskmergeError, UsageError
from taskmerge.evaluation.results import KIND, LARGEST
from taskmerge.specs.suite import Suite

BENCHMARK_KEY = "model_fullname"
"""A key of every file for clip_benchmark."""
CSV_START = b"dataset,model,pretrained,"


@dataclass(frozen=True)
class Reads:
    """The files that an evaluation reads, and the folders of which it reads what fits (a model's, pictures)."""

    files: Mapping[FileId, Path]
    folders: frozenset[FileId]

    def check_kept(self, outputs: Iterable[Path]) -> None:
        """Raises `UsageError` for an output that would replace what is read; earlier reports in a folder may go."""
        for path in outputs:
            if file_id(path) in self.files or (path.is_file() and self._holds(path) and not _is_report(path)):
                what, hint = "is an input of this evaluation, which would be lost", "choose another name"
                raise UsageError(what, where=str(path), hint=hint)

    def _holds(self, path: Path) -> bool:
        """Whether a path lies in one of the folders, by its name or by where a link leads."""
        parents = (*path.absolute().parents, *path.resolve().parents)
        return any(file_id(parent) in self.folders for parent in parents)


def reads(suite: Suite, checkpoints: Sequence[Path], heads: Path | None) -> Reads:
    """All that is read when `checkpoints` are evaluated on a suite, with `heads` in place of its own."""
    places = [*_named(suite), *checkpoints, *([heads] if heads else [])]
    existing = [place for place in places if place.exists()]
    folders = [place for place in existing if place.is_dir()]
    files = [file for place in existing for file in _files_of(place)]
    return Reads(file_ids(files), frozenset(file_ids(folders)))


def _named(suite: Suite) -> Iterator[Path]:
    """The files and folders on this machine that a suite names, and its own."""
    backbone, tokenizer = suite.backbone, suite.backbone.tokenizer
    named: list[object] = [Path(suite.where), backbone.model, suite.base]
    named += [tokenizer.bpe, tokenizer.folder] if tokenizer else []
    if isinstance(backbone.model, Path):
        named.append(backbone.model.with_name("preprocessor_config.json"))  # read from beside a configuration file
    for task in suite.tasks:
        named += [task.expert, task.head, *(split.location for split in task.splits.values())]
    yield from (place for place in named if isinstance(place, Path))


def _files_of(place: Path) -> list[Path]:
    """A file, or the weight files and the index that a path stands for."""
    try:
        weights = find_weights(place)
    except TaskmergeError:  # no model: data, a tokenizer
        return [] if place.is_dir() else [place]
    return [*([] if place.is_dir() else [place]), *weights.files, *([weights.index] if weights.index else [])]


def _is_report(path: Path) -> bool:
    """Whether a file is what an evaluation wrote, as JSON or as CSV."""
    try:
        content = read_regular(path, LARGEST)
        if content.startswith(CSV_START):
            return True
        document = parse_json(content)
    except (BadFile, ValueError):
        return False
    return isinstance(document, dict) and (document.get("report") == KIND or BENCHMARK_KEY in document)
