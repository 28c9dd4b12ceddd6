"""An inspected suite as people read it."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from taskmerge.data.suite_contents import Found, SplitEntry, SuiteInspection, TaskEntry


def page(suite: "SuiteInspection") -> str:
    """The backbone and base, then three or more lines a task: expert, head, splits."""
    lines = [
        f"{suite.path}: the suite {suite.name}, {len(suite.tasks)} tasks, {_state(suite)}",
        f"  backbone   {suite.library} {_described(suite.model)}",
        f"  tokenizer  {_described(suite.tokenizer)}",
        f"  base       {_described(suite.base)}",
        f"  qkv        {suite.qkv}",
        *(f"  note       {note}" for note in suite.notes),
    ]
    return "\n".join([*lines, *(line for task in suite.tasks for line in ("", *_task(task)))])


def _state(suite: "SuiteInspection") -> str:
    """Whether something is missing; nobody asked the hub."""
    from taskmerge.data.suite_contents import things

    if suite.missing:
        return f"{len(suite.missing)} thing{'' if len(suite.missing) == 1 else 's'} missing or bad"
    remote = any(thing.state == "hub" for thing in things(suite.model, suite.tokenizer, suite.base, suite.tasks))
    return "complete but for the hub, which was not asked" if remote else "complete"


def _task(task: "TaskEntry") -> list[str]:
    names = f", {task.classes} classes" if task.classes else ""
    templates = f", {task.templates} template{'' if task.templates == 1 else 's'}" if task.templates else ""
    width = max([6, *(len(name) for name in task.splits)])
    return [
        f"  {task.name}: {task.kind}, {task.metric}{names}{templates}",
        f"    {'expert':<{width}}  {_described(task.expert)}",
        f"    {'head':<{width}}  {_described(task.head)}",
        *(f"    {name:<{width}}  {_described(split.source, _items(split))}" for name, split in task.splits.items()),
    ]


def _items(split: "SplitEntry") -> str:
    count = "" if split.items is None else f"{split.items:,} items of "
    return f"{count}{split.source.said}{'' if split.labelled else ', unlabelled'}".removeprefix(", ")


def _described(thing: "Found", contents: str | None = None) -> str:
    """Where it is and what its header says; or that it is missing, or bad."""
    if thing.state == "none":
        return "none"
    if thing.state == "missing":
        return f"{thing.where}: MISSING"
    if thing.state == "bad":
        return f"{thing.where}: BAD, see the warnings"
    text = thing.said if contents is None else contents
    return f"{thing.where}: {text}" if text else thing.where
