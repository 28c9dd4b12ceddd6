"""BatchNorm's running variances: a merge takes none below zero, and `verify` says so of a file that has some."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import taskmerge
from taskmerge.errors import BadNumber, UsageError

NAME = "layer1.0.bn1.running_var"
METHODS = {
    "task_arithmetic": {"coefficient": 1.0},
    "ties": {"aggregate": "sum", "density": 1.0, "coefficient": 1.0},
    "dare": {"density": 0.5, "coefficient": 1.0},
    "average": {},
}
variances = st.lists(st.floats(0.0, 4.0, width=32), min_size=3, max_size=3)


def write(path: Path, values: list[float]) -> Path:
    save_file({NAME: torch.tensor(values), "layer1.0.bn1.running_mean": -torch.tensor(values)}, path)
    return path


@settings(max_examples=16, deadline=None)
@given(method=st.sampled_from(sorted(METHODS)), given=st.lists(variances, min_size=3, max_size=3), dtype=st.booleans())
def test_a_variance_below_zero_is_never_written(
    tmp_path_factory: pytest.TempPathFactory, method: str, given: list[list[float]], dtype: bool
) -> None:
    folder = tmp_path_factory.mktemp("variances")
    base, first, second = (write(folder / f"{index}.safetensors", values) for index, values in enumerate(given))
    output = folder / "out.safetensors"
    options = {**METHODS[method], **({"dtype": "bfloat16"} if dtype else {})}
    try:
        taskmerge.merge([first, second], base=base, method=method, output=output, **options)
    except BadNumber:
        assert method != "average"
        assert not output.exists()
    else:
        assert float(load_file(output)[NAME].float().min()) >= 0
        taskmerge.verify(output, [first, second, base])


def test_the_sum_of_two_differences_is_refused_with_its_lowest_entry(tmp_path: Path) -> None:
    base, first, second = (
        write(tmp_path / f"{name}.safetensors", values)
        for name, values in {"base": [1.0, 1, 1], "a": [0.3, 1, 1], "b": [0.2, 1, 1]}.items()
    )
    with pytest.raises(BadNumber, match=rf"{NAME}.*-0\.5 at the lowest, in 1 entries"):
        taskmerge.merge([first, second], base=base, method="task_arithmetic", coefficient=1, output=tmp_path / "m.st")


def test_task_vectors_may_have_any_sign(tmp_path: Path) -> None:
    base, expert = write(tmp_path / "base.safetensors", [1.0, 2, 3]), write(tmp_path / "a.safetensors", [0.5, 1, 3])
    (vector,) = taskmerge.vectors([expert], base=base, output=tmp_path / "vectors").paths
    assert load_file(vector)[NAME].min() < 0
    assert taskmerge.verify(vector, replay=False).tensors == 2


def test_verify_names_a_model_that_has_some(tmp_path: Path) -> None:
    with pytest.raises(BadNumber, match=f"variances below zero in `{NAME}`"):
        taskmerge.verify(write(tmp_path / "a.safetensors", [0.5, -1e-6, 3]), replay=False)


@pytest.mark.parametrize("text", ["1e39", "-1e39", "1e400", "nan", "0:inf:1", "nan:nan:nan", "0:1e300:1e-300", "inf"])
def test_coefficients_and_grids_beyond_float32_are_wrong_usage(tmp_path: Path, text: str) -> None:
    base, expert = write(tmp_path / "base.safetensors", [1.0, 2, 3]), write(tmp_path / "a.safetensors", [0.5, 1, 3])
    with pytest.raises(UsageError) as caught:
        taskmerge.merge([expert], base=base, method="task_arithmetic", coefficient=text, output=tmp_path / "m.st")
    assert caught.value.where == "--coefficient"
