"""torchvision's data sets, small ones in their own layout: the right split, the right pictures, the right labels."""

import csv
import inspect
import json
import pickle
import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.datasets as known
from data_cases import Squares, class_folders, load, load_plain, pictures
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat

from taskmerge.data.sources import vision
from taskmerge.errors import BadFile, TaskmergeError, UsageError
from taskmerge.specs.suite import Split

COUNT = {"train": 3, "test": 5}
DIGITS = [str(n) for n in range(10)]


def idx(path: Path, array: NDArray[np.uint8 | np.int32]) -> None:
    """An array in the format of MNIST's files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = 0x8 if array.dtype == np.uint8 else 0xC
    header = struct.pack(f">I{array.ndim}I", (kind << 8) | array.ndim, *array.shape)
    path.write_bytes(header + array.astype(array.dtype.newbyteorder(">")).tobytes())


def picture(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16), (value, value, value)).save(path, quality=100)


def text(path: Path, lines: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


# Every maker writes train (3 items) and test (5 items), as the set has them. Pictures of test are of value 10 n, of
# train 200; the labels are 0, 1, 0, 1, 0 in the set's own form. It returns the task's classes.


def labels(part: str, first: int = 0) -> list[int]:
    return [first + n % 2 for n in range(COUNT[part])]


def values(part: str) -> list[int]:
    return [10 * n if part == "test" else 200 for n in range(COUNT[part])]


def squares(part: str, size: int, channels: tuple[int, ...] = ()) -> NDArray[np.uint8]:
    flat = np.array(values(part), dtype=np.uint8)
    return np.broadcast_to(flat.reshape(-1, 1, 1, *(1 for _ in channels)), (len(flat), size, size, *channels)).copy()


def mnist(root: Path, name: str = "MNIST") -> list[str]:
    for part, prefix in (("train", "train"), ("test", "t10k")):
        idx(root / name / "raw" / f"{prefix}-images-idx3-ubyte", squares(part, 28))
        idx(root / name / "raw" / f"{prefix}-labels-idx1-ubyte", np.array(labels(part), dtype=np.uint8))
    return DIGITS


def emnist(root: Path, first: int, name: str) -> None:
    for part in COUNT:
        idx(root / "EMNIST" / "raw" / f"emnist-{name}-{part}-images-idx3-ubyte", squares(part, 28))
        classes = np.array(labels(part, first), dtype=np.uint8)
        idx(root / "EMNIST" / "raw" / f"emnist-{name}-{part}-labels-idx1-ubyte", classes)


def emnist_letters(root: Path) -> list[str]:
    """Its letters count from 1; the other sets of the same folder from 0."""
    emnist(root, 1, "letters")
    emnist(root, 0, "digits")
    return [chr(ord("A") + n) for n in range(26)]


def emnist_digits(root: Path) -> list[str]:
    emnist(root, 0, "digits")
    return DIGITS


def qmnist(root: Path) -> list[str]:
    for part in COUNT:
        idx(root / "QMNIST" / "raw" / f"qmnist-{part}-images-idx3-ubyte", squares(part, 28))
        rows = np.array([[label, *[7] * 7] for label in labels(part)], dtype=np.int32)
        idx(root / "QMNIST" / "raw" / f"qmnist-{part}-labels-idx2-int", rows)
    return DIGITS


def cifar10(root: Path) -> list[str]:
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    flat = {part: squares(part, 32, (3,)).reshape(-1, 3072) for part in COUNT}
    for n in range(5):
        one = slice(n, n + 1) if n < 3 else slice(0)
        batch = {"data": flat["train"][one], "labels": labels("train")[one]}
        (folder / f"data_batch_{n + 1}").write_bytes(pickle.dumps(batch))
    (folder / "test_batch").write_bytes(pickle.dumps({"data": flat["test"], "labels": labels("test")}))
    classes = [f"thing {n}" for n in range(10)]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": classes}))
    return classes


def svhn(root: Path) -> list[str]:
    """Its label of the digit 0 is 10."""
    for part in COUNT:
        digits = np.array([label or 10 for label in labels(part)], dtype=np.uint8)[:, None]
        savemat(root / f"{part}_32x32.mat", {"X": squares(part, 32, (3,)).transpose(1, 2, 3, 0), "y": digits})
    return DIGITS


def stl10(root: Path) -> list[str]:
    folder = root / "stl10_binary"
    folder.mkdir()
    for part in COUNT:
        (folder / f"{part}_X.bin").write_bytes(squares(part, 96, (3,)).tobytes())
        (folder / f"{part}_y.bin").write_bytes(bytes(labels(part, 1)))
    (folder / "unlabeled_X.bin").write_bytes(b"")
    text(folder / "class_names.txt", [f"thing {n}" for n in range(10)])
    return [f"thing {n}" for n in range(10)]


def gtsrb(root: Path) -> list[str]:
    folder = root / "gtsrb" / "GTSRB"
    for n, label in enumerate(labels("train")):
        picture(folder / "Training" / f"{label:05d}" / f"{n:05d}.ppm", 200)
    rows = [f"{n:05d}.ppm;{label}" for n, label in enumerate(labels("test"))]
    text(root / "gtsrb" / "GT-final_test.csv", ["Filename;ClassId", *rows])
    for n, value in enumerate(values("test")):
        picture(folder / "Final_Test" / "Images" / f"{n:05d}.ppm", value)
    return [f"sign {n}" for n in range(43)]


def stanford_cars(root: Path) -> list[str]:
    folder = root / "stanford_cars"
    files = {"train": folder / "devkit" / "cars_train_annos.mat", "test": folder / "cars_test_annos_withlabels.mat"}
    (folder / "devkit").mkdir(parents=True)
    for part, file in files.items():
        kind = np.dtype([("class", object), ("fname", object)])
        rows = np.array([(label, f"{n}.jpg") for n, label in enumerate(labels(part, 1))], dtype=kind)
        savemat(file, {"annotations": rows})
        for n, value in enumerate(values(part)):
            picture(folder / f"cars_{part}" / f"{n}.jpg", value)
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": np.array(["a car", "b car"], dtype=object)})
    return ["a car", "b car"]


def flowers102(root: Path) -> list[str]:
    folder = root / "flowers-102"
    all_values = values("train") + values("test")
    for n, value in enumerate(all_values, 1):
        picture(folder / "jpg" / f"image_{n:05d}.jpg", value)
    savemat(folder / "imagelabels.mat", {"labels": np.array(labels("train", 1) + labels("test", 1))})
    savemat(folder / "setid.mat", {"trnid": np.arange(1, 4), "valid": np.arange(1, 4), "tstid": np.arange(4, 9)})
    return [f"flower {n}" for n in range(102)]


def dtd(root: Path) -> list[str]:
    for part in COUNT:
        names = [f"{'ab'[label]}/{part}_{n}.jpg" for n, label in enumerate(labels(part))]
        text(root / "dtd" / "dtd" / "labels" / f"{part}1.txt", names)
        for name, value in zip(names, values(part), strict=True):
            picture(root / "dtd" / "dtd" / "images" / name, value)
    return ["a", "b"]


def food101(root: Path) -> list[str]:
    for part in COUNT:
        names = {kind: [f"{kind}/{part}{n}" for n, at in enumerate(labels(part)) if "ab"[at] == kind] for kind in "ab"}
        text(root / "food-101" / "meta" / f"{part}.json", [json.dumps(names)])
        for n, (label, value) in enumerate(zip(labels(part), values(part), strict=True)):
            picture(root / "food-101" / "images" / "ab"[label] / f"{part}{n}.jpg", value)
    return ["a", "b"]


def pets(root: Path) -> list[str]:
    for part, file in (("train", "trainval"), ("test", "test")):
        names = [f"{('big_cat', 'old_dog')[label]}_{part}{n}" for n, label in enumerate(labels(part))]
        rows = [f"{name} {label} 1 1" for name, label in zip(names, labels(part, 1), strict=True)]
        text(root / "oxford-iiit-pet" / "annotations" / f"{file}.txt", rows)
        for name, value in zip(names, values(part), strict=True):
            picture(root / "oxford-iiit-pet" / "images" / f"{name}.jpg", value)
    return ["big cat", "old dog"]


def rendered_sst2(root: Path) -> list[str]:
    for part in COUNT:
        for n, (label, value) in enumerate(zip(labels(part), values(part), strict=True)):
            picture(root / "rendered-sst2" / part / ("negative", "positive")[label] / f"{n}.png", value)
    return ["negative", "positive"]


def fer2013(root: Path) -> list[str]:
    path = root / "fer2013" / "fer2013.csv"
    path.parent.mkdir()
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["emotion", "pixels", "Usage"])
        for part, usage in (("train", "Training"), ("test", "PublicTest")):
            for label, value in zip(labels(part), values(part), strict=True):
                rows.writerow([label, " ".join([str(value)] * 48 * 48), usage])
    return [f"mood {n}" for n in range(7)]


def eurosat(root: Path) -> list[str]:
    """It has no splits: all of it is every split."""
    for n, (label, value) in enumerate(zip(labels("test"), values("test"), strict=True)):
        picture(root / "eurosat" / "2750" / "ab"[label] / f"{n}.jpg", value)
    return ["a", "b"]


def sun397(root: Path) -> list[str]:
    text(root / "SUN397" / "ClassName.txt", ["/a/abbey", "/b/barn/indoor"])
    for n, (label, value) in enumerate(zip(labels("test"), values("test"), strict=True)):
        picture(root / "SUN397" / ("a/abbey", "b/barn/indoor")[label] / f"sun_{n}.jpg", value)
    return ["abbey", "barn indoor"]


CASES: dict[str, tuple[Callable[[Path], list[str]], str | None]] = {
    "MNIST": (mnist, None),
    "FashionMNIST": (lambda root: mnist(root, "FashionMNIST"), None),
    "KMNIST": (lambda root: mnist(root, "KMNIST"), None),
    "EMNIST letters": (emnist_letters, "letters"),
    "EMNIST digits": (emnist_digits, "digits"),
    "QMNIST": (qmnist, None),
    "CIFAR10": (cifar10, None),
    "SVHN": (svhn, None),
    "STL10": (stl10, None),
    "GTSRB": (gtsrb, None),
    "StanfordCars": (stanford_cars, None),
    "Flowers102": (flowers102, None),
    "DTD": (dtd, None),
    "Food101": (food101, None),
    "OxfordIIITPet": (pets, None),
    "RenderedSST2": (rendered_sst2, None),
    "FER2013": (fer2013, None),
    "EuroSAT": (eurosat, None),
    "SUN397": (sun397, None),
}
WITHOUT_SPLITS = ("EuroSAT", "SUN397")


@pytest.fixture
def unsigned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small copies have other checksums than the originals."""
    there: Callable[..., bool] = lambda path, md5=None: Path(path).is_file()  # noqa: E731
    for module in {inspect.getmodule(getattr(known, name)) for name in vision.SETS}:
        if module is not None and hasattr(module, "check_integrity"):
            monkeypatch.setattr(module, "check_integrity", there)


def split_of(case: str, root: Path, **more: str) -> Split:
    return Split(
        "torchvision",
        root,
        (),
        "label",
        case.split()[0],
        CASES[case][1],
        place="suite.yaml:4:1",
        classes_by="number",
        **more,
    )


def by_value(items: Any) -> list[tuple[int, int]]:
    """(value of a picture, label), in order of value: JPEG moves values a little, folders their order."""
    pixels, found = items.items.inputs["pixels"], items.labels
    means = pixels.float().mean((1, 2, 3)).div(10).round().mul(10).int().tolist()
    return sorted(zip(means, found.tolist(), strict=True))


@pytest.mark.usefixtures("unsigned")
@pytest.mark.parametrize("case", CASES)
def test_each_split_has_its_own_pictures_and_labels(tmp_path: Path, case: str) -> None:
    classes = CASES[case][0](tmp_path)
    split = split_of(case, tmp_path)
    wanted = [(10 * n, n % 2) for n in range(5)]
    assert by_value(load(split, classes=classes)) == wanted
    if case in WITHOUT_SPLITS:
        with pytest.raises(UsageError, match="has no splits"):
            load(replace(split, name="train"), classes=classes)
    else:
        train = "trainval" if case == "OxfordIIITPet" else "train"
        assert by_value(load(replace(split, name=train), classes=classes)) == [(200, 0), (200, 0), (200, 1)]
        with pytest.raises(UsageError, match="nowhere"):
            load(replace(split, name="nowhere"), classes=classes)


TRAIN = {"Places365": "train-standard", "OxfordIIITPet": "trainval"}


@pytest.mark.parametrize("name", vision.SETS)
def test_every_set_that_is_not_there_says_so(tmp_path: Path, name: str) -> None:
    """The constructor took what it was given: otherwise it would have said that instead."""
    maker = getattr(known, name)
    several = "letters" if name == "EMNIST" else None
    picked = TRAIN.get(name, "train") if "split" in inspect.signature(maker.__init__).parameters else None
    where = tmp_path / "none" if name == "ImageFolder" else tmp_path  # an empty folder has no classes
    split = Split("torchvision", where, (), "label", name, several, None if name == "EMNIST" else picked)
    with pytest.raises(BadFile, match=rf"torchvision's {name} is not there: \S") as caught:
        load(split if picked or name != "EMNIST" else replace(split, name="train"))
    assert caught.value.hint is not None
    assert ("download=True" in caught.value.hint) == (
        name not in ("FER2013", "ImageFolder", "ImageNet", "StanfordCars")
    )


def test_nothing_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known.MNIST, "download", lambda self: pytest.fail("asked for a download"))
    with pytest.raises(BadFile):
        load(Split("torchvision", tmp_path, (), "label", "MNIST", None, "train"))


def test_the_hint_is_the_command_that_downloads_it(tmp_path: Path) -> None:
    for case, said in (("SVHN", "split='test'"), ("EMNIST letters", "split='letters', train=False")):
        with pytest.raises(BadFile) as caught:
            load(split_of(case, tmp_path))
        command = str(caught.value.hint).removeprefix('python -c "').removesuffix('"')
        call = f"{case.split()[0]}('{tmp_path}', {said}, download=True)"
        assert command == f"import torchvision; torchvision.datasets.{call}"


def refusal(split: Split) -> TaskmergeError:
    with pytest.raises(TaskmergeError) as caught:
        load(split)
    return caught.value


def test_what_a_set_does_not_have_is_refused(tmp_path: Path) -> None:
    split = split_of("SVHN", tmp_path)
    error = refusal(replace(split, dataset="SVNH"))
    assert (type(error), error.hint) == (UsageError, "did you mean `SVHN`?")
    error = refusal(replace(split, name="dev"))
    assert (type(error), error.hint) == (UsageError, "choose with `split: NAME`")
    assert "'dev'" in error.what
    error = refusal(replace(split, configuration="letters"))
    assert (type(error), error.what) == (UsageError, "torchvision's SVHN has no configurations")
    emnist = split_of("EMNIST letters", tmp_path)
    error = refusal(replace(emnist, configuration=None))
    assert "byclass, bymerge, balanced, letters, digits, mnist" in str(error.hint)
    error = refusal(replace(emnist, configuration="leters"))
    assert (type(error), error.hint) == (UsageError, "choose with `configuration: NAME`")
    assert isinstance(refusal(replace(split, dataset="VOCSegmentation")), UsageError)  # its targets are no classes


@pytest.mark.usefixtures("unsigned")
def test_withheld_labels_and_damaged_files(tmp_path: Path) -> None:
    with (tmp_path / "test.csv").open("w") as file:
        file.write("pixels\n" + " ".join(["7"] * 48 * 48) + "\n")
    (tmp_path / "fer2013").mkdir()
    (tmp_path / "test.csv").rename(tmp_path / "fer2013" / "test.csv")
    fer = split_of("FER2013", tmp_path)
    assert len(load_plain(replace(fer, y=None))) == 1
    assert "label `None`" in refusal(fer).what
    mnist(tmp_path)
    (tmp_path / "MNIST" / "raw" / "t10k-images-idx3-ubyte").write_bytes(b"\0" * 40)
    error = refusal(split_of("MNIST", tmp_path))
    assert (type(error), "torchvision's MNIST cannot be read" in error.what) == (BadFile, True)


def test_a_folder_of_classes(tmp_path: Path) -> None:
    folders = class_folders(tmp_path, ["no", "yes"], each=2)
    labelled = load(Split("torchvision", tmp_path, (), "label", "ImageFolder"), classes=["no", "yes"])
    assert labelled.fingerprint == load(folders, classes=["no", "yes"]).fingerprint


def test_grey_pictures_come_as_they_are(tmp_path: Path) -> None:
    mnist(tmp_path)
    x = pictures(5, 28)[..., 0]
    idx(tmp_path / "MNIST" / "raw" / "t10k-images-idx3-ubyte", x)
    labelled = load(split_of("MNIST", tmp_path), Squares(28), classes=DIGITS)
    assert torch.equal(labelled.items.inputs["pixels"], torch.from_numpy(x)[:, None].expand(-1, 3, -1, -1))
