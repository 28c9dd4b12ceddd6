"""`taskmerge inspect`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from taskmerge.cli import options, show, suite_page
from taskmerge.cli.options import option
from taskmerge.cli.program import app
from taskmerge.errors import BadFile

if TYPE_CHECKING:
    from taskmerge.data.suite_contents import SuiteInspection
    from taskmerge.experts.contents import Inspection, TensorEntry

TOLD = {
    "merge": "a merged checkpoint",
    "vector": "task vectors",
    "factors": "factored task vectors",
    "adapter": "an adapter",
}


@app.command()
def inspect(
    paths: Annotated[
        list[str], typer.Argument(help="Files, indexes, folders, globs, or suites (.yaml).", metavar="PATH...")
    ],
    tensors: Annotated[bool, option("List every tensor.", "--tensors")] = False,
    digest: Annotated[bool, option("Compute the content digest (reads everything).", "--digest")] = False,
    allow_pickle: options.AllowPickle = False,
    json: Annotated[bool, option("Print one JSON document: a list, one entry a path.", "--json")] = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Say what is in checkpoints: tensors, classes, dtypes, and provenance if taskmerge wrote them.

    Of a suite (.yaml) it says what it names, what was found of it and what is missing; then the exit code is 3.
    """
    from taskmerge.experts.inputs import named

    found = [_inspected(path, digest, allow_pickle) for _, path in named(paths)]
    for one in found:
        show.notices((), one.warnings, quiet)
    show.document([one.to_dict() for one in found]) if json else print(
        "\n\n".join(_said(one, tensors) for one in found)
    )
    if any(getattr(one, "missing", ()) for one in found):
        raise typer.Exit(BadFile.exit_code)


def _inspected(path: Path, digest: bool, allow_pickle: bool) -> "Inspection | SuiteInspection":
    if path.suffix in (".yaml", ".yml"):
        from taskmerge.data.suite_contents import inspect_suite

        return inspect_suite(path, allow_pickle=allow_pickle)
    from taskmerge.experts.contents import inspect

    return inspect(path, digest=digest, allow_pickle=allow_pickle)


def _said(one: "Inspection | SuiteInspection", tensors: bool) -> str:
    from taskmerge.experts.contents import Inspection

    return page(one, tensors) if isinstance(one, Inspection) else suite_page.page(one)


def page(one: "Inspection", tensors: bool) -> str:
    """One file as people read it."""
    kind = TOLD.get(one.kind, f"a {one.kind}")
    dtypes = ", ".join(f"{code} ({count})" for code, count in one.dtypes.items())
    files = f" in {len(one.files)} files" if len(one.files) > 1 else ""
    lines = [
        f"{one.path}: {kind}",
        f"  {len(one.tensors)} tensors, {one.parameters:,} parameters, {show.size(one.bytes)}{files}; {dtypes}",
    ]
    lines += [f"  digest {one.digest}"] if one.digest else []
    lines += [f"  {name}: {value}" for name, value in {**_provenance(one), **(one.adapter or {})}.items()]
    lines += [f"  `{second}` is tied to `{first}`" for second, first in one.tied.items()]
    lines += ["", *_classes(one)]
    return "\n".join(map(show.plain, [*lines, "", *_listed(one.tensors)] if tensors else lines))


def _provenance(one: "Inspection") -> dict[str, Any]:
    """What taskmerge wrote into the file, in the order of interest."""
    record = dict(one.provenance or {})
    recipe = dict(record.get("recipe") or {})
    options = ", ".join(f"{name} {value}" for name, value in (recipe.get("options") or {}).items() if value is not None)
    said: dict[str, Any] = {}
    if recipe:
        said["method"] = f"{recipe.get('method')} ({options})" if options else recipe.get("method")
        told = ("taskmerge", "method", "options")
        said |= {key: value for key, value in recipe.items() if key not in told and value}
    said |= {key: record[key] for key in ("task", "origin", "origin_digest", "understood") if record.get(key)}
    for task in record.get("tasks") or ():
        said[f"task {task.get('name')}"] = task.get("digest", "not digested")
    if record.get("base"):
        said["base"] = record["base"].get("digest")
    said |= {f"made of {task}": digest for task, digest in (record.get("experts") or {}).items()}
    if record.get("version"):
        said["written by"] = f"taskmerge {record['version']} on {record.get('device', 'cpu')}"
    return said


def _classes(one: "Inspection") -> list[str]:
    """The table of tensor classes."""
    lines = [f"  {'class':<11}{'tensors':>8}{'parameters':>16}{'share':>8}  spectral methods"]
    for row in one.classes:
        some = f"truncate {row.truncated}" if row.truncated else "–"
        said = "truncate them" if row.truncated == row.tensors else some
        lines.append(f"  {row.kind:<11}{row.tensors:>8}{row.parameters:>16,}{row.share:>8.1%}  {said}")
    return lines


def _listed(tensors: "tuple[TensorEntry, ...]") -> list[str]:
    """Every tensor, the name last: it may be long."""
    lines = [f"  {'dtype':<9}{'shape':<20}{'class':<11}name"]
    for one in tensors:
        rank = "" if one.rank is None else f"  (rank {one.rank})"
        lines.append(f"  {one.dtype:<9}{list(one.shape)!s:<20}{one.kind:<11}{one.name}{rank}")
    return lines
