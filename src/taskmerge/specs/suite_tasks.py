"""The `tasks:` of a suite: kinds, metrics, class names, templates, heads, and what must fit together."""

from collections import Counter
from functools import cache
from pathlib import Path
from string import Formatter
from typing import Literal, cast

from taskmerge.errors import listed, nearest, unknown_name
from taskmerge.specs.document import Document, read_document
from taskmerge.specs.sections import EXAMPLE, Problems, Section
from taskmerge.specs.suite import DENSE, BackboneSpec, Location, Split, Task, TaskKind
from taskmerge.specs.suite_sources import read_location, read_split

FOLDER = Path(__file__).parents[1] / "suites"
METRICS: dict[str, tuple[str, ...]] = {
    "classification": ("accuracy", "mean_per_class", "matthews", "f1"),
    "regression": ("pearson", "spearman", "pearson+spearman"),
    "segmentation": ("miou", "pixel_accuracy"),
    "depth": ("abs_error", "rel_error"),
    "normals": ("angle",),
}
"""The metrics that fit a kind of task, its default first."""

SHARED = ("title", "kind", "metric", "classes", "templates", "data")
KEYS = ("catalogue", "expert", "head", *SHARED[1:])


def catalogue() -> dict[str, Path]:
    """The tasks that a suite may name by `catalogue:`, name -> file."""
    return {file.stem: file for file in sorted((FOLDER / "tasks").glob("*.yaml"))}


def names_of(name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Class names and prompt templates of a task of the catalogue."""
    known = catalogue()
    if name not in known:
        raise unknown_name("task of the catalogue", name, known)
    problems = Problems(str(known[name]))
    entry = _entry(known[name])
    section = Section(entry, problems, entry.values)
    found = section.texts("classes"), section.texts("templates")
    problems.settle()
    return found


def read_tasks(top: Section, backbone: BackboneSpec, folder: Path) -> tuple[Task, ...]:
    hint = "for example `tasks: {mnist: {expert: mnist.safetensors, …}}`"
    section = top.section("tasks", hint)
    if section is None:
        if "tasks" not in top.values:
            top.bad(None, "`tasks` is missing", hint)
        return ()
    found = [
        (name, section.section(name, "a task names its expert, head, classes and data")) for name in section.values
    ]
    return tuple(_task(name, one, backbone, folder) for name, one in found if one is not None)


def _task(name: str, own: Section, backbone: BackboneSpec, folder: Path) -> Task:
    """One task; what it does not say itself comes from its entry of the catalogue, if it names one."""
    own.only(KEYS)
    shared = _shared(own)
    kind, metric = _kind(own, shared, backbone)
    classes, templates = _given(own, shared, "classes"), _given(own, shared, "templates")
    task = Task(
        name=name,
        expert=read_location(own, "expert", folder),
        head=_head(own, folder),
        kind=kind,
        metric=metric,
        classes=classes.texts("classes"),
        templates=templates.texts("templates"),
        splits=_splits(_given(own, shared, "data"), name, folder),
        place=own.place(),
    )
    _check_classes(classes, task, "classes" in classes.values)
    _check_templates(templates, task, "templates" in templates.values)
    _check_head(own, task, backbone)
    return task


def _shared(own: Section) -> Section | None:
    """The catalogue's entry that a task names."""
    name = own.text("catalogue")
    if name is None:
        return None
    known = catalogue()
    if name not in known:
        close = nearest(name, known)
        hint = f"did you mean `{close}`?" if close else f"known: {', '.join(known)}"
        own.bad("catalogue", f"the catalogue has no task `{name}`", hint)
        return None
    document = _entry(known[name])
    return Section(document, Problems(str(known[name]), own.problems.found), document.values).only(SHARED)


@cache
def _entry(path: Path) -> Document:
    """A file of the package, which does not change while the program runs."""
    return read_document(path, "task of the catalogue", EXAMPLE)


def _given(own: Section, shared: Section | None, key: str) -> Section:
    """Who has the key: the task itself before the catalogue; the task where nobody has it."""
    return shared if shared is not None and key not in own.values and key in shared.values else own


def _kind(own: Section, shared: Section | None, backbone: BackboneSpec) -> tuple[TaskKind, str]:
    """The kind of task and a metric that fits it."""
    kinds = tuple(METRICS)
    kind = _given(own, shared, "kind").choice("kind", kinds, "classification")
    if kind in DENSE and backbone.library in ("open_clip", "transformers"):
        own.bad("kind", f"{kind} needs dense features", "use `library: torchvision`, `model: resnet50`")
    section = _given(own, shared, "metric")
    metric = section.text("metric") or METRICS[kind][0]
    if metric not in METRICS[kind]:
        every = [one for names in METRICS.values() for one in names]
        what = f"`{metric}` is no metric of {kind}" if metric in every else f"unknown metric `{metric}`"
        close = None if metric in every else nearest(metric, METRICS[kind])
        fitting = f"{kind} has {', '.join(METRICS[kind])}"
        section.bad("metric", what, f"did you mean `{close}`? {fitting}" if close else fitting)
    return cast(TaskKind, kind), metric


def _head(own: Section, folder: Path) -> Location | Literal["zero_shot", "expert"]:
    value = own.values.get("head")
    if value in ("zero_shot", "expert"):
        return cast(Literal["zero_shot", "expert"], value)
    if "head" not in own.values:
        own.bad(None, "`head` is missing", "a file of `weight` (and `bias`), `zero_shot`, or `expert`")
    return read_location(own, "head", folder) or folder


def _splits(section: Section, name: str, folder: Path) -> dict[str, Split]:
    hint = "for example `data: {test: {file: data.npz, x: test_x, y: test_y}}`"
    inner = section.section("data", hint)
    if inner is None:
        if "data" not in section.values:
            section.bad(None, f"the task `{name}` has no `data`", hint)
        return {}
    found = {key: inner.section(key, hint) for key in inner.values}
    return {key: read_split(one, folder) for key, one in found.items() if one is not None}


def _check_classes(section: Section, task: Task, given: bool) -> None:
    """Class names: needed to know what labels and outputs mean, each once, and only where there are classes."""
    if task.kind in ("regression", "depth", "normals"):
        if given:
            section.bad("classes", f"{task.kind} has no classes", "leave them out, or check `kind`")
        return
    if not given:
        if task.kind == "classification" and task.head != "expert":
            section.bad(None, "`classes` are missing", "list the class names in the order of the labels")
        return
    listed_ones = section.values["classes"]
    if len(task.classes) < 2 and not (isinstance(listed_ones, list) and len(listed_ones) >= 2):
        section.bad("classes", "there are fewer than two classes", "list the class names in the order of the labels")
    if task.metric == "f1" and len(task.classes) > 2:
        section.bad("metric", f"f1 is of two classes, not {len(task.classes)}", "`mean_per_class` is of any number")
    twice = [name for name, count in Counter(task.classes).items() if count > 1]
    if twice:
        section.bad("classes", f"{listed(twice, 3)} stand(s) twice", "every class has its own name")


def _check_templates(section: Section, task: Task, given: bool) -> None:
    hint = "such as 'a photo of a {}.'; a brace of the text itself is written twice"
    for index, template in enumerate(task.templates):
        try:
            fields = [name for _, name, _, _ in Formatter().parse(template) if name is not None]
            template.format("class")
        except (ValueError, IndexError, KeyError, AttributeError, TypeError):
            what = f"the template `{template}` has other fields or braces than one {{}} for the class's name"
            section.bad(f"templates.{index}", what, hint)
            continue
        if fields != [""]:
            section.bad(f"templates.{index}", f"the template `{template}` has no {{}} for the class's name", hint)
    if task.head == "zero_shot" and not given:
        section.bad(None, "a zero-shot head needs `templates`", "such as `templates: ['a photo of a {}.']`")


def _check_head(own: Section, task: Task, backbone: BackboneSpec) -> None:
    """Heads made of other things need those things."""
    if task.head == "expert" and "expert" not in own.values:
        own.bad("head", "the head is the expert's own, and there is no `expert`", "name the expert, or a head's file")
    if task.head != "zero_shot":
        return
    if task.kind != "classification":
        own.bad("head", f"a zero-shot head is made of class names; {task.kind} has none", "name a head's file")
    if backbone.library == "torchvision":
        own.bad("head", "a zero-shot head needs a text tower; torchvision has none", "name a head's file")
    if backbone.library == "transformers" and backbone.tokenizer is None:
        own.bad("head", "a zero-shot head needs a tokenizer", "add `tokenizer:` to the backbone")
