"""What `adapt` is asked for, sorted: what shapes the result, what is merged, how the run goes."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from taskmerge.checkpoint.adapted import is_adapted, read_adapted
from taskmerge.errors import Mismatch, UsageError, listed, nearest
from taskmerge.evaluation.workload import named_tasks
from taskmerge.experts.arguments import Arguments, named_files
from taskmerge.merging.prepare import Prepared, prepare
from taskmerge.merging.request import Request, requested
from taskmerge.methods.adaptive import Adaptive, Parts, Trimmed, Truncated
from taskmerge.methods.adaptive_registry import RECOMMENDED, adaptive_methods, find_adaptive
from taskmerge.methods.composed import Learned
from taskmerge.methods.options import Declares
from taskmerge.methods.registry import find, methods
from taskmerge.specs.adapt import AdaptSpec
from taskmerge.specs.suite import Suite
from taskmerge.workflows.adapt_init import NOWHERE, Start, check_learned, start_of

INIT = "iso_cts"
"""What methods that leave the encoder as it is start from where nobody says: of the training-free methods the one on
which fitted heads do best on the embedded example (docs/adapt.md)."""
ADAPT = "an adaptation"
SHAPE = frozenset(field.name for field in fields(AdaptSpec)) - {"options", "init_options", "rank"}
MERGING = ("base", "qkv", "include", "exclude", "keep_from", "also", "dtype", "compute_dtype", "svd", "strip_prefix",
           "map", "on_missing", "on_buffer", "allow_merged", "allow_pickle", "skip_input", "keep_base", "max_memory",
           "shard_size")  # fmt: skip
"""Keywords of `merge` that `adapt` takes for the encoder that it merges."""
COSTS = ("max_memory",)
"""What of them changes what a run takes, and not what comes out."""


@dataclass(frozen=True)
class AdaptRequest:
    """An adaptation as it is asked for: its spec, its parts, the suite, and keywords of the merge that it is about."""

    spec: AdaptSpec
    parts: Parts
    suite: Suite
    inputs: Arguments
    merging: Mapping[str, Any]

    def shaping(self) -> dict[str, Any]:
        """The keywords of the merge on which its result depends, as plain values."""
        shaping = {name: value for name, value in self.merging.items() if name not in COSTS}
        plain: dict[str, Any] = json.loads(json.dumps(shaping, default=str))
        return plain


def adapt_requested(suite: Suite, inputs: Arguments, keywords: Mapping[str, Any]) -> AdaptRequest:
    """Sorts keywords; what belongs to nobody is a UsageError with the nearest name.

    `tasks` leaves these of the suite: the experts of the others are not merged unless they are among the inputs.
    """
    given = {name: value for name, value in keywords.items() if value is not None}
    given["with_"] = given.pop("with", given.pop("with_", None))
    shape = {name: given.pop(name) for name in tuple(given) if name in SHAPE}
    merging = {name: given.pop(name) for name in tuple(given) if name in MERGING}
    if "compute_dtype" in merging and merging["compute_dtype"] not in ("float32", "float64"):
        raise UsageError(f"`{merging['compute_dtype']}`", where="--compute-dtype", hint="float32 or float64")
    shape = {name: tuple(value) if isinstance(value, list) else value for name, value in shape.items()}
    declared = find_adaptive(str(shape.get("method", RECOMMENDED)))
    if "rank" in given and "rank" not in declared.settings and declared.bound({}).origin != "init":
        shape["rank"] = given.pop("rank")  # truncates the vectors of a method that takes them whole
    own = {name: given.pop(name) for name in tuple(given) if name.replace("-", "_") in declared.settings}
    init = _init_options(shape.get("init"), given, declared)
    spec = AdaptSpec(**{**shape, "options": own, "init_options": init})
    if spec.init is not None and spec.parts().origin != "init" and _static(spec.init):
        raise UsageError(
            f"`{spec.method}` starts from its own coefficients", where="--init",
            hint="name a file of coefficients or a folder of adapt (a merge as it is serves heads and surgery)",
        )  # fmt: skip
    named_files(inputs, ADAPT)
    if spec.tasks:
        suite = replace(suite, tasks=named_tasks(suite, spec.tasks))
    return AdaptRequest(spec, spec.parts(), suite, inputs, merging)


def _static(init: str) -> bool:
    """Whether `--init` names a training-free method, and no file."""
    return not Path(init).exists() and init.replace("-", "_").lower() in methods()


def _init_options(init: object, given: dict[str, Any], declared: Adaptive) -> dict[str, Any]:
    """Options of the method that `--init` names; anything else that is left is a mistake."""
    found: dict[str, Any] = {}
    settings = find(str(init)).settings if init is not None and _static(str(init)) else {}
    for name, value in given.items():
        key = name.replace("-", "_")
        if key not in settings:
            raise _stranger(key, declared, list(settings))
        found[key] = value
    return found


def _stranger(name: str, declared: Adaptive, more: Sequence[str]) -> UsageError:
    """The complaint about an option that nobody has."""
    flag = _flag(name)
    every: list[Declares] = [*adaptive_methods().values(), *methods().values()]
    owners = [other.name for other in every if name in other.settings]
    flags = [setting.flag for setting in declared.settings.values()] + [_flag(one) for one in more]
    has = f"{declared.name} has {', '.join(flags)}" if flags else f"{declared.name} has no options of its own"
    if owners:
        hint = f"{flag} belongs to {', '.join(owners)}; {has}"
        return UsageError(f"`{declared.name}` has no option `{flag}`", where=flag, hint=hint)
    close = nearest(flag, [*flags, *(_flag(own) for own in (*SHAPE, *MERGING))])
    return UsageError(f"unknown option `{flag}`", where=flag, hint=f"did you mean `{close}`?" if close else has)


def _flag(name: str) -> str:
    return f"--{name.rstrip('_').replace('_', '-')}"


# --- what is merged --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Encoder:
    """The merge that an adaptation is about: the request that writes the final model (without what is to be learnt),
    and the experts' headers, opened. `start` is what an earlier run gives this one; `given` says that the model is a
    checkpoint, and no merge of these experts."""

    request: Request
    experts: Prepared
    start: Start = NOWHERE
    given: bool = False

    def names(self) -> list[str] | None:
        """The names of the model's tensors; None where it is a checkpoint."""
        return None if self.given else [output.name for output in self.experts.plan.outputs()]

    def final(self, learned: Learned | None, output: Path) -> Request:
        """The request that writes the model, with what was learnt."""
        spec = replace(self.request.spec, learned=learned) if learned is not None else self.request.spec
        running = replace(self.request.running, output=output, overwrite=True)
        return replace(self.request, spec=spec, running=running)


def encoder_of(asked: AdaptRequest, output: Path) -> Encoder:
    """Opens the experts' headers and lays the merge out. Raises what `merge` raises for the same inputs."""
    common = {**asked.merging, "output": output, "overwrite": True}
    if asked.parts.origin == "init":
        return _fixed(asked, common)
    request = requested(asked.inputs, {**common, **_composed(asked, _tasks(asked, common))}, suite=asked.suite)
    request, prepared = without_heads(request)
    start = NOWHERE if asked.spec.init is None else start_of(Path(asked.spec.init), asked.parts, asked.spec)
    check_learned(start, prepared.plan, request.spec, asked.parts)
    return Encoder(request, prepared, start)


def heard(asked: AdaptRequest, encoder: Encoder) -> AdaptRequest:
    """The request with those of the suite's tasks whose experts are merged: of given inputs it may be a few, and these
    take the place of the suite's experts in everything, heads included.

    Raises UsageError where a task that was named, or every one, has no expert among them.
    """
    merged = encoder.experts.plan.tasks
    tasks = tuple(task for task in asked.suite.tasks if task.name in merged or not asked.inputs)
    lacking = [task.name for task in asked.suite.tasks if task not in tasks]
    if not tasks or (asked.spec.tasks and lacking):
        what = f"no input is the expert of {listed(lacking)}: these are {listed(merged)}"
        raise UsageError(what, where=asked.suite.where, hint=f"name it on the command line, such as {lacking[0]}=FILE")
    given = dict(named_files(asked.inputs, ADAPT))
    tasks = tuple(replace(task, expert=given.get(task.name, task.expert)) for task in tasks)
    return replace(asked, suite=replace(asked.suite, tasks=tasks))


def _tasks(asked: AdaptRequest, common: Mapping[str, Any]) -> tuple[str, ...]:
    """The tasks whose experts are merged, in the engine's order: the suite's, or those of the inputs."""
    if not asked.inputs:
        return tuple(sorted(task.name for task in asked.suite.tasks if task.expert is not None))
    _, prepared = without_heads(requested(asked.inputs, {**common, "method": "average"}, suite=asked.suite))
    prepared.inputs.close()
    return prepared.plan.tasks


def _composed(asked: AdaptRequest, tasks: tuple[str, ...]) -> dict[str, Any]:
    """Keywords of `merge` for the composed form of these tasks."""
    components = asked.parts.components
    options: dict[str, Any] = {}
    if isinstance(components, Truncated):
        options["rank"] = components.rank
    if isinstance(components, Trimmed):
        options["density"] = components.density
    method = "composed_base" if asked.parts.origin == "base" else "composed_mean"
    if method == "composed_mean" and isinstance(components, Trimmed):
        raise UsageError("trimmed task vectors start from the base", where="--origin", hint="leave --origin out")
    return {"method": method, **options, "learned": Learned(tasks, {})}


def _fixed(asked: AdaptRequest, common: Mapping[str, Any]) -> Encoder:
    """The merge of a method that leaves the encoder as it is: a training-free method, or a checkpoint."""
    init = asked.spec.init or INIT
    if _static(init):
        keywords = {**common, "method": init, **asked.spec.init_options}
        try:
            return Encoder(*without_heads(requested(asked.inputs, keywords, suite=asked.suite)))
        except Mismatch as error:  # the method of the merge is --init here
            hint = (error.hint or "").replace("--method average", "--init average") or None
            raise Mismatch(error.what, where=error.where, hint=hint, ways=error.ways) from error
    path = Path(init)
    if not path.exists():
        known = ", ".join(name for name, method in methods().items() if method.gives == "merged")
        raise UsageError(f"`{init}` is no file, folder or method", where="--init", hint=f"methods: {known}")
    if common.get("keep_from"):
        raise UsageError("the encoder is there already: nothing is merged", where="--keep-from", hint="leave it out")
    start = start_of(path, asked.parts, asked.spec)
    model = read_adapted(path).model if is_adapted(path) else path
    experts = {name: value for name, value in common.items() if name != "allow_merged"}
    _, prepared = without_heads(requested(asked.inputs, {**experts, "method": "average"}, suite=asked.suite))
    given = {name: common[name] for name in ("output", "overwrite", "dtype") if name in common}
    request = requested({"init": model}, {**given, "method": "average", "allow_merged": True})
    return Encoder(request, prepared, start, given=True)


def without_heads(request: Request) -> tuple[Request, Prepared]:
    """The request with task heads left out of the merge: they stay each task's own."""
    prepared = prepare(request.inputs, request.spec, request.opening, request.running)
    if not prepared.plan.heads:
        return request, prepared
    prepared.inputs.close()
    spec = replace(request.spec, heads="refuse", exclude=(*request.spec.exclude, *prepared.plan.heads))
    request = replace(request, spec=spec)
    return request, prepare(request.inputs, request.spec, request.opening, request.running)
