"""The suites in the package: schema, counts of classes and templates, and what they name, all without a network."""

from collections import Counter

import pytest

from taskmerge.errors import UsageError
from taskmerge.specs.suite import HubPath
from taskmerge.specs.suite_file import load_suite, packaged
from taskmerge.specs.suite_tasks import catalogue, names_of

COUNTS = {  # classes and templates of the papers' vision tasks
    "sun397": (397, 2),
    "stanford-cars": (196, 8),
    "resisc45": (45, 18),
    "eurosat": (10, 3),
    "svhn": (10, 1),
    "gtsrb": (43, 3),
    "mnist": (10, 1),
    "dtd": (47, 8),
    "flowers102": (102, 1),
    "pcam": (2, 1),
    "fer2013": (7, 6),
    "oxford-iiit-pet": (37, 1),
    "stl10": (10, 2),
    "cifar100": (100, 18),
    "cifar10": (10, 18),
    "food101": (101, 1),
    "fashion-mnist": (10, 2),
    "emnist": (10, 1),
    "kmnist": (10, 1),
    "rendered-sst2": (2, 1),
    "emnist-letters": (26, 1),
}
CLIP = [f"clip-vit-{size}-{count}" for size in ("b-32", "b-16", "l-14") for count in (8, 14, 20)]
GLUE = ["glue-roberta-base-7", "glue-roberta-base-8", "glue-gpt2-7"]


def test_these_suites_come_with_the_package() -> None:
    assert sorted(packaged()) == sorted([*CLIP, *GLUE, "nyuv2-resnet50"])
    numbers = [name for name in packaged() if name.startswith("clip-vit-b-32")]
    assert numbers == ["clip-vit-b-32-8", "clip-vit-b-32-14", "clip-vit-b-32-20"], "by size, not by letter"


@pytest.mark.parametrize("name", [*CLIP, *GLUE, "nyuv2-resnet50"])
def test_every_suite_loads_and_says_what_was_not_run(name: str) -> None:
    suite = load_suite(packaged()[name])
    assert suite.name == name
    assert any("Nothing of this suite was run" in note for note in suite.notes)
    assert len({str(task.expert) for task in suite.tasks}) == len(suite.tasks), "every task has its own expert"
    for task in suite.tasks:
        assert set(task.splits) == {"test", "adapt", "train"}
        assert (task.splits["test"].y, task.splits["adapt"].y) != (None, None)
        assert task.splits["adapt"].y is None
        assert task.splits["test"].x == task.splits["adapt"].x
        assert task.splits["train"].name == "train"


@pytest.mark.parametrize("name", CLIP)
def test_the_clip_suites(name: str) -> None:
    suite = load_suite(packaged()[name])
    count = int(name.rpartition("-")[2])
    tasks = [task.name for task in suite.tasks]
    assert len(tasks) == count
    expected = [one for one in COUNTS if one != "emnist-letters"][:count]
    assert [one if one != "emnist-letters" else "emnist" for one in tasks][:14] == expected[:14]
    assert {one if one != "emnist-letters" else "emnist" for one in tasks} == set(expected)
    assert {task.name: (len(task.classes), len(task.templates)) for task in suite.tasks} == {
        one: COUNTS[one] for one in tasks
    }
    assert {task.head for task in suite.tasks} == {"zero_shot"}
    assert suite.qkv == "fused"
    assert isinstance(suite.base, HubPath)
    assert isinstance(suite.backbone.model, HubPath)
    assert suite.base.repository == suite.backbone.model.repository
    model = suite.base.repository.removeprefix("openai/")
    for task in suite.tasks:
        assert isinstance(task.expert, HubPath)
        assert task.expert.repository.startswith(f"tanganke/{model}_")
    assert suite.backbone.preprocess is not None
    assert suite.backbone.preprocess.image_size == 224


@pytest.mark.parametrize("name", COUNTS)
def test_names_and_templates_of_the_catalogue(name: str) -> None:
    classes, templates = names_of(name)
    assert (len(classes), len(templates)) == COUNTS[name]
    assert max(Counter(classes).values()) == 1
    assert all(one.count("{}") == 1 for one in templates)
    assert all(one == one.strip() and one for one in (*classes, *templates))


def test_a_few_names_in_their_places() -> None:
    assert names_of("gtsrb")[0][14] == "stop"
    assert names_of("sun397")[0][0] == "abbey"
    assert names_of("dtd")[0][0] == "banded"
    assert names_of("eurosat")[0][9] == "lake or sea"
    assert names_of("kmnist")[0] == tuple("おきすつなはまやれを")
    assert names_of("mnist") == (tuple("0123456789"), ('a photo of the number: "{}".',))
    assert names_of("fer2013")[0] == ("angry", "disgusted", "fearful", "happy", "neutral", "sad", "surprised")
    with pytest.raises(UsageError, match="did you mean `sun397`"):
        names_of("sun379")


def test_the_glue_suites() -> None:
    seven, eight, gpt = (load_suite(packaged()[name]) for name in GLUE)
    names = ["cola", "sst2", "mrpc", "qqp", "mnli", "qnli", "rte"]
    assert [task.name for task in seven.tasks] == [task.name for task in gpt.tasks] == names
    assert {task.name for task in eight.tasks} == {*names, "stsb"}
    metrics = {task.name: task.metric for task in eight.tasks}
    assert (metrics["cola"], metrics["stsb"], metrics["mnli"]) == ("matthews", "pearson+spearman", "accuracy")
    assert {task.metric for task in gpt.tasks} == {"accuracy"}
    assert [len(task.classes) for task in seven.tasks] == [2, 2, 2, 2, 3, 2, 2]
    assert (seven.backbone.pooling, gpt.backbone.pooling) == ("cls", "last")
    assert {len(task.splits["test"].x) for task in seven.tasks} == {1, 2}
    assert seven.tasks[4].splits["test"].name == "validation_matched"


def test_the_nyuv2_suite() -> None:
    suite = load_suite(packaged()["nyuv2-resnet50"])
    assert [(task.kind, task.metric, len(task.classes)) for task in suite.tasks] == [
        ("segmentation", "miou", 13), ("depth", "abs_error", 0), ("normals", "angle", 0),
    ]  # fmt: skip
    assert (suite.backbone.library, suite.backbone.model) == ("torchvision", "resnet50")


def test_every_task_of_the_catalogue_is_used_or_known() -> None:
    glue = {"cola", "sst2", "mrpc", "qqp", "mnli", "qnli", "rte", "stsb"}
    assert set(catalogue()) == {*COUNTS, *(f"glue-{one}" for one in glue)}
