"""The embedded example is whole: sizes, paths, names and shapes fit, and its accuracies come out again."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file

import taskmerge

EXAMPLES = Path(__file__).parents[1] / "examples"
TINY = EXAMPLES / "tiny"
TASKS = ("digits", "letters", "symbols", "shapes", "colours", "counts", "arrows", "textures")

Specs = dict[str, tuple[str, list[int]]]


@pytest.fixture(scope="module")
def suite() -> dict[str, Any]:
    return yaml.safe_load((TINY / "suite.yaml").read_text())


@pytest.fixture(scope="module")
def results() -> dict[str, dict[str, float]]:
    return json.loads((TINY / "results.json").read_text())


def specs(path: Path) -> Specs:
    """Name -> dtype and shape, read by safetensors itself."""
    with safe_open(path, "pt") as file:
        return {k: (file.get_slice(k).get_dtype(), file.get_slice(k).get_shape()) for k in file.keys()}  # noqa: SIM118


def test_it_is_small() -> None:
    files = [path for path in EXAMPLES.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) < 8_000_000
    assert max(path.stat().st_size for path in files) < 2_000_000


def test_the_glob_of_the_quickstart_gives_base_and_experts_only() -> None:
    assert {path.stem for path in TINY.glob("*.safetensors")} == {"base", *TASKS}


def test_suite_names_files_that_exist(suite: dict[str, Any]) -> None:
    named = [suite["base"], suite["backbone"]["model"], suite["backbone"]["tokenizer"]["bpe"]]
    for task in suite["tasks"].values():
        named += [task["expert"], task["head"], *(split["file"] for split in task["data"].values())]
    assert [name for name in named if not (TINY / name).is_file()] == []
    assert tuple(suite["tasks"]) == TASKS


@pytest.mark.parametrize("task", TASKS)
def test_expert_has_exactly_the_visual_tensors_of_the_base(task: str) -> None:
    visual = {name: spec for name, spec in specs(TINY / "base.safetensors").items() if name.startswith("visual.")}
    assert specs(TINY / f"{task}.safetensors") == visual
    assert {dtype for dtype, _ in visual.values()} == {"F16"}
    assert len(visual) > 50


@pytest.mark.parametrize("task", TASKS)
def test_head_classes_and_data_agree(task: str, suite: dict[str, Any]) -> None:
    classes = suite["tasks"][task]["classes"]
    assert all(isinstance(name, str) for name in classes)  # an unquoted `no` would be False
    assert len(set(classes)) == len(classes)
    embedding = specs(TINY / "base.safetensors")["visual.proj"][1][1]
    assert specs(TINY / f"heads/{task}.safetensors") == {"weight": ("F32", [len(classes), embedding])}

    side = suite["backbone"]["preprocess"]["image_size"]
    data = np.load(TINY / f"data/{task}.npz")
    assert set(data.files) == {"test_x", "test_y", "adapt_x"}  # no label of an adaptation picture
    assert data["test_x"].shape == (len(data["test_y"]), side, side, 3)
    assert data["adapt_x"].shape == (300, side, side, 3)
    assert data["test_x"].dtype == data["adapt_x"].dtype == np.uint8
    assert data["test_y"].dtype == np.int64
    assert set(data["test_y"].tolist()) == set(range(len(classes)))


@pytest.mark.parametrize("task", TASKS)
def test_no_test_picture_is_among_the_adaptation_pictures(task: str) -> None:
    data = np.load(TINY / f"data/{task}.npz")
    adapt = {picture.tobytes() for picture in data["adapt_x"]}
    assert sum(picture.tobytes() in adapt for picture in data["test_x"]) == 0


def test_every_expert_beats_the_base_on_its_task(results: dict[str, dict[str, float]]) -> None:
    assert all(results[task][task] > results["base"][task] + 0.1 for task in TASKS)


@pytest.mark.parametrize("checkpoint", ["base", "arrows"])
def test_accuracies_come_out_again(checkpoint: str, results: dict[str, dict[str, float]]) -> None:
    """By open_clip alone: the same numbers as `taskmerge.evaluate`."""
    report = taskmerge.evaluate({checkpoint: TINY / f"{checkpoint}.safetensors"}, suite=TINY)
    ours = {row.task: row.score.value for row in report.rows}
    model = open_clip_model()
    tensors = load_file(TINY / f"{checkpoint}.safetensors").items()
    model.visual.load_state_dict(
        {name.removeprefix("visual."): value.float() for name, value in tensors if name.startswith("visual.")}
    )
    for task in TASKS:
        data, head = np.load(TINY / f"data/{task}.npz"), load_file(TINY / f"heads/{task}.safetensors")["weight"]
        with torch.no_grad():
            x = (torch.from_numpy(data["test_x"]).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
            chosen = (torch.nn.functional.normalize(model.encode_image(x), dim=1) @ head.T).argmax(1)
        assert ours[task] == pytest.approx(float((chosen.numpy() == data["test_y"]).mean()), abs=1e-9)
        assert ours[task] == pytest.approx(results[checkpoint][task], abs=0.01)


def open_clip_model() -> Any:
    """The example's model, untrained, without a name in open_clip's registry."""
    return open_clip.CLIP(**json.loads((TINY / "model.json").read_text())).eval()


def test_heads_are_the_base_models_zero_shot_heads(suite: dict[str, Any]) -> None:
    model = open_clip_model()
    model.load_state_dict({name: value.float() for name, value in load_file(TINY / "base.safetensors").items()})
    tokenizer = open_clip.SimpleTokenizer(str(TINY / "bpe.txt.gz"), context_length=16)
    assert tokenizer.vocab_size == model.vocab_size
    spec = suite["tasks"]["arrows"]
    rows = []
    with torch.no_grad():
        for name in spec["classes"]:
            each = model.encode_text(tokenizer([t.format(name) for t in spec["templates"]]))
            mean = (each / each.norm(dim=1, keepdim=True)).mean(dim=0)
            rows.append(mean / mean.norm() * model.logit_scale.exp())
    head = load_file(TINY / spec["head"])["weight"]
    assert (torch.stack(rows) - head).norm() < 0.01 * head.norm()  # the base is stored in float16
