"""A plan as people and programs see it: what would be merged how, written where, at what cost."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from taskmerge.merging.prepare import Prepared, prepare
from taskmerge.merging.request import Request


@dataclass(frozen=True, slots=True)
class TensorGroup:
    """Tensors of one class that are treated alike: how many, and the types in which they are read and written."""

    kind: str
    treatment: str
    tensors: int
    parameters: int
    read_as: tuple[str, ...]
    written_as: tuple[str, ...]


@dataclass(frozen=True)
class MergePlan:
    """What a merge would do: methods, tasks, options with what runs, groups of tensors, bytes, memory, seconds, paths.

    `base` is where the base is (None without one), whether or not the merge `reads_base`; `outputs` are empty where
    results stay in memory.
    """

    method: tuple[str, ...]
    tasks: tuple[str, ...]
    base: str | None
    reads_base: bool
    compute_dtype: str
    device: str
    options: Mapping[str, str]
    groups: tuple[TensorGroup, ...]
    bytes_read: int
    bytes_written: int
    memory: int
    seconds: float
    outputs: tuple[str, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, object]:
        """The plan as plain values, for --json."""
        found = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        groups = [{"class": group.pop("kind"), **group} for group in found.pop("groups")]
        return {**found, "classes": groups}


def plan_merge(request: Request) -> MergePlan:
    """The plan of a request, from headers alone. Raises what the merge would raise before it reads a number."""
    prepared = prepare(request.inputs, request.spec, request.opening, request.running)
    try:
        return planned(prepared)
    finally:
        prepared.inputs.close()


def planned(prepared: Prepared) -> MergePlan:
    """What is to be told of a merge that is prepared."""
    plan, costs, inputs = prepared.plan, prepared.plan.costs, prepared.inputs
    types = _types(prepared)
    groups = tuple(
        TensorGroup(kind, how, tensors, parameters, *types[kind, how])
        for kind, tensors, parameters, how in plan.classes()
    )
    return MergePlan(
        tuple(method.name for method in prepared.points[0].chain), plan.tasks,
        inputs.base.where if inputs.base else None, prepared.reads_base, prepared.spec.compute_dtype,
        prepared.device.type, understood(prepared), groups, costs.bytes_read, costs.bytes_written, costs.memory,
        round(costs.seconds, 1), tuple(map(str, prepared.paths)), (*inputs.notes, *plan.notes), inputs.warnings,
    )  # fmt: skip


def understood(prepared: Prepared) -> dict[str, str]:
    """Every option of the chain with what runs, over the whole grid; and every task's weight, if any has one."""
    options: dict[str, str] = {}
    given = prepared.spec.weights
    if given:
        weighed = (
            f"{task} {given.get(task, 1):g}{'' if task in given else ' (not given)'}" for task in prepared.plan.tasks
        )
        options["--weight"] = ", ".join(weighed)
    for name, (_, setting) in prepared.spec.settings().items():
        values = dict.fromkeys(setting.understood(point.values[name]) for point in prepared.points)
        options[setting.flag] = ", ".join(values)
    return options


def _types(prepared: Prepared) -> dict[tuple[str, str], tuple[tuple[str, ...], tuple[str, ...]]]:
    """The types in which tensors of a class and treatment are read from the inputs, and written."""
    read: dict[tuple[str, str], set[str]] = {}
    written: dict[tuple[str, str], set[str]] = {}
    for job in prepared.plan.jobs:
        key = (job.unit.kind, job.treatment if job.action == "merge" else job.action)
        base, experts = prepared.inputs.base, prepared.inputs.experts
        holders = (job.holder(base, experts),) if job.action in ("copy", "keep") else experts
        read.setdefault(key, set()).update(
            source.specs[output.name].stored[0].dtype
            for source in holders
            if source
            for output in job.outputs
            if output.name in source.specs
        )
        written.setdefault(key, set()).update(output.dtype for output in job.outputs)
    return {key: (tuple(sorted(codes)), tuple(sorted(written[key]))) for key, codes in read.items()}
