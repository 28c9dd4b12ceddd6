"""An inspected suite as people read it."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from taskmerge.data.suite_contents import Found, SplitEntry, SuiteInspection, TaskEntry


def page(one: "SuiteInspection") -> str:
    """The backbone and base, then three or more lines a task: expert, head, splits."""
    lines = [
        f"{one.path}: the suite {one.name}, {len(one.tasks)} tasks, {_state(one)}",
        f"  backbone   {one.library} {_told(one.model)}",
        f"  tokenizer  {_told(one.tokenizer)}",
        f"  base       {_told(one.base)}",
        f"  qkv        {one.qkv}",
        *(f"  note       {note}" for note in one.notes),
    ]
    return "\n".join([*lines, *(line for task in one.tasks for line in ("", *_task(task)))])


def _state(one: "SuiteInspection") -> str:
    """Whether something is missing; nobody asked the hub."""
    from taskmerge.data.suite_contents import things

    if one.missing:
        return f"{len(one.missing)} thing{'' if len(one.missing) == 1 else 's'} missing or bad"
    remote = any(thing.state == "hub" for thing in things(one.model, one.tokenizer, one.base, one.tasks))
    return "complete but for the hub, which was not asked" if remote else "complete"


def _task(task: "TaskEntry") -> list[str]:
    names = f", {task.classes} classes" if task.classes else ""
    templates = f", {task.templates} template{'' if task.templates == 1 else 's'}" if task.templates else ""
    width = max([6, *(len(name) for name in task.splits)])
    return [
        f"  {task.name}: {task.kind}, {task.metric}{names}{templates}",
        f"    {'expert':<{width}}  {_told(task.expert)}",
        f"    {'head':<{width}}  {_told(task.head)}",
        *(f"    {name:<{width}}  {_told(split.source, _items(split))}" for name, split in task.splits.items()),
    ]


def _items(split: "SplitEntry") -> str:
    count = "" if split.items is None else f"{split.items:,} items of "
    return f"{count}{split.source.said}{'' if split.labelled else ', unlabelled'}".removeprefix(", ")


def _told(found: "Found", said: str | None = None) -> str:
    """Where it is and what its header says; or that it is missing, or bad."""
    if found.state == "none":
        return "none"
    if found.state == "missing":
        return f"{found.where}: MISSING"
    if found.state == "bad":
        return f"{found.where}: BAD, see the warnings"
    text = found.said if said is None else said
    return f"{found.where}: {text}" if text else found.where
