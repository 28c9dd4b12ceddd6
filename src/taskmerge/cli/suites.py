"""`taskmerge suites`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from taskmerge.cli import options, show
from taskmerge.cli.options import option
from taskmerge.cli.program import app

if TYPE_CHECKING:
    from taskmerge.specs.suite import Suite

Names = tuple[tuple[str, ...], tuple[str, ...]]


@app.command()
def suites(
    name: Annotated[
        str | None,
        typer.Argument(help="A suite, to see it in full.", autocompletion=options.completion("suites")),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(help="Class names and templates of a task: of the suite, or of the catalogue.", metavar="TASK"),
    ] = None,
    yaml: Annotated[bool, option("Print the suite's file, to make one's own of it.", "--yaml")] = False,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """List the suites of the papers that come with the package, or show one."""
    from taskmerge.errors import UsageError
    from taskmerge.specs.suite_file import load_suite, packaged
    from taskmerge.specs.suite_tasks import names_of

    if yaml and (json or classes is not None or name is None):
        hint = "give the name of a suite, and --yaml alone"
        raise UsageError("prints the file of one suite and nothing else", where="--yaml", hint=hint)
    if classes is not None:
        names, templates = names_of(classes) if name is None else _names_in(load_suite(_path(name)), classes)
        entry = {"name": classes, "classes": names, "templates": templates}
        show.document(entry) if json else print(_names_page(classes, names, templates))
    elif name is None:
        every = [load_suite(path) for path in packaged().values()]
        show.document([_described(suite) for suite in every]) if json else show.page(_lines(every))
    elif yaml:
        print(_path(name).read_text(encoding="utf-8"), end="")
    else:
        suite = load_suite(_path(name))
        show.document(_in_full(suite)) if json else show.page(_page(suite))


def _path(name: str) -> Path:
    """The file of a packaged suite."""
    from taskmerge.errors import unknown_name
    from taskmerge.specs.suite_file import packaged

    files = packaged()
    if name not in files:
        raise unknown_name("suite", name, files)
    return files[name]


def _names_in(suite: "Suite", name: str) -> Names:
    """Class names and templates of a suite's task."""
    from taskmerge.errors import unknown_name

    for task in suite.tasks:
        if task.name == name:
            return task.classes, task.templates
    raise unknown_name("task", name, [task.name for task in suite.tasks], where=suite.name)


def _described(suite: "Suite") -> dict[str, object]:
    """A suite in a few plain values."""
    return {
        "name": suite.name,
        "library": suite.backbone.library,
        "model": str(suite.backbone.model),
        "tasks": [task.name for task in suite.tasks],
    }


def _in_full(suite: "Suite") -> dict[str, object]:
    """Everything that a suite says, as plain values."""
    tasks = [
        {
            "name": task.name,
            "expert": None if task.expert is None else str(task.expert),
            "head": str(task.head),
            "kind": task.kind,
            "metric": task.metric,
            "classes": list(task.classes),
            "templates": list(task.templates),
            "splits": {name: str(split.location) for name, split in task.splits.items()},
        }
        for task in suite.tasks
    ]
    base = None if suite.base is None else str(suite.base)
    more = {"file": suite.where, "base": base, "qkv": suite.qkv, "notes": list(suite.notes), "tasks": tasks}
    return {**_described(suite), **more}


def _names_page(name: str, classes: tuple[str, ...], templates: tuple[str, ...]) -> str:
    """Class names and templates, one a line."""
    counted = f"{len(templates)} template{'' if len(templates) == 1 else 's'}"
    lines = [f"{name}: {len(classes)} classes, {counted}", ""]
    lines += [f"  {template}" for template in templates]
    lines += ["", *(f"  {index:>3}  {label}" for index, label in enumerate(classes))]
    return "\n".join(lines)


def _lines(every: "list[Suite]") -> list[str]:
    """The list of suites."""
    lines = [f"{'suite':<21}{'tasks':>6}  backbone"]
    lines += [
        f"{suite.name:<21}{len(suite.tasks):>6}  {suite.backbone.library} {suite.backbone.model}" for suite in every
    ]
    return [*lines, "", "`taskmerge suites NAME` shows one in full; `--suite NAME` takes it."]


def _page(suite: "Suite") -> list[str]:
    """One suite: where things come from, a line a task, and what to know before using it."""
    base = suite.base or "none"
    lines = [f"{suite.name}: {suite.backbone.library} {suite.backbone.model}, base {base}, qkv {suite.qkv}", ""]
    width = max(len(task.name) for task in suite.tasks) + 2
    lines.append(f"  {'task':<{width}}{'classes':>7}{'templates':>11}  {'metric':<17}{'head':<11}expert")
    for task in suite.tasks:
        head = task.head if isinstance(task.head, str) else "file"
        columns = f"{len(task.classes):>7}{len(task.templates):>11}  {task.metric:<17}{head:<11}{task.expert or 'none'}"
        lines.append(f"  {task.name:<{width}}{columns}")
    return [*lines, "", *(f"  note: {note}" for note in suite.notes)]
