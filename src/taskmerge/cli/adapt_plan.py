"""What an adaptation is about to do, or would do, in a few lines for people."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from taskmerge.adaptation.loop import Horizon
from taskmerge.adaptation.objectives import objective_of
from taskmerge.cli.show import duration, size
from taskmerge.methods.adaptive import (
    Adapter,
    Block,
    Coefficients,
    Heads,
    Learnable,
    Masks,
    Parts,
    Relaxed,
    Trimmed,
    Truncated,
)  # fmt: skip
from taskmerge.methods.registry import find, methods
from taskmerge.workflows.adapt_dry_run import DryRun
from taskmerge.workflows.adapt_request import INIT, AdaptRequest

if TYPE_CHECKING:
    from rich.table import Table

NAMED = 12
ORIGINS = {"base": "added to the base", "mean": "added to the experts' mean"}
STARTS = {"given": "from the suite's", "fitted": "from solved ones", "random": "from random ones"}


def plan_lines(asked: AdaptRequest, device: str) -> list[str]:
    """Method, tasks and origin; what is learnt and by what; horizon and rates; split and seed; the method's options."""
    return [_merged(asked), _learnt(asked.parts), _horizon(asked), _items(asked, device), *_options(asked)]


def updates(asked: AdaptRequest) -> int:
    """How many updates there are: tasks of which the objective says nothing have none."""
    parts = asked.parts
    heard = [task for task in asked.suite.tasks if objective_of(task.kind, parts.objective, parts.on, parts.filter)]
    horizon = Horizon(iterations=parts.iterations, batch_size=parts.batch_size, updates=parts.updates)
    return horizon.total(len(heard))


def _merged(asked: AdaptRequest) -> str:
    names = [task.name for task in asked.suite.tasks]
    told = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
    head = f"{asked.spec.method}: {len(names)} task{'s' if len(names) > 1 else ''} ({told})"
    if asked.parts.origin == "init":
        return f"{head}, the encoder stays as `{asked.spec.init or INIT}` makes it"
    return f"{head}, {_components(asked.parts)} {ORIGINS[asked.parts.origin]}"


def _components(parts: Parts) -> str:
    if isinstance(parts.components, Truncated):
        return f"components of task vectors ({parts.components.rank.understood})"
    if isinstance(parts.components, Trimmed):
        return f"task vectors trimmed to {parts.components.density:g}"
    return "task vectors"


def _learnt(parts: Parts) -> str:
    against = "" if parts.objective == "entropy" else f" on {parts.on}, against the experts"
    kept = "" if parts.filter == "none" else f", filter {parts.filter}"
    labels = " WITH LABELS" if parts.supervised else ""
    return f"learns {'; '.join(map(_words, parts.learns.values()))}{labels}; objective {parts.objective}{against}{kept}"


def _words(learnt: Learnable) -> str:
    """One learnable in words."""
    match learnt:
        case Coefficients():
            each = "task and tensor" if learnt.layout == "tensor" else "task"
            return f"coefficients, one a {each}{', clamped to [0, 1]' if learnt.clamped else ''}"
        case Masks():
            return f"masks of components, at first {learnt.kept.understood}"
        case Relaxed():
            return "a mask that the tasks share"
        case Heads():
            return f"heads {STARTS[learnt.start]}"
        case Block():
            return f"a block of every task's own ({learnt.layer})"
        case Adapter():
            return f"{learnt.kind} adapters of width {learnt.size}"


def _horizon(asked: AdaptRequest) -> str:
    parts, total = asked.parts, updates(asked)
    if not total:
        return "no updates: what is learnt is solved for"
    turn = "one update of all tasks" if parts.updates == "joint" else "one update a task"
    rates = ", ".join(f"{name} {rate:.3g}" for name, rate in asked.spec.rates(parts, total).items())
    return (
        f"{parts.iterations:,} iterations of {parts.batch_size} items a task, {turn}: {total:,} updates; rates: {rates}"
    )


def _items(asked: AdaptRequest, device: str) -> str:
    spec = asked.spec
    seen = "its labels are read" if asked.parts.supervised else "no label is read"
    limit = f", at most {spec.limit:,} items a task" if spec.limit is not None else ""
    stop = f", {spec.held_out:g} of them held out for --stop" if spec.stop is not None else ""
    return f"split `{spec.adapt_split}` of {asked.suite.name}{limit}{stop}; {seen}; seed {spec.seed}; on {device}"


def _options(asked: AdaptRequest) -> Iterator[str]:
    """Every option of the method as it was understood, and those that were given of the merge it starts from."""
    spec = asked.spec
    own = {**spec.options, **({"origin": spec.origin} if spec.origin and "origin" in spec.options else {})}
    settings: dict[str, Any] = {name: (spec.declared.settings[name], value) for name, value in own.items()}
    if spec.init is not None and spec.init_options and spec.init.replace("-", "_").lower() in methods():
        theirs = find(spec.init).settings
        settings |= {
            name: (theirs[name], theirs[name].read(str(value))[0]) for name, value in spec.init_options.items()
        }
    for setting, value in settings.values():
        yield f"  {setting.flag} {setting.understood(value)}"


# --- --dry-run -------------------------------------------------------------------------------------------------


def dry_run_tables(found: DryRun) -> Iterator["Table"]:
    """What would be learnt, and how long each phase takes."""
    from rich.table import Table

    learnt = Table(box=None, pad_edge=False)
    learnt.add_column("what is learnt")
    learnt.add_column("values", justify="right")
    for name, count in found.learnt.items():
        learnt.add_row(name, f"{count:,}")
    yield learnt
    phases = Table(box=None, pad_edge=False)
    phases.add_column("phase")
    phases.add_column("time", justify="right")
    for phase, seconds in found.seconds.items():
        phases.add_row(phase, duration(seconds))
    yield phases


def dry_run_lines(found: DryRun, runs: int) -> Iterator[str]:
    """One update, the whole time and memory of a run, what would shorten it, and where it would go."""
    yield f"{sum(found.items.values()):,} items of {len(found.items)} tasks"
    if found.update_seconds is not None:
        yield f"{found.updates:,} updates of {duration(found.update_seconds)} each"
    several = f", and {runs} runs {duration(runs * found.total)}" if runs > 1 else ""
    yield f"about {duration(found.total)} in all on {found.device}, scoring left out{several}"
    device = f", {size(found.device_memory)} of the device" if found.device_memory is not None else ""
    yield f"peak memory about {size(found.memory)}{device}"
    yield from (f"shorter: {text}" for text in found.shorter)
    yield f"would write {found.output}"
