"""Task heads are not merged: with a suite that knows of them, and with --heads keep, on models that libraries save."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torchvision
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import taskmerge
from taskmerge.cli.app import run
from taskmerge.experts.compare import agree
from taskmerge.specs.merge import MergeSpec

SIZES = {
    "vocab_size": 24, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16,
    "max_position_embeddings": 20,
}  # fmt: skip
GPT2 = {"vocab_size": 24, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 20, "pad_token_id": 0}
VIT = {**SIZES, "image_size": 8, "patch_size": 4}
TEXT = "data: {test: {file: t.npz, x: x, y: y}}"
LAYER = frozenset({"weight", "bias"})


def config(family: str, classes: int = 2) -> Any:
    sizes = {"gpt2": GPT2, "vit": VIT}.get(family, SIZES)
    return transformers.AutoConfig.for_model(family, **sizes, num_labels=classes)


def classifier(family: str, classes: int) -> nn.Module:
    auto = "AutoModelForImageClassification" if family == "vit" else "AutoModelForSequenceClassification"
    found: nn.Module = getattr(transformers, auto).from_config(config(family, classes))
    return found


def layers(*names: str) -> set[str]:
    return {f"{name}.{part}" for name in names for part in LAYER}


HEADS = {
    "roberta": layers("classifier.dense", "classifier.out_proj"),
    "bert": layers("classifier", "bert.pooler.dense"),
    "distilbert": layers("classifier", "pre_classifier"),
    "gpt2": {"score.weight"},
    "vit": layers("classifier"),
}
"""Model type -> its head: what of the expert decides beside the encoder's own output."""
PREFIXES = {"roberta": "roberta.", "bert": "bert.", "distilbert": "distilbert.", "gpt2": "transformer.", "vit": "vit."}


def experts(folder: Path, family: str, classes: Mapping[str, int]) -> dict[str, dict[str, Tensor]]:
    """Classifiers as transformers saves them, a folder a task."""
    for seed, (task, count) in enumerate(classes.items()):
        torch.manual_seed(seed)
        classifier(family, count).save_pretrained(folder / task)
    return {task: load_file(folder / task / "model.safetensors") for task in classes}


def suite(folder: Path, family: str, heads: Mapping[str, str], base: str | None = "base") -> Path:
    tasks = "".join(
        f"  {task}: {{expert: {task}, head: {head}, classes: [a, b], {TEXT}}}\n" for task, head in heads.items()
    )
    reading = "preprocess: {image_size: 8, mean: [0, 0, 0], std: [1, 1, 1]}" if family == "vit" else "tokenizer: base"
    pooling = "last" if family == "gpt2" else "cls"
    backbone = f"backbone: {{library: transformers, model: base, pooling: {pooling}, {reading}}}\n"
    path = folder / "suite.yaml"
    path.write_text(f"taskmerge: 1\n{backbone}{f'base: {base}' if base else ''}\ntasks:\n{tasks}")
    return path


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for models; the working directory is another, empty one."""
    (tmp_path / "models").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "models"


def merged(*arguments: object) -> dict[str, Tensor]:
    assert run(["merge", *map(str, arguments), "-o", "out.safetensors", "--overwrite"]) == 0
    return load_file("out.safetensors")


def same(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


# --- with a suite ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("equal", [True, False], ids=["equal", "unequal"])
@pytest.mark.parametrize("family", HEADS)
def test_a_suite_of_classifiers_is_merged_without_another_option(models: Path, family: str, equal: bool) -> None:
    """Heads of equal shape are not averaged in silence. The base is the bare encoder, which names tensors otherwise."""
    classes = {"one": 2, "two": 2 if equal else 3, "three": 2}
    own = experts(models, family, classes)
    torch.manual_seed(9)
    transformers.AutoModel.from_config(config(family)).save_pretrained(models / "base")
    said = suite(models, family, dict.fromkeys(classes, "expert"))
    base = load_file(models / "base" / "model.safetensors")
    prefix = PREFIXES[family]
    for method in ("average", "task_arithmetic", "cart"):
        more = ("--coefficient", "0.25") if method == "task_arithmetic" else ()
        found = merged("--suite", said, "-m", method, *more)
        encoder = {
            name: [one[name].double() for one in own.values()] for name in own["one"] if name not in HEADS[family]
        }
        bare = method == "task_arithmetic"
        assert found.keys() == {name.removeprefix(prefix) if bare else name for name in encoder}, method
        for task in classes:
            head = load_file(f"heads/{task}.safetensors")
            wanted = {name: tensor for name, tensor in own[task].items() if name in HEADS[family]}
            assert same({name.removeprefix(prefix): one for name, one in head.items()},
                        {name.removeprefix(prefix): one for name, one in wanted.items()})  # fmt: skip
        for name, rows in encoder.items():
            if bare:
                start = base[name.removeprefix(prefix)].double()
                torch.testing.assert_close(
                    found[name.removeprefix(prefix)].double(), start + 0.25 * sum(row - start for row in rows),
                    rtol=1e-5, atol=1e-6,
                )  # fmt: skip
            elif method == "average":
                torch.testing.assert_close(found[name].double(), sum(rows) / 3, rtol=1e-5, atol=1e-6)


def test_the_notes_say_what_the_suite_decided(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experts(models, "gpt2", {"one": 2, "two": 2})
    transformers.AutoModel.from_config(config("gpt2")).save_pretrained(models / "base")
    said = suite(models, "gpt2", {"one": "expert", "two": "expert"})
    merged("--suite", said, "-m", "ties")
    notes = capsys.readouterr().err
    assert f"note: heads are kept per task in heads/ beside the output, as {said} says (--heads decides)" in notes
    assert "note: names are taken without the prefix `transformer.`" in notes
    assert "note: 1 tensors are not merged but kept per task: `score.weight`" in notes


def test_what_is_merged_and_kept_makes_the_classifier_again(models: Path) -> None:
    """Into transformers' own class: every tensor is there once, and one expert's merge computes what it computes."""
    own = experts(models, "roberta", {"one": 2})
    suite(models, "roberta", {"one": "expert"}, base=None)
    parts = merged("--suite", models, "-m", "average") | load_file("heads/one.safetensors")
    assert same(parts, own["one"])
    model = classifier("roberta", 2)
    model.load_state_dict(parts)


def test_heads_that_a_suite_has_in_files_are_left_out(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is written to `heads/`, where such files often lie; an expert's own heads come with --heads keep."""
    experts(models, "vit", {"one": 2, "two": 3})
    said = suite(models, "vit", {"one": "heads/one.safetensors", "two": "heads/two.safetensors"}, base=None)
    found = merged("--suite", said)
    assert not any(name.startswith("classifier") for name in found)
    assert not Path("heads").exists()
    notes = capsys.readouterr().err
    assert f"left out 2 tensors of heads, which {said} has elsewhere: `classifier.bias`, `classifier.weight`" in notes
    assert "matches no tensor" not in notes
    merged("--suite", said, "--heads", "keep")
    assert load_file("heads/two.safetensors")["classifier.weight"].shape == (3, 8)
    assert run(["merge", "--suite", str(said), "--heads", "refuse", "-o", "no.safetensors"]) == 4


def test_a_head_file_of_the_suite_is_not_replaced(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experts(models, "vit", {"one": 2, "two": 2})
    suite(models, "vit", {"one": "expert", "two": "heads/two.safetensors"}, base=None)
    (models / "heads").mkdir()
    save_file({"weight": torch.ones(2, 8)}, models / "heads" / "two.safetensors")
    monkeypatch.chdir(models)
    assert run(["merge", "--suite", "suite.yaml", "--overwrite"]) == 2
    assert load_file("heads/two.safetensors").keys() == {"weight"}
    assert run(["merge", "--suite", "suite.yaml", "-o", "elsewhere"]) == 0
    assert load_file("elsewhere/heads/two.safetensors").keys() == HEADS["vit"]
    assert run(["merge", "--suite", "suite.yaml", "--exclude", "classifier.*"]) == 0


def replayed(*more: str) -> bytes:
    assert run(["merge", "--recipe", "out.safetensors", *more, "-o", "again.safetensors", "--overwrite"]) == 0
    return Path("again.safetensors").read_bytes()


@pytest.mark.parametrize("head", ["expert", "heads/none.safetensors"])
def test_the_merge_is_replayed_with_and_without_the_suite(models: Path, head: str) -> None:
    experts(models, "bert", {"one": 2, "two": 2})
    transformers.AutoModel.from_config(config("bert")).save_pretrained(models / "base")
    found = merged("--suite", suite(models, "bert", {"one": head, "two": head}), "-m", "ties")
    assert found.keys() & {"embeddings.word_embeddings.weight", "pooler.dense.weight"} == {
        "embeddings.word_embeddings.weight"
    }
    first = Path("out.safetensors").read_bytes()
    assert replayed(str(models)) == first
    assert replayed(str(models), "--suite", str(models)) == first
    assert run(["verify", "out.safetensors", str(models)]) == 0


def test_a_suite_changes_nothing_in_the_replay_of_a_merge_without_it(models: Path) -> None:
    experts(models, "vit", {"one": 2, "two": 2})
    suite(models, "vit", {"one": "expert", "two": "expert"}, base=None)
    assert HEADS["vit"] <= merged(models / "one", models / "two", "-m", "average").keys()
    assert replayed(str(models), "--suite", str(models)) == Path("out.safetensors").read_bytes()


# --- without one -----------------------------------------------------------------------------------------------


def source(task: str, shapes: Mapping[str, tuple[int, ...]]) -> Any:
    """An input that has only a header."""
    specs = {name: SimpleNamespace(name=name, dtype="F32", shape=shape, nbytes=0) for name, shape in shapes.items()}
    return SimpleNamespace(task=task, where=f"{task}.safetensors", specs=specs, kind="weight")


def saved(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def kept(*shapes: Mapping[str, tuple[int, ...]], base: Mapping[str, tuple[int, ...]] | None = None) -> set[str]:
    inputs = [source(f"task{index}", one) for index, one in enumerate(shapes)]
    return set(agree(MergeSpec(heads="keep"), source("base", base) if base else None, inputs, base is not None).heads)


@pytest.mark.parametrize("classes", [(2, 3), (2, 2)], ids=["unequal", "equal"])
@pytest.mark.parametrize("family", HEADS)
def test_a_known_head_is_kept_whole_whatever_its_shape(family: str, classes: tuple[int, int]) -> None:
    one, two = (saved(classifier(family, count)) for count in classes)
    assert kept(one, two) == HEADS[family]
    assert kept(*({f"module.{name}": shape for name, shape in each.items()} for each in (one, two))) == {
        f"module.{name}" for name in HEADS[family]
    }


@pytest.mark.parametrize(
    ("build", "head"),
    [
        (torchvision.models.resnet18, layers("fc")),
        (torchvision.models.mobilenet_v3_small, layers("classifier.3")),
        (torchvision.models.vgg11_bn, layers("classifier.6")),
    ],
)
def test_of_a_sequence_only_the_layer_that_differs_is_a_head(build: Any, head: set[str]) -> None:
    """VGG's first fully connected layers are pretrained: a hundred million parameters."""
    with torch.device("meta"):
        one, two = (saved(build(num_classes=count)) for count in (2, 3))
    assert kept(one, two) == head


ENCODER = {"enc.blocks.0.mlp.fc.weight": (4, 4), "enc.blocks.1.mlp.fc.weight": (4, 4), "enc.norm.weight": (4,)}


@pytest.mark.parametrize(
    ("odd", "beside", "head"),
    [
        ("enc.proj", {}, {"enc.proj"}),  # a parameter of the encoder's own: never the encoder
        ("proj", {}, {"proj"}),
        ("enc.head.fc.weight", {"enc.head.norm.weight": (4,)}, {"enc.head.fc.weight", "enc.head.norm.weight"}),
        ("top.fc.weight", {"top.norm.bias": (4,), "topmost.bias": (4,)}, {"top.fc.weight", "top.norm.bias"}),
        ("top.2.weight", {"top.0.weight": (4, 4)}, {"top.2.weight"}),
        ("embeddings.word.weight", {"embeddings.norm.weight": (4,)}, {"embeddings.word.weight"}),
        ("enc.blocks.1.mlp.gate.weight", {}, {"enc.blocks.1.mlp.gate.weight"}),
    ],
)
def test_a_head_is_the_outermost_module_that_is_no_encoder(
    odd: str, beside: dict[str, tuple[int, ...]], head: set[str]
) -> None:
    one, two = ({**ENCODER, **beside, odd: (rows, 4)} for rows in (2, 3))
    assert kept(one, two) == head
    found = agree(MergeSpec(heads="keep"), None, [source("one", one), source("two", two)], False)
    assert set(found.names) == set(one) - head, "all else is merged"
    assert any("beside what is kept" in note for note in found.notes) == (
        odd in ("top.2.weight", "embeddings.word.weight")
    )


def test_what_is_most_of_a_model_is_no_head() -> None:
    """A small network under one wrapper: only its last layer, never all of it."""
    one, two = (
        {**{f"net.fc{i}.{part}": (4,) for i in (1, 2) for part in LAYER}, "net.fc3.weight": (n, 4)} for n in (2, 3)
    )
    assert kept(one, two) == {"net.fc3.weight"}


def test_a_tower_that_the_base_lacks_is_no_head() -> None:
    """It is refused as before, and no option is proposed that would keep it per task."""
    shapes = {**ENCODER, "text.blocks.0.mlp.fc.weight": (4, 4)}
    with pytest.raises(taskmerge.errors.Mismatch) as caught:
        kept(shapes, shapes, base=ENCODER)
    assert "--exclude 'text.blocks.0.mlp.fc.weight'" in str(caught.value)
    assert "--heads keep" not in str(caught.value)


def test_names_that_differ_by_a_prefix_are_no_heads() -> None:
    """Not even where no name tells of numbered blocks."""
    shapes: dict[str, tuple[int, ...]] = {"net.a.weight": (4,), "net.b.weight": (4,)}
    with pytest.raises(taskmerge.errors.Mismatch, match="the base lacks 2 tensors") as caught:
        kept(shapes, shapes, base={"a.weight": (4,), "b.weight": (4,)})
    assert "`--strip-prefix net.`" in str(caught.value)


def test_decoders_and_deeplab_heads_are_kept_by_name() -> None:
    dense = {"classifier.0.convs.0.0.weight": (4, 4, 1, 1), "classifier.4.weight": (3, 4, 1, 1)}
    assert kept({**ENCODER, **dense}, {**ENCODER, **dense}) == set(dense)
    one, two = {**ENCODER, "decoders.seg.4.weight": (2, 4)}, {**ENCODER, "decoders.depth.4.weight": (1, 4)}
    assert kept(one, two) == {"decoders.seg.4.weight", "decoders.depth.4.weight"}


# --- prefixes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bare", ["experts", "base"])
def test_the_prefix_that_is_named_mends_towers_saved_with_and_without_it(
    models: Path, bare: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """CLIP's vision tower beside whole CLIP models: some versions of transformers write `vision_model.`, some don't."""
    torch.manual_seed(0)
    small = {**SIZES, "vocab_size": 30, "projection_dim": 4}
    whole = transformers.CLIPModel(transformers.CLIPConfig(text_config=small, vision_config={**small, **VIT}))
    full = {name: tensor.contiguous() for name, tensor in whole.state_dict().items()}
    tower = {name: one for name, one in full.items() if name.startswith("vision_model.")}
    stripped = {name.removeprefix("vision_model."): one for name, one in tower.items()}
    for seed, task in enumerate(("one", "two"), start=1):
        names = stripped if bare == "experts" else tower
        save_file({name: one + seed if one.is_floating_point() else one for name, one in names.items()},
                  models / f"{task}.safetensors")  # fmt: skip
    save_file(full if bare == "experts" else stripped, models / "base.safetensors")
    command = ["merge", str(models / "*.safetensors"), "-m", "task_arithmetic", "-o", "out.safetensors"]
    assert run(command) == 4
    assert "the names agree without the prefix `vision_model.`: `--strip-prefix vision_model.`\n" in (
        capsys.readouterr().err
    )
    assert run([*command, "--strip-prefix", "vision_model."]) == 0
    assert load_file("out.safetensors").keys() == stripped.keys()


@pytest.mark.parametrize("base", ["AutoModel", "AutoModelForMaskedLM"])
def test_the_prefix_of_classifiers_is_found_beside_their_heads(
    models: Path, base: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The options that the error proposes work: with a bare base the prefix too, with one of the same names heads."""
    experts(models, "bert", {"one": 2, "two": 2})
    getattr(transformers, base).from_config(config("bert")).save_pretrained(models / "base")
    command = ["merge", *(str(models / one) for one in ("base", "one", "two")), "-m", "ties", "-o", "out.safetensors"]
    assert run(command) == 4
    options = ["--strip-prefix", "bert.", "--heads", "keep"] if base == "AutoModel" else ["--heads", "keep"]
    assert f"`{' '.join(options)}`" in capsys.readouterr().err
    assert run([*command, *options]) == 0
    assert not any("pooler" in name or "classifier" in name for name in load_file("out.safetensors"))
    if base == "AutoModel":
        assert run([*command, "--heads", "keep", "--overwrite"]) == 4, "a prefix makes no heads of everything"
        assert "`--strip-prefix bert.`" in capsys.readouterr().err
