"""What an adaptation is about to do, or would do, in a few lines for people."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from taskmerge.adaptation.loop import Horizon
from taskmerge.adaptation.objectives import objective_of
from taskmerge.cli import adapt_phrases
from taskmerge.cli.show import duration, size
from taskmerge.methods.adaptive import Masks, Parts, usual_start
from taskmerge.methods.options import Value
from taskmerge.methods.registry import find, methods
from taskmerge.workflows.adapt_dry_run import DryRun
from taskmerge.workflows.adapt_request import INIT, AdaptRequest

if TYPE_CHECKING:
    from rich.table import Table

    from taskmerge.workflows.auto_plan import AutoPlan

NAMED = 12
ORIGINS = {"base": "added to the base", "mean": "added to the experts' mean"}


def plan_lines(asked: AdaptRequest, device: str) -> list[str]:
    """Method, tasks and origin; what is learnt and by what; horizon and rates; split and seed; the method's options."""
    return [_merged(asked), _learnt(asked.parts), _horizon(asked), _items(asked, device), *_options(asked)]


def updates(asked: AdaptRequest) -> int | None:
    """How many updates there are (None: as one pass takes); tasks on which the objective is silent have none."""
    parts = asked.parts
    if parts.iterations is None:
        return None
    heard = [task for task in asked.suite.tasks if objective_of(task.kind, parts.objective, parts.on, parts.filter)]
    horizon = Horizon(iterations=parts.iterations, batch_size=parts.batch_size, updates=parts.updates)
    return horizon.total(len(heard))


def _merged(asked: AdaptRequest) -> str:
    names = [task.name for task in asked.suite.tasks]
    told = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
    head = f"{asked.spec.method}: {len(names)} task{'s' if len(names) > 1 else ''} ({told})"
    if asked.parts.origin == "init":
        return f"{head}, the encoder stays as `{asked.spec.init or INIT}` makes it"
    return f"{head}, {adapt_phrases.components(asked.parts)} {ORIGINS[asked.parts.origin]}"


def _learnt(parts: Parts) -> str:
    labels = " WITH LABELS" if parts.supervised else ""
    return f"learns {adapt_phrases.learnt(parts)}{labels}; objective {adapt_phrases.objective(parts)}"


def _horizon(asked: AdaptRequest) -> str:
    parts, total = asked.parts, updates(asked)
    if total == 0:
        return "no updates: what is learnt is solved for"
    rates = ", ".join(f"{name} {rate:.3g}" for name, rate in asked.spec.rates(parts, total or 1).items())
    count = "" if total is None else f": {total:,} updates"
    return f"{adapt_phrases.horizon(parts)}{count}; rates: {rates}"


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
    usual = _usual(asked)
    settings: dict[str, Any] = {
        name: (spec.declared.settings[name], usual.get(name) if value is None else value) for name, value in own.items()
    }
    if spec.init is not None and spec.init_options and spec.init.replace("-", "_").lower() in methods():
        theirs = find(spec.init).settings
        settings |= {
            name: (theirs[name], theirs[name].read(str(value))[0]) for name, value in spec.init_options.items()
        }
    for setting, value in settings.values():
        yield f"  {setting.flag} {setting.understood(value)}"


def _usual(asked: AdaptRequest) -> dict[str, Value]:
    """What runs where an option of the method is left to it."""
    masks = asked.parts.shaped_by(Masks)
    kept: dict[str, Value] = {"rank": masks.kept} if isinstance(masks, Masks) else {}
    return {"coefficient": usual_start(asked.parts, len(asked.suite.tasks)), **kept}


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


# --- --dry-run of --method auto --------------------------------------------------------------------------------


def auto_table(plan: "AutoPlan") -> "Table":
    """A line a candidate: its iterations, updates and time, or why it would be left out."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("candidate")
    for head in ("iterations", "updates", "time"):
        table.add_column(head, justify="right")
    for one in plan.candidates:
        if one.seconds is None or one.updates is None:
            table.add_row(one.name, "left out", "", "")
        else:
            iterations = "one pass" if one.iterations is None else f"{one.iterations:,}"
            table.add_row(one.name, iterations, f"{one.updates:,}", duration(one.seconds))
    return table


def auto_lines(plan: "AutoPlan") -> Iterator[str]:
    """The budget, the whole time, why candidates are left out, and where the best would go."""
    yield f"--budget {plan.budget}: iterations that the candidates whose encoder learns share"
    yield f"about {duration(plan.seconds)} in all, scoring left out"
    yield from (f"{one.name} is left out: {one.left_out}" for one in plan.candidates if one.left_out is not None)
    yield f"would write {plan.output}"
