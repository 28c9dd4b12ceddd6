"""Adaptive methods as people read them: what the catalogue shows of one."""

import inspect
from collections.abc import Mapping

from taskmerge.cli import adapt_phrases
from taskmerge.methods.adaptive import Adaptive, Parts, Relaxed, Trimmed, Whole
from taskmerge.methods.options import bind
from taskmerge.specs.merge import plain_value

NEEDS = {"base": "yes (--origin mean: no)", "mean": "no", "init": "no, unless the merge of --init does"}
UNPUBLISHED = "unpublished: of this project"


def parts_of(method: Adaptive) -> Parts:
    """What a method is by default."""
    return method.bound(bind(method, {}))


def described(method: Adaptive) -> dict[str, object]:
    """A method's declaration, without its options and notes, as plain values."""
    parts = parts_of(method)
    return {
        "name": method.name,
        "command": "adapt",
        "title": method.title,
        "summary": method.summary,
        "formula": method.formula,
        "paper": method.paper,
        "unpublished": method.unpublished,
        "needs_base": parts.origin == "base",
        "needs_labels": parts.supervised,
        "needs_task_index": parts.per_task,
        "origin": parts.origin,
        "learns": list(parts.learns),
        "objective": parts.objective,
        "on": parts.on,
        "filter": parts.filter,
        "updates": parts.updates,
        "iterations": parts.iterations,
        "batch_size": parts.batch_size,
        "rates": {name: parts.rates.get(name) for name in parts.learns},
        "parity": {name: plain_value(value) for name, value in method.parity.items()},
        "aliases": list(method.aliases),
    }


def page_lines(method: Adaptive) -> list[str]:
    """One method's page without options and notes: formula, paper, what is learnt, by what, how long, how fast."""
    parts = parts_of(method)
    paragraphs = (inspect.getdoc(method.parts) or "").strip().split("\n\n")
    lines = [f"{method.name}: {method.title}", "", f"  {method.formula}", ""]
    lines += [line for part in paragraphs for line in (" ".join(part.split()), "")]
    lines += [
        f"paper: {method.paper}{f' ({UNPUBLISHED})' if method.unpublished else ''}",
        f"run by: taskmerge adapt --method {method.name}",
        f"needs: a suite with {'LABELLED' if parts.supervised else 'unlabelled'} items",
        f"needs a base: {'yes' if isinstance(parts.components, Trimmed) else NEEDS[parts.origin]}",
        f"combines: {_combined(parts)}",
        f"learns: {adapt_phrases.learnt(parts)}",
        f"objective: {adapt_phrases.objective(parts)}",
        f"horizon: {adapt_phrases.horizon(parts) or 'no updates, heads are solved for'}",
    ]
    if parts.iterations != 0:
        lines.append(f"learning rates (Adam): {rates(parts)}")
    lines.append(f"the result needs to know which task an item is of: {'yes' if parts.per_task else 'no'}")
    if method.parity:
        lines.append(f"--parity sets: {', '.join(f'{name} {_value(value)}' for name, value in method.parity.items())}")
    return lines


def _combined(parts: Parts) -> str:
    """What the encoder is made of."""
    if parts.origin == "init":
        return "nothing: the encoder is a merge as it is, or a checkpoint (--init)"
    truncates = isinstance(parts.components, Whole) and parts.of(Relaxed) is None
    whole = " (--rank truncates them)" if truncates else ""
    return f"{adapt_phrases.components(parts)}{whole}"


def rates(parts: Parts) -> str:
    """Adam's learning rate of each learnable, by default."""
    found: Mapping[str, float | None] = {name: parts.rates.get(name) for name in parts.learns}
    return ", ".join(f"{name} {'1/updates' if rate is None else f'{rate:g}'}" for name, rate in found.items())


def cells(method: Adaptive) -> tuple[str, ...]:
    """The cells of the Markdown table between summary with formula and options with paper."""
    parts = parts_of(method)
    learns = ", ".join(parts.learns)
    return learns, f"{parts.objective}{' (labels)' if parts.supervised else ''}", parts.updates


def _value(value: object) -> str:
    return ("no", "yes")[value] if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else f"{value}"
