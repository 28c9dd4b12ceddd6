"""Suite files: what they may say, where every complaint points, and how a suite is found."""

import os
import re
from pathlib import Path

import pytest

from taskmerge.errors import BadFile, UsageError
from taskmerge.specs.suite import HubPath, Split
from taskmerge.specs.suite_file import find_suite, load_suite, packaged

EXAMPLE = Path(__file__).parents[2] / "examples" / "tiny" / "suite.yaml"
EXPERTS = Path(os.environ.get("TASKMERGE_EXPERTS") or "none")
CLIP = """\
taskmerge: 1
name: two
backbone:
  library: open_clip
  model: ViT-B-32
base: base.safetensors
tasks:
  cars:
    expert: cars.safetensors
    head: heads/cars.safetensors
    kind: classification
    metric: accuracy
    templates: ['a photo of a {}.']
    classes: [audi, bmw]
    data:
      test: {file: cars.npz, x: test_x, y: test_y}
      adapt: {file: cars.npz, x: adapt_x}
"""
TEXT = CLIP.replace("open_clip", "transformers").replace("ViT-B-32", "base\n  tokenizer: base")


def written(folder: Path, text: str) -> Path:
    path = folder / "suite.yaml"
    path.write_text(text)
    return path


def complaint(folder: Path, text: str) -> str:
    """The one message about a bad suite, with the file's name in place of its path."""
    path = written(folder, text)
    with pytest.raises(UsageError) as caught:
        load_suite(path)
    return str(caught.value).replace(str(path), "suite.yaml")


def split_of(folder: Path, text: str) -> Split:
    suite = load_suite(written(folder, CLIP.replace("{file: cars.npz, x: adapt_x}", text)))
    return suite.tasks[0].splits["adapt"]


# --- what a suite says -------------------------------------------------------------------------------------------


def test_the_embedded_example() -> None:
    suite = load_suite(EXAMPLE)
    assert [task.name for task in suite.tasks] == [
        "digits", "letters", "symbols", "shapes", "colours", "counts", "arrows", "textures",
    ]  # fmt: skip
    assert suite.folder == EXAMPLE.parent
    assert suite.base == EXAMPLE.parent / "base.safetensors"
    assert suite.backbone.model == EXAMPLE.parent / "model.json"
    assert suite.backbone.tokenizer is not None
    assert suite.backbone.tokenizer.bpe == EXAMPLE.parent / "bpe.txt.gz"
    assert suite.backbone.tokenizer.context_length == 16
    assert suite.backbone.preprocess is not None
    assert suite.backbone.preprocess.image_size == 24
    digits = suite.tasks[0]
    assert (digits.kind, digits.metric, len(digits.classes)) == ("classification", "accuracy", 10)
    assert digits.splits["test"].x == ("test_x",)
    assert (digits.splits["test"].y, digits.splits["adapt"].y) == ("test_y", None)
    assert re.fullmatch(r".*suite\.yaml:\d+:7", digits.splits["test"].place)


@pytest.mark.skipif(not EXPERTS.is_dir(), reason="TASKMERGE_EXPERTS names no experts")
def test_the_shared_suites_load_as_they_are() -> None:
    vision, text = load_suite(EXPERTS / "vision" / "suite.yaml"), load_suite(EXPERTS / "text" / "suite.yaml")
    assert [len(task.classes) for task in vision.tasks] == [10, 10, 26, 46, 11, 8, 16, 50]
    assert "no" in vision.tasks[3].classes
    assert [(task.kind, task.metric) for task in text.tasks[:3]] == [
        ("regression", "pearson+spearman"), ("classification", "accuracy"), ("classification", "matthews"),
    ]  # fmt: skip
    assert (text.backbone.pooling, text.backbone.max_length) == ("mean", 64)
    assert text.backbone.tokenizer is not None
    assert text.backbone.tokenizer.folder == EXPERTS / "text" / "base"


def test_defaults_are_few(tmp_path: Path) -> None:
    text = CLIP.replace("    kind: classification\n    metric: accuracy\n", "").replace("name: two\n", "")
    suite = load_suite(written(tmp_path, text))
    assert (suite.name, suite.qkv, suite.notes) == ("suite", "as-is", ())
    assert (suite.tasks[0].kind, suite.tasks[0].metric) == ("classification", "accuracy")
    assert suite.backbone.model == "ViT-B-32", "a registered name stays a name"


def test_a_place_on_the_hub_stands_wherever_a_path_does(tmp_path: Path) -> None:
    hub = "{hub: org/name, file: a/b.safetensors, revision: abc}"
    text = (
        TEXT.replace("cars.safetensors", hub, 1)
        .replace("heads/cars.safetensors", hub)
        .replace("base.safetensors", "{hub: org/base}")
        .replace("model: base", "model: {hub: org/base}")
        .replace("tokenizer: base", "tokenizer: {hub: org/base}")
        .replace("{file: cars.npz, x: test_x, y: test_y}", "{file: {hub: org/data, file: test.npz}, x: x, y: y}")
    )
    suite = load_suite(written(tmp_path, text))
    where = HubPath("org/name", "a/b.safetensors", "abc")
    assert (suite.tasks[0].expert, suite.tasks[0].head) == (where, where)
    assert suite.base == suite.backbone.model == HubPath("org/base")
    assert suite.backbone.tokenizer is not None
    assert suite.backbone.tokenizer.folder == HubPath("org/base")
    assert suite.tasks[0].splits["test"].location == HubPath("org/data", "test.npz")
    assert suite.tasks[0].splits["test"].form == "npz"


@pytest.mark.parametrize(
    ("text", "form", "x", "y"),
    [
        ("{file: a.jsonl, x: text}", "jsonl", ("text",), None),
        ("{file: a.jsonl.gz, x: [s1, s2], y: label}", "jsonl", ("s1", "s2"), "label"),
        ("{file: a.parquet, x: image, y: label}", "parquet", ("image",), "label"),
        ("{folder: pictures}", "images", (), "label"),
        ("{folder: pictures, labelled: false}", "images", (), None),
        ("{folder: saved, split: train, x: image}", "datasets", ("image",), None),
    ],
)
def test_files_and_folders(tmp_path: Path, text: str, form: str, x: tuple[str, ...], y: str | None) -> None:
    split = split_of(tmp_path, text)
    assert (split.form, split.x, split.y) == (form, x, y)
    assert isinstance(split.location, Path)
    assert split.location.parent == tmp_path


def test_a_saved_folder_is_known_by_what_lies_in_it(tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "dataset_info.json").write_text("{}")
    assert "`x` is missing" in complaint(tmp_path, CLIP.replace("{file: cars.npz, x: adapt_x}", "{folder: saved}"))


def test_torchvision_and_hub_splits(tmp_path: Path) -> None:
    split = split_of(tmp_path, "{torchvision: EMNIST, root: data, split: test, configuration: digits}")
    assert (split.form, split.dataset, split.name, split.configuration) == ("torchvision", "EMNIST", "test", "digits")
    assert (split.location, split.y) == (tmp_path / "data", "label")
    split = split_of(tmp_path, "{hub: nyu-mll/glue, configuration: mrpc, split: validation, x: [a, b], y: label}")
    assert (split.form, split.configuration, split.name) == ("hub", "mrpc", "validation")
    assert split.location == HubPath("nyu-mll/glue")


def test_a_task_of_the_catalogue(tmp_path: Path) -> None:
    text = CLIP[: CLIP.index("  cars:")] + "  mine: {catalogue: mnist, head: zero_shot, expert: m.safetensors}\n"
    task = load_suite(written(tmp_path, text)).tasks[0]
    assert (task.name, task.head, task.classes) == ("mine", "zero_shot", tuple("0123456789"))
    assert task.templates == ('a photo of the number: "{}".',)
    assert task.splits["test"].location == HubPath("ylecun/mnist")
    own = text.replace("zero_shot,", "zero_shot, metric: mean_per_class, data: {test: {file: m.npz, x: x, y: y}},")
    task = load_suite(written(tmp_path, own)).tasks[0]
    assert task.metric == "mean_per_class", "what the task says itself comes first"
    assert list(task.splits) == ["test"]
    assert "did you mean `mnist`" in complaint(tmp_path, text.replace("mnist", "mnits"))


# --- complaints --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "place", "says"),
    [
        ("name: two", "nmae: two", "2:1", "did you mean `name`?"),
        ("library: open_clip", "librray: open_clip", "4:3", "did you mean `library`?"),
        ("library: open_clip", "library: open-clip", "4:3", "did you mean `open_clip`?"),
        ("    metric: accuracy", "    metrik: accuracy", "12:5", "did you mean `metric`?"),
        ("{file: cars.npz, x: adapt_x}", "{file: cars.npz, x: adapt_x, z: 1}", "17:43", "unknown key `z`"),
        ("taskmerge: 1", "taskmerge: 2", "1:1", "this version reads 1"),
        ("taskmerge: 1", "taskmerge: true", "1:1", "is not known"),
        ("taskmerge: 1\n", "", "", "the version of the format is missing"),
        ("base: base", "qkv: fusd\nbase: base", "6:1", "did you mean `fused`?"),
        ("[audi, bmw]", "[audi, no]", "14:21", "no is a truth value to YAML; `classes` takes a text\nhint: write 'no'"),
        ("[audi, bmw]", "[audi, 7]", "14:21", "write '7'"),
        ("[audi, bmw]", "[audi, ~]", "14:21", "`classes` has an empty text"),
        ("[audi, bmw]", "[audi, [bmw]]", "14:21", "`classes` is a text, not"),
        ("[audi, bmw]", "[audi, audi]", "14:5", "`audi` stand(s) twice"),
        ("[audi, bmw]", "[audi]", "14:5", "fewer than two classes"),
        ("    classes: [audi, bmw]\n", "", "8:3", "`classes` are missing"),
        ("'a photo of a {}.'", "'a {}, {}.'", "13:17", "template `a {}, {}.` has other fields or braces"),
        ("'a photo of a {}.'", "'a {} in {place}.'", "13:17", "other fields or braces"),
        ("'a photo of a {}.'", "'a {} {'", "13:17", "other fields or braces"),
        ("'a photo of a {}.'", "'a {} }'", "13:17", "other fields or braces"),
        ("'a photo of a {}.'", "'a {:d}.'", "13:17", "other fields or braces"),
        ("'a photo of a {}.'", "'a {0}.'", "13:17", "has no {} for the class's name"),
        ("'a photo of a {}.'", "'a {{}}.'", "13:17", "has no {} for the class's name"),
        ("'a photo of a {}.'", "'a photo of a car.'", "13:17", "has no {} for the class's name"),
        ("metric: accuracy", "metric: pearson", "12:5", "classification has accuracy, mean_per_class, matthews"),
        ("metric: accuracy", "metric: acuracy", "12:5", "did you mean `accuracy`?"),
        ("kind: classification", "kind: clasification", "11:5", "did you mean `classification`?"),
        ("    head: heads/cars.safetensors\n", "", "8:3", "`head` is missing"),
        ("heads/cars.safetensors", "", "10:5", "`head` has an empty text"),
        ("cars.safetensors", "[a, b]", "9:5", "`expert` is a text, not"),
        ("cars.safetensors", "{huub: org/name}", "9:14", "did you mean `hub`?"),
        ("cars.safetensors", "{hub: 'not a name'}", "9:14", "is no name of a repository"),
        ("  model: ViT-B-32\n", "", "3:1", "`model` is missing"),
        ("ViT-B-32", "ViT-B-32\n  pooling: mean", "6:3", "`pooling` has no meaning with open_clip"),
        ("ViT-B-32", "ViT-B-32\n  max_length: 64", "6:3", "`max_length` has no meaning with open_clip"),
        ("ViT-B-32", "ViT-B-32\n  tokenizer: {folder: x}", "6:15", "no tokenizer of open_clip"),
        ("ViT-B-32", "ViT-B-32\n  tokenizer: {bpe: x, context_length: 0}", "6:23", "whole number from 1 on"),
        ("ViT-B-32", "ViT-B-32\n  preprocess: {image_size: 0, mean: [0, 0, 0], std: [1, 1, 1]}", "6:16", "from 1 on"),
        ("ViT-B-32", "ViT-B-32\n  preprocess: {image_size: 9, mean: [0, 0], std: [1, 1, 1]}", "6:31", "3 numbers"),
        ("ViT-B-32", "ViT-B-32\n  preprocess: {image_size: 9, mean: [x, 0, 0], std: [1, 1, 1]}", "6:31", "3 numbers"),
        ("ViT-B-32", "ViT-B-32\n  preprocess: {image_size: 9, mean: [true, 0, 0], std: [1, 1, 1]}", "6:31", "3 num"),
        ("ViT-B-32", "ViT-B-32\n  preprocess: {image_size: 9, mean: [0, 0, 0], std: [1, 1, 0]}", "6:48", "positive"),
        ("ViT-B-32", "ViT-B-32\n  preprocess: {image_size: 9, mean: [9, 0, 0], std: [1, 1, 1]}", "6:31", "by 255"),
        ("ViT-B-32", "ViT-B-32\n  preprocess: {mean: [0, 0, 0], std: [1, 1, 1]}", "6:3", "`image_size` is missing"),
        ("{file: cars.npz, x: adapt_x}", "{file: cars.txt, x: a}", "17:15", "no known ending"),
        ("{file: cars.npz, x: adapt_x}", "{file: cars.npz}", "17:7", "`x` is missing"),
        ("{file: cars.npz, x: adapt_x}", "{file: a.csv, x: a, classes_by: order}", "17:34", "no value of `classes_by`"),
        ("{file: cars.npz, x: adapt_x}", "{file: cars.npz, x: [a, b]}", "17:31", "an .npz has one"),
        ("{file: cars.npz, x: adapt_x}", "{file: a.jsonl, x: [a, b, c]}", "17:30", "names 3 columns"),
        ("{file: cars.npz, x: adapt_x}", "{file: cars.npz, folder: b, x: a}", "17:7", "`file` and `folder`"),
        ("{file: cars.npz, x: adapt_x}", "{x: a}", "17:7", "one source, not none"),
        ("{file: cars.npz, x: adapt_x}", "{torchvision: MNIST}", "17:7", "`root` is missing"),
        ("{file: cars.npz, x: adapt_x}", "{folder: p, x: a, labelled: false}", "17:32", "belongs to class folders"),
        ("{file: cars.npz, x: adapt_x}", "{folder: p, labelled: perhaps}", "17:26", "is true or false"),
        ("{file: cars.npz, x: adapt_x}", "cars.npz", "17:7", "`adapt` is a mapping, not `cars.npz`"),
        ("{file: cars.npz, x: adapt_x}", "{file: cars.npz, x: a, x: b}", "17:37", "the key `x` stands twice"),
        ("  cars:", "  no:", "8:3", "the key no is a truth value to YAML"),
    ],
)  # fmt: skip
def test_complaints_name_the_place_and_the_way_out(tmp_path: Path, old: str, new: str, place: str, says: str) -> None:
    assert CLIP.count(old), "the test itself must change something"
    said = complaint(tmp_path, CLIP.replace(old, new, 1))
    assert f"suite.yaml{':' if place else ''}{place}: " in said
    assert says in said
    assert "\nhint: " in said
    assert "things are wrong" not in said or "did you mean" in says, "one complaint, but for a key that then lacks"


@pytest.mark.parametrize("text", ["tasks: {}", "tasks:", "tasks: {cars: }", "tasks: [cars]"])
def test_empty_tasks(tmp_path: Path, text: str) -> None:
    said = complaint(tmp_path, CLIP[: CLIP.index("tasks:")] + text)
    assert re.search(r"suite\.yaml:7:\d+: `(tasks|cars)` is (empty|a mapping)", said)


def test_a_task_without_data(tmp_path: Path) -> None:
    assert "the task `cars` has no `data`" in complaint(tmp_path, CLIP[: CLIP.index("    data:")])
    assert "`data` is empty" in complaint(tmp_path, CLIP[: CLIP.index("    data:")] + "    data: {}")


def test_missing_sections(tmp_path: Path) -> None:
    said = complaint(tmp_path, "taskmerge: 1\n")
    assert "2 things are wrong" in said
    assert "`backbone` is missing" in said
    assert "`tasks` is missing" in said


def test_all_problems_come_in_one_message(tmp_path: Path) -> None:
    text = CLIP.replace("name:", "nmae:").replace("accuracy", "pearson").replace("[audi, bmw]", "[audi, no]")
    said = complaint(tmp_path, text)
    assert said.startswith(
        "suite.yaml: 3 things are wrong:\n  suite.yaml:2:1: unknown key `nmae` (did you mean `name`?)"
    )
    assert "\n  suite.yaml:12:5: `pearson` is no metric of classification" in said
    assert "\n  suite.yaml:14:21: no is a truth value" in said
    assert said.endswith("\nhint: `taskmerge suites clip-vit-b-32-8 --yaml` shows a whole one")


def test_texts_need_a_tokenizer_and_pictures_a_preprocess(tmp_path: Path) -> None:
    assert load_suite(written(tmp_path, TEXT)).backbone.tokenizer is not None
    bare = TEXT.replace("  tokenizer: base\n", "")
    assert "transformers needs a `tokenizer` (texts) or a `preprocess` (pictures)" in complaint(tmp_path, bare)
    pictures = bare.replace(
        "model: base", "model: base\n  preprocess: {image_size: 8, mean: [0, 0, 0], std: [1, 1, 1]}"
    )
    assert load_suite(written(tmp_path, pictures)).backbone.preprocess is not None
    assert "a zero-shot head needs a tokenizer" in complaint(
        tmp_path, pictures.replace("heads/cars.safetensors", "zero_shot")
    )
    long = pictures.replace("model: base", "model: base\n  max_length: 8")
    assert "there is no tokenizer" in complaint(tmp_path, long)
    wrong = TEXT.replace("tokenizer: base", "tokenizer: {folder: base, context_length: 8}")
    assert "write `max_length`" in complaint(tmp_path, wrong)


def test_heads_made_of_other_things_need_them(tmp_path: Path) -> None:
    zero = CLIP.replace("heads/cars.safetensors", "zero_shot")
    assert load_suite(written(tmp_path, zero)).tasks[0].head == "zero_shot"
    bare = zero.replace("    templates: ['a photo of a {}.']\n", "")
    assert "a zero-shot head needs `templates`" in complaint(tmp_path, bare)
    own = CLIP.replace("heads/cars.safetensors", "expert").replace("    classes: [audi, bmw]\n", "")
    assert load_suite(written(tmp_path, own)).tasks[0].classes == ()
    assert "there is no `expert`" in complaint(tmp_path, own.replace("    expert: cars.safetensors\n", ""))
    regression = zero.replace("kind: classification", "kind: regression").replace("accuracy", "pearson")
    assert "a zero-shot head is made of class names" in complaint(tmp_path, regression)
    assert "regression has no classes" in complaint(tmp_path, regression)


def test_dense_tasks_need_torchvision(tmp_path: Path) -> None:
    depth = CLIP.replace("    kind: classification\n    metric: accuracy\n", "    kind: depth\n").replace(
        "    classes: [audi, bmw]\n", ""
    )
    assert "depth needs dense features" in complaint(tmp_path, depth)
    vision = depth.replace("open_clip", "torchvision").replace("ViT-B-32", "resnet50")
    assert load_suite(written(tmp_path, vision)).tasks[0].metric == "abs_error"
    reading = vision.replace("resnet50", "resnet50\n  tokenizer: x")
    assert "torchvision reads no texts" in complaint(tmp_path, reading)
    assert "are named" in complaint(tmp_path, vision.replace("resnet50", "net.json"))


@pytest.mark.parametrize("text", ["- a\n- b\n", "just text", "", "a: &x {b: *x}\n", "a: [1\n", "\ttaskmerge: 1"])
def test_no_mapping_or_no_yaml(tmp_path: Path, text: str) -> None:
    assert "suite.yaml" in complaint(tmp_path, text)


# --- finding -----------------------------------------------------------------------------------------------------


def test_found_in_the_working_directory_with_a_note(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--suite: no suite given, and neither taskmerge\.yaml nor suite\.yaml"):
        find_suite(None, tmp_path)
    suite = written(tmp_path, CLIP)
    path, note = find_suite(None, tmp_path)
    assert path == suite
    assert note is not None
    assert "suite.yaml of the working directory" in note
    first = tmp_path / "taskmerge.yaml"
    first.write_text(CLIP)
    assert find_suite(None, tmp_path)[0] == first, "taskmerge.yaml comes first"


def test_named_suites_are_files_folders_or_packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    suite = written(tmp_path, CLIP)
    assert find_suite(suite) == (suite, None)
    assert find_suite(tmp_path) == (suite, None)
    assert find_suite(Path("clip-vit-b-32-8")) == (packaged()["clip-vit-b-32-8"], None)
    Path("clip-vit-b-32-8").write_text(CLIP)
    assert find_suite(Path("clip-vit-b-32-8"))[0] == Path("clip-vit-b-32-8"), "what exists is a path"
    with pytest.raises(BadFile, match="did you mean the packaged suite `glue-gpt2-7`"):
        find_suite(Path("glue-gpt2-8"))
    with pytest.raises(BadFile, match=r"nowhere/x\.yaml: no such file"):
        find_suite(Path("nowhere/x.yaml"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadFile, match="empty: holds no"):
        find_suite(tmp_path / "empty")


def test_the_suite_in_the_documentation(tmp_path: Path) -> None:
    page = (EXAMPLE.parents[2] / "docs" / "suites.md").read_text(encoding="utf-8")
    (sample,) = re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL)
    suite = load_suite(written(tmp_path, sample))
    assert suite.tasks[1].classes == ("yes", "no")
