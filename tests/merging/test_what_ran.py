"""Plan, receipt and record say the numbers that ran, and records that left them out are replayed as they were."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import taskmerge
from taskmerge.checkpoint.provenance import SEAL
from taskmerge.methods.contract import Method
from taskmerge.methods.options import settled
from taskmerge.methods.registry import methods
from vector_cases import TASKS, write_models

UNSAID = [(method, name) for method in methods().values() for name, own in method.settings.items() if own.option.usual]


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    monkeypatch.chdir(tmp_path)
    return write_models(tmp_path / "models")


def merged(models: dict[str, Path], method: Method | str, **options: Any) -> taskmerge.MergeReceipt:
    """The merge of as many models as the method takes."""
    declared = method if isinstance(method, Method) else methods()[method]
    some = [models[task] for task in TASKS[: declared.tasks[1]]]
    return taskmerge.merge(some, base=models["base"], method=declared.name, **options)


def recorded(path: str) -> dict[str, Any]:
    """The options in the recipe that a file carries."""
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["taskmerge"])["recipe"]["options"]


@pytest.mark.parametrize("method", methods().values(), ids=lambda method: method.name)
def test_no_record_leaves_a_value_to_its_reader(method: Method, models: dict[str, Path]) -> None:
    receipt = merged(models, method)
    options = recorded(receipt.paths[0])
    assert options == dict(receipt.outputs[0].options)
    assert None not in options.values()
    count = len(TASKS[: method.tasks[1]])
    for name, value in settled(method, method.defaults(), count).items():
        assert options[name] == (value if isinstance(value, float | int | str) else pytest.approx(value.value)), name


@pytest.mark.parametrize(
    ("keywords", "ran"),
    [
        ({"method": "task_arithmetic"}, {"coefficient": 0.3}),
        ({"method": "ties"}, {"coefficient": 1.0}),
        ({"method": "ties", "aggregate": "sum"}, {"coefficient": 0.3}),
        ({"method": "lines"}, {"alpha": 1 / len(TASKS), "beta": 0.5}),
        ({"method": "dare"}, {"coefficient": 0.3, "density": 0.8}),
        ({"method": "dare", "then": "ties"}, {"coefficient": 1.0, "density": 0.8, "then_density": 0.2}),
        ({"method": "task_arithmetic", "lines": True}, {"coefficient": 1.0, "alpha": 1 / len(TASKS)}),
        ({"method": "ties", "lines": True, "aggregate": "sum"}, {"coefficient": 1.0}),
        ({"method": "ties", "lines": True, "coefficient": 0.7}, {"coefficient": 0.7}),
    ],
)
def test_the_numbers_are_those_that_the_methods_take(
    keywords: dict[str, Any], ran: dict[str, float], models: dict[str, Path]
) -> None:
    receipt = merged(models, **keywords)
    assert {name: recorded(receipt.paths[0])[name] for name in ran} == ran
    said = {**keywords, **{name: receipt.outputs[0].options[name] for name in receipt.outputs[0].options}}
    again = merged(models, **said, output="again.safetensors")
    assert Path(again.paths[0]).read_bytes() == Path(receipt.paths[0]).read_bytes()


def test_many_tasks_take_another_number(tmp_path: Path) -> None:
    models = write_models(tmp_path)
    many = {f"t{index:02}": models[TASKS[index % len(TASKS)]] for index in range(14)}
    receipt = taskmerge.merge(many, base=models["base"], method="task_arithmetic", output=tmp_path / "x.safetensors")
    assert recorded(receipt.paths[0])["coefficient"] == 0.1


def test_every_point_of_a_grid_has_its_own(models: dict[str, Path]) -> None:
    receipt = merged(models, "ties", aggregate=("mean", "sum"))
    assert [recorded(path)["coefficient"] for path in receipt.paths] == [1.0, 0.3]


def test_the_plan_shows_them(models: dict[str, Path]) -> None:
    plan = taskmerge.merge(
        [models[task] for task in TASKS], base=models["base"], method="ties", aggregate=("mean", "sum"), density=0.5,
        dry_run=True,
    )  # fmt: skip
    assert plan.options["--coefficient"] == "1, 0.3"
    assert plan.options["--aggregate"] == "mean, sum"
    assert plan.options["--density"] == "0.5"


@pytest.mark.parametrize(("method", "name"), UNSAID, ids=[f"{method.name}-{name}" for method, name in UNSAID])
def test_records_that_left_a_value_out_are_verified_and_replayed(
    method: Method, name: str, models: dict[str, Path]
) -> None:
    """Older versions wrote null where the method's usual value ran."""
    path = merged(models, method, output="old.safetensors").paths[0]
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    record = json.loads(metadata["taskmerge"])
    record = {key: value for key, value in record.items() if key not in (SEAL, "arithmetic", "files")}
    ran, record["recipe"]["options"][name] = record["recipe"]["options"][name], None
    tensors = load_file(path)
    save_file(tensors, path, {**metadata, "taskmerge": json.dumps(record)})
    found = taskmerge.verify(path, ["models"])
    assert found.replayed
    assert any(f"does not say which `{name}` ran" in note for note in found.notes)
    again = taskmerge.merge(["models/*.safetensors"], recipe=path, output="again.safetensors").paths[0]
    assert recorded(again)[name] == ran
    again_tensors = load_file(again)
    assert all(again_tensors[key].equal(tensors[key]) for key in tensors)

    record["recipe"]["options"][name] = ran * 1.25  # said, and wrong: that is no older version's doing
    save_file(tensors, path, {**metadata, "taskmerge": json.dumps(record)})
    with pytest.raises(taskmerge.TaskmergeError, match="not what the recipe gives"):
        taskmerge.verify(path, ["models"])
