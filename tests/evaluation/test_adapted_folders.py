"""`eval` of the folder that `adapt` writes, as it is, against the same arithmetic by hand in float64.

Heads of its own, adapters of features, and blocks: each on some of three tasks on the same pictures, with a small CLIP.
"""

import json
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from taskmerge import Report, evaluate
from taskmerge.checkpoint.adapted import Manifest, Part, write_manifest
from taskmerge.checkpoint.hub import resolve
from taskmerge.cli.app import run as command
from taskmerge.errors import BadFile, Mismatch
from taskmerge.evaluation import checkpoints as opening
from taskmerge.evaluation import run as running
from taskmerge.evaluation.checkpoints import encoders
from taskmerge.evaluation.heads import Heads
from taskmerge.evaluation.label_free import judge
from taskmerge.evaluation.results import to_json
from taskmerge.models.adapters import Adapter, ProbAdapter, SurgeryAdapter, adapter_tensors, write_adapter
from taskmerge.models.backbones import build
from taskmerge.models.head_files import write_head
from taskmerge.models.heads import LinearHead
from taskmerge.models.outputs import Forward
from taskmerge.reports import tables
from taskmerge.specs.suite_file import load_suite

CPU = torch.device("cpu")
COUNT, CLASSES, WIDTH = 30, 3, 12
CLIP = {
    "embed_dim": WIDTH,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 516, "width": 16, "heads": 2, "layers": 1},
}
LAYER = "visual.transformer.resblocks.1."
TASKS = ("cars", "dogs", "maps")
ALL: tuple[Part, ...] = ("heads", "adapters", "blocks")


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def randomised(model: nn.Module, seed: int, scale: float = 0.2) -> Any:
    with torch.no_grad():
        for place, tensor in enumerate(model.parameters()):
            tensor.copy_(drawn(1000 * seed + place, *tensor.shape) * scale)
    return model.eval()


def towers(seed: int) -> dict[str, Tensor]:
    state = randomised(open_clip.CLIP(**CLIP), seed).state_dict()
    return {name: tensor.clone() for name, tensor in state.items() if name.startswith("visual.")}


def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (COUNT, 16, 16, 3), dtype=np.uint8)


def labels(task: str) -> np.ndarray:
    return np.random.default_rng(TASKS.index(task) + 1).integers(0, CLASSES, COUNT)


def head_of(seed: int) -> LinearHead:
    return LinearHead(drawn(seed, CLASSES, WIDTH), drawn(seed + 1, CLASSES), normalise=True, regression=False)


ADAPTERS: dict[str, Adapter] = {
    "cars": SurgeryAdapter(drawn(30, 4, WIDTH), drawn(31, WIDTH, 4)),
    "maps": ProbAdapter(drawn(32, 5, WIDTH), drawn(33, WIDTH, 5), drawn(34, WIDTH, 5)),
}
OWN_HEADS = {"cars": head_of(50), "dogs": head_of(52)}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A suite of three tasks on the same pictures, with a base, an expert each and a head each."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.json").write_text(json.dumps(CLIP))
    (tmp_path / "heads").mkdir()
    for seed, task in enumerate(TASKS, start=1):
        save_file(towers(seed), f"{task}.safetensors")
        write_head(Path(f"heads/{task}.safetensors"), head_of(10 * seed))
    np.savez("data.npz", x=pixels(), **{task: labels(task) for task in TASKS})
    tasks = {
        task: {
            "expert": f"{task}.safetensors", "head": f"heads/{task}.safetensors", "kind": "classification",
            "metric": "accuracy", "classes": ["red", "green", "blue"],
            "data": {"test": {"file": "data.npz", "x": "x", "y": task}, "adapt": {"file": "data.npz", "x": "x"}},
        }
        for task in TASKS
    }  # fmt: skip
    preprocess = {"image_size": 16, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
    backbone = {"library": "open_clip", "model": "model.json", "preprocess": preprocess}
    save_file(towers(0), "base.safetensors")
    suite = {"taskmerge": 1, "name": "three", "backbone": backbone, "base": "base.safetensors", "tasks": tasks}
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(suite, sort_keys=False))
    return tmp_path


def adapted(name: str = "adapted", parts: tuple[Part, ...] = ALL, index: bool = True) -> Path:
    """What an adaptation leaves: heads for cars and dogs, adapters for cars and maps, a block for dogs."""
    folder = Path(name)
    folder.mkdir()
    save_file(towers(9), folder / "model.safetensors")
    if "heads" in parts:
        for task, head in OWN_HEADS.items():
            write_head(folder / "heads" / f"{task}.safetensors", head)
    if "adapters" in parts:
        for task, adapter in ADAPTERS.items():
            write_adapter(folder / "adapters" / f"{task}.safetensors", adapter)
    if "blocks" in parts:
        (folder / "blocks").mkdir()
        save_file(block(), folder / "blocks" / "dogs.safetensors")
    write_manifest(folder, Manifest(method="symerge", needs_task_index=index, parts=parts, protocol="adapt, 9 updates"))
    return folder


def block() -> dict[str, Tensor]:
    return {name: tensor for name, tensor in towers(8).items() if name.startswith(LAYER)}


# --- the same by hand ------------------------------------------------------------------------------------------


def logits(task: str, parts: tuple[Part, ...] = ALL) -> Tensor:
    """float64 [N, C]: the encoder with the task's block, then its adapter, normalisation, and its head."""
    state = {**towers(9), **(block() if task == "dogs" and "blocks" in parts else {})}
    model = open_clip.CLIP(**CLIP).eval()
    model.load_state_dict(state, strict=False)
    values = (pixels().astype(np.float64) / 255 - (0.5, 0.4, 0.3)) / (0.2, 0.3, 0.4)
    with torch.no_grad():
        z = model.visual.double()(torch.from_numpy(values.transpose(0, 3, 1, 2)))
        if task in ADAPTERS and "adapters" in parts:
            own = {name: tensor.double() for name, tensor in adapter_tensors(ADAPTERS[task]).items()}
            inward, outward = (own["down"], own["up"]) if task == "cars" else (own["encode"], own["mean"])
            z = z - (z @ inward.T).clamp(min=0) @ outward.T
        head = OWN_HEADS[task] if task in OWN_HEADS and "heads" in parts else head_of(10 * (TASKS.index(task) + 1))
        assert head.bias is not None
        return z / z.norm(dim=1, keepdim=True) @ head.weight.double().T + head.bias.double()


def correct(task: str, parts: tuple[Part, ...] = ALL) -> np.ndarray:
    found = logits(task, parts)
    highest = found.topk(2).values
    assert float((highest[:, 0] - highest[:, 1]).min()) > 1e-4, "the answers do not hang on rounding"
    return found.argmax(1).numpy() == labels(task)


def bits(report: Report, row: str = "adapted") -> dict[str, list[bool]]:
    return {
        one.task: one.correct.tolist() for one in report.rows if one.encoder == row and one.correct is not None
    }  # fmt: skip


@pytest.mark.parametrize("parts", [ALL, ("heads",), ("adapters",), ("blocks",), ("heads", "blocks"), ()])
@pytest.mark.parametrize("limit", [None, 7])
def test_a_folder_is_scored_as_by_hand(here: Path, parts: tuple[Part, ...], limit: int | None) -> None:
    adapted(parts=parts)
    report = evaluate(["adapted", "experts"], suite="suite.yaml", limit=limit, batch_size=8)
    if limit is None:
        assert bits(report) == {task: correct(task, parts).tolist() for task in TASKS}
    else:
        assert {task: len(found) for task, found in bits(report).items()} == dict.fromkeys(TASKS, limit)
    alone = evaluate(["experts"], suite="suite.yaml", limit=limit, batch_size=8)
    for task in TASKS:
        row = f"expert:{task}"
        assert bits(report, row) == bits(alone, row), "a folder's parts are its own"


def test_outputs_are_those_of_float64(here: Path) -> None:
    adapted()
    suite = load_suite(here / "suite.yaml")
    backbone = build(suite.backbone, resolve=resolve)
    with ExitStack() as stack:
        (encoder,) = encoders(["adapted"], suite, resolve=resolve, stack=stack)
        heads, forward = Heads(suite, backbone, CPU, stack), Forward(backbone, CPU, 8)
        heads.load([encoder])
        forward.fill(encoder.row, encoder.checkpoint, encoder.blocks)
        given = [(task, heads.of(encoder, task)) for task in suite.tasks]
        parts = list(forward.outputs(backbone.prepare(pixels()), given))
        heads.check_unchanged([encoder])
    assert [part.place for part in parts] == [0, 2, 1], "the task with a block is encoded apart"
    for part in parts:
        torch.testing.assert_close(part.values.double(), logits(TASKS[part.place]), atol=2e-5, rtol=2e-5)


def digest(folder: str = "adapted") -> str:
    found = evaluate([folder], suite="suite.yaml", tasks="cars").checkpoints[0]["digest"]
    assert isinstance(found, str)
    return found


@pytest.mark.parametrize("part", ALL)
def test_the_digest_is_of_everything_that_decides_outputs(here: Path, part: Part) -> None:
    folder = adapted()
    before = digest()
    assert digest() == before
    file = folder / part / ("dogs.safetensors" if part == "blocks" else "cars.safetensors")
    tensors, about = load_file(file), metadata(file)
    name = next(iter(tensors))
    save_file({**tensors, name: tensors[name] * 1.25}, file, about)
    assert digest() != before
    save_file(dict(reversed(tensors.items())), file, about)
    assert digest() == before, "the content counts, not when or in what order it was written"
    file.rename(folder / part / "elsewhere.safetensors")
    assert digest() != before


def test_the_digest_of_a_hidden_head_knows_its_activation(here: Path) -> None:
    folder = adapted()
    file = folder / "heads" / "cars.safetensors"
    hidden = {"hidden.weight": drawn(1, 5, WIDTH), "hidden.bias": drawn(2, 5), "output.weight": drawn(3, CLASSES, 5)}
    found = []
    for activation in ("relu", "tanh"):
        save_file(hidden, file, {"format": "pt", "taskmerge": json.dumps({"kind": "head", "activation": activation})})
        found.append(digest())
    assert found[0] != found[1]


def test_the_digest_of_a_folder_without_parts_of_tasks_is_its_models(here: Path) -> None:
    adapted(parts=())
    assert digest() == digest("adapted/model.safetensors")


def metadata(file: Path) -> dict[str, str]:
    with safe_open(file, framework="pt") as opened:
        return dict(opened.metadata() or {})


def test_the_progress_counts_what_is_encoded(here: Path) -> None:
    adapted()
    told: list[tuple[int, int | None]] = []
    evaluate(["adapted", "cars.safetensors"], suite="suite.yaml", progress=lambda *now: told.append(now[:2]))
    assert told[-1] == (3 * COUNT, 3 * COUNT), "the folder's shared encoder, its block, and the other checkpoint"


def test_a_folders_needs_are_reported(here: Path) -> None:
    adapted()
    adapted("joint", parts=(), index=False)
    report = evaluate(["adapted", "joint", "cars.safetensors"], suite="suite.yaml")
    said = {one["name"]: one.get("needs_task_index") for one in to_json(report)["checkpoints"]}
    assert said == {"adapted": True, "joint": False, "cars": None}
    table = tables.scores(report)
    assert table is not None
    assert [note for note in table.notes if "needs" in note] == ["adapted: needs to be told which task an item is of"]
    assert "adapted: adapt, 9 updates" in table.notes
    lacking = [note for note in report.notes if note.startswith("adapted has")]
    assert lacking == [
        "adapted has no block of its own for `cars`: the shared encoder is used",
        "adapted has no adapter for `dogs`: its features stay as they are",
        "adapted has no head of its own for `maps`: the suite's is used",
        "adapted has no block of its own for `maps`: the shared encoder is used",
    ]


def test_other_heads_replace_the_folders_and_adapters_stay(here: Path) -> None:
    adapted()
    found = bits(evaluate(["adapted"], suite="suite.yaml", heads="heads"))
    assert found == {task: correct(task, ("adapters", "blocks")).tolist() for task in TASKS}


def test_a_folder_is_judged_without_labels_as_it_is_scored(here: Path) -> None:
    adapted()
    suite = load_suite(here / "suite.yaml")
    judged = judge(["adapted"], suite=suite, batch_size=8, device=CPU)
    for one in judged:
        p = functional.softmax(logits(one.task), dim=1)
        assert one.values["entropy"] == pytest.approx(float(-(p * p.log()).sum(1).mean()), abs=1e-5)


# --- what does not fit, is damaged, or changes -------------------------------------------------------------------


def refuses(kind: type[BadFile | Mismatch], says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The evaluation ends before any data is read."""

    def unread(*_: object, **__: object) -> Any:
        raise AssertionError("data is read")

    monkeypatch.setattr(running, "portions", unread)
    with pytest.raises(kind, match=says) as caught:
        evaluate(["adapted"], suite="suite.yaml")
    assert caught.value.exit_code == (3 if kind is BadFile else 4)


@pytest.mark.parametrize(
    ("part", "tensors", "says"),
    [
        ("blocks", {"visual.colour": torch.zeros(2)}, "does not fit the encoder in model.safetensors: 1 unexpected"),
        ("blocks", {LAYER + "mlp.c_fc.bias": torch.zeros(2)}, "1 of another shape"),
        ("adapters", {"down": torch.zeros(4, 5), "up": torch.zeros(5, 4)}, "for features of 12 numbers"),
        ("adapters", {"weight": torch.zeros(4, 5)}, "an adapter of features has `down`, `up` or"),
        ("heads", {"weight": torch.zeros(3, 5)}, "for features of 12 numbers"),
        ("heads", {"weight": torch.zeros(4, 12)}, "4 outputs, task cars has 3"),
    ],
)
def test_a_part_that_does_not_fit(
    here: Path, monkeypatch: pytest.MonkeyPatch, part: str, tensors: dict[str, Tensor], says: str
) -> None:
    save_file(tensors, adapted() / part / "cars.safetensors")
    refuses(Mismatch, says, monkeypatch)


@pytest.mark.parametrize("part", ["adapters", "heads", "blocks"])
def test_a_damaged_part(here: Path, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    file = adapted() / part / "cars.safetensors"
    file.write_bytes(b"damaged")
    refuses(BadFile, rf"{part}/cars\.safetensors: is too short", monkeypatch)


@pytest.mark.parametrize("part", ["adapters", "heads"])
def test_bad_numbers_in_a_part(here: Path, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    file = adapted() / part / "cars.safetensors"
    tensors = load_file(file)
    tensors[min(tensors)].view(-1)[0] = float("nan")
    save_file(tensors, file)
    refuses(BadFile, "holds NaN or infinity", monkeypatch)


def test_bad_numbers_in_a_block_are_named(here: Path) -> None:
    file = adapted() / "blocks" / "dogs.safetensors"
    tensors = load_file(file)
    tensors[LAYER + "ln_1.bias"][0] = float("inf")
    save_file(tensors, file)
    with pytest.raises(BadFile, match="holds NaN or infinity") as caught:
        evaluate(["adapted"], suite="suite.yaml")
    assert caught.value.where == f"adapted/blocks/dogs.safetensors: `{LAYER}ln_1.bias`"


FILES = ("model.safetensors", "blocks/dogs.safetensors", "folder.json")


@pytest.mark.parametrize("file", [*(f"adapted/{file}" for file in FILES), "cars.safetensors", "base.safetensors"])
@pytest.mark.parametrize("judged", [False, True])
def test_an_input_that_is_rewritten_while_it_is_read(
    here: Path, monkeypatch: pytest.MonkeyPatch, file: str, judged: bool
) -> None:
    """Noticed at the end, at the latest: the scores may be of two versions."""
    adapted()
    outputs = Forward.outputs

    def rewriting(self: Forward, *given: Any) -> Any:
        yield from outputs(self, *given)
        if self.where(given[1][0][0]).startswith("checkpoint `adapted`") or "adapted" not in file:
            with open(file, "r+b") as stream:
                stream.seek(-1, os.SEEK_END)
                stream.write(b" ")

    monkeypatch.setattr(Forward, "outputs", rewriting)
    suite = load_suite(here / "suite.yaml")

    def read() -> object:
        if judged:
            return judge(["adapted"], suite=suite, batch_size=8, device=CPU)
        return evaluate(["adapted", "experts"], suite=suite)

    with pytest.raises(BadFile, match="changed while it was being read") as caught:
        read()
    assert file in caught.value.message
    assert caught.value.exit_code == 3


def test_a_folder_that_is_replaced_while_it_is_read(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its encoder, once open, is read on; heads would be another folder's."""
    adapted()
    digest_of = opening.digest_of

    def replacing(*given: Any) -> str:
        digest = digest_of(*given)
        if not Path("old").exists():
            Path("adapted").rename("old")
            adapted()
        return digest

    monkeypatch.setattr(opening, "digest_of", replacing)
    with pytest.raises(BadFile, match="changed while it was being read"):
        evaluate(["adapted"], suite="suite.yaml")


# --- unfinished folders ------------------------------------------------------------------------------------------


def test_a_folder_of_a_killed_adaptation_is_no_result(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = adapted()
    (folder / "folder.json").unlink()
    (folder / "trace.jsonl").write_text('{"update": 1}\n')
    (folder / "state").mkdir()
    assert command(["eval", "adapted", "--no-cache", "--suite", "suite.yaml"]) == 3
    said = capsys.readouterr().err
    assert "adapted: is the folder of an adaptation that has not ended" in " ".join(said.split())
    assert "taskmerge adapt … --output adapted --resume" in " ".join(said.split())
    named = evaluate(["adapted/model.safetensors"], suite="suite.yaml")
    assert [row.encoder for row in named.rows] == ["adapted"] * 3, "its encoder by its own path is a checkpoint"
