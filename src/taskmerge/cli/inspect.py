"""`taskmerge inspect`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from taskmerge.cli import options, show, suite_page
from taskmerge.cli.options import option
from taskmerge.cli.program import app
from taskmerge.errors import BadFile, plain

if TYPE_CHECKING:
    from taskmerge.data.suite_contents import SuiteInspection
    from taskmerge.experts.contents import Inspection, TensorEntry

KINDS = {
    "merge": "a merged checkpoint",
    "task": "one task's checkpoint, out of a merged one",
    "coefficients": "coefficients that adaptation has learnt",
    "masks": "masks of components that adaptation has learnt",
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
    from taskmerge.experts.arguments import named_files

    inspections = [_inspected(path, digest, allow_pickle) for _, path in named_files(paths, "inspect")]
    for inspection in inspections:
        show.notices(getattr(inspection, "notes", ()), inspection.warnings, quiet)
    if json:
        show.document([inspection.to_dict() for inspection in inspections])
    else:
        show.page("\n\n".join(_page(inspection, tensors) for inspection in inspections).split("\n"))
    if any(getattr(inspection, "missing", ()) for inspection in inspections):
        raise typer.Exit(BadFile.exit_code)


def _inspected(path: Path, digest: bool, allow_pickle: bool) -> "Inspection | SuiteInspection":
    if path.suffix in (".yaml", ".yml"):
        from taskmerge.data.suite_contents import inspect_suite

        return inspect_suite(path, allow_pickle=allow_pickle)
    from taskmerge.experts.contents import inspect

    return inspect(path, digest=digest, allow_pickle=allow_pickle)


def _page(inspection: "Inspection | SuiteInspection", tensors: bool) -> str:
    from taskmerge.experts.contents import Inspection

    return page(inspection, tensors) if isinstance(inspection, Inspection) else suite_page.page(inspection)


def page(file: "Inspection", tensors: bool) -> str:
    """One file as people read it."""
    kind = KINDS.get(file.kind, f"a {file.kind}")
    dtypes = ", ".join(f"{code} ({count})" for code, count in file.dtypes.items())
    files = f" in {len(file.files)} files" if len(file.files) > 1 else ""
    lines = [
        f"{file.path}: {kind}",
        f"  {len(file.tensors)} tensors, {file.parameters:,} parameters, {show.size(file.bytes)}{files}; {dtypes}",
    ]
    lines += [f"  digest {file.digest}"] if file.digest else []
    lines += [f"  {name}: {value}" for name, value in {**_provenance(file), **(file.adapter or {})}.items()]
    lines += [f"  `{second}` is tied to `{first}`" for second, first in file.tied.items()]
    lines += ["", *_classes(file)]
    return "\n".join(map(plain, [*lines, "", *_listed(file.tensors)] if tensors else lines))


def _provenance(file: "Inspection") -> dict[str, Any]:
    """What taskmerge wrote into the file, in the order of interest."""
    record = dict(file.provenance or {})
    recipe = dict(record.get("recipe") or {})
    options = ", ".join(f"{name} {value}" for name, value in (recipe.get("options") or {}).items() if value is not None)
    entries: dict[str, Any] = {}
    if recipe:
        entries["method"] = f"{recipe.get('method')} ({options})" if options else recipe.get("method")
        more = {key: value for key, value in recipe.items() if key not in ("taskmerge", "method", "options")}
        entries |= {key: value for key, value in more.items() if value}
    entries |= {key: record[key] for key in ("task", "origin", "origin_digest", "understood") if record.get(key)}
    for task in record.get("tasks") or ():
        entries[f"task {task.get('name')}"] = task.get("digest", "not digested")
    if record.get("base"):
        entries["base"] = record["base"].get("digest")
    entries |= {f"made of {task}": digest for task, digest in (record.get("experts") or {}).items()}
    if record.get("version"):
        entries["written by"] = f"taskmerge {record['version']} on {record.get('device', 'cpu')}"
    return entries


def _classes(file: "Inspection") -> list[str]:
    """The table of tensor classes."""
    lines = [f"  {'class':<11}{'tensors':>8}{'parameters':>16}{'share':>8}  spectral methods"]
    for row in file.classes:
        some = f"truncate {row.truncated}" if row.truncated else "–"
        treatment = "truncate them" if row.truncated == row.tensors else some
        lines.append(f"  {row.kind:<11}{row.tensors:>8}{row.parameters:>16,}{row.share:>8.1%}  {treatment}")
    return lines


def _listed(tensors: "tuple[TensorEntry, ...]") -> list[str]:
    """Every tensor, the name last: it may be long."""
    lines = [f"  {'dtype':<9}{'shape':<20}{'class':<11}name"]
    for tensor in tensors:
        rank = "" if tensor.rank is None else f"  (rank {tensor.rank})"
        lines.append(f"  {tensor.dtype:<9}{list(tensor.shape)!s:<20}{tensor.kind:<11}{tensor.name}{rank}")
    return lines
