"""What each item contributes to a metric: one row of numbers an item, from a batch of outputs and labels."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from taskmerge.errors import BadFile, BadNumber, Mismatch
from taskmerge.evaluation.estimates import Rows
from taskmerge.specs.suite import TaskKind

UNLABELLED = (-1, 255)
"""Labels of pixels that no class was given to; 255 is one where there are not so many classes."""
ANGLES = 180.0 / np.pi


def classification(outputs: Tensor, labels: Tensor) -> Rows:
    """Label, prediction, and the prediction's softmaxed confidence: [N, 3] from scores [N, C] and classes [N].

    Of equal scores the lowest class is the prediction.
    """
    _check(outputs, labels, outputs.ndim == 2 and labels.ndim == 1, "scores [N, C] and classes [N]")
    _check_classes(labels, outputs.shape[1])
    predicted = outputs.argmax(1)
    sure = outputs.float().softmax(1).gather(1, predicted[:, None])[:, 0]
    return _rows(labels, predicted, sure)


def regression(outputs: Tensor, labels: Tensor) -> Rows:
    """Output and label: [N, 2] from values [N] or [N, 1] and values [N]."""
    flat = outputs[:, 0] if outputs.ndim == 2 and outputs.shape[1] == 1 else outputs
    _check(flat, labels, flat.ndim == 1 and labels.ndim == 1, "values [N] and values [N]")
    _finite(labels, "labels")
    return _rows(flat, labels)


def segmentation(outputs: Tensor, labels: Tensor) -> Rows:
    """Per class the pixels that are right, predicted and labelled: [N, 3C] from scores [N, C, H, W] and [N, H, W].

    Pixels labelled -1, or 255 where there are not so many classes, count nowhere.
    """
    fits = outputs.ndim == 4 and labels.ndim == 3 and outputs.shape[2:] == labels.shape[1:]
    _check(outputs, labels, fits, "scores [N, C, H, W] and classes [N, H, W]")
    classes = outputs.shape[1]
    rows = np.empty((len(labels), 3 * classes))
    for row, scores, label in zip(rows, outputs, labels.cpu(), strict=True):
        unlabelled = torch.tensor([number for number in UNLABELLED if number >= classes or number < 0])
        counted = ~torch.isin(label, unlabelled)
        true = label[counted].long()
        _check_classes(true, classes)
        predicted = scores.argmax(0).cpu()[counted]
        areas = [torch.bincount(pixels, minlength=classes) for pixels in (true[true == predicted], predicted, true)]
        row[:] = torch.cat(areas).numpy()
    return rows


def depth(outputs: Tensor, labels: Tensor) -> Rows:
    """Sums of absolute and of relative error, and pixels: [N, 3] from depths [N, H, W] (or [N, 1, H, W]) both.

    Pixels whose true depth is 0 were not measured and count nowhere.
    """
    predicted, true = (maps[:, 0] if maps.ndim == 4 and maps.shape[1] == 1 else maps for maps in (outputs, labels))
    fits = predicted.ndim == 3 and predicted.shape == true.shape
    _check(predicted, true, fits, "depths [N, H, W] and depths [N, H, W]")
    _finite(true, "labels")
    rows = np.empty((len(true), 3))
    for row, maps, label in zip(rows, predicted, true.cpu(), strict=True):
        measured = label != 0
        error = (maps.cpu()[measured].double() - label[measured].double()).abs()
        row[:] = float(error.sum()), float((error / label[measured].double().abs()).sum()), int(measured.sum())
    return rows


def normals(outputs: Tensor, labels: Tensor) -> Rows:
    """Sum of angles in degrees and pixels: [N, 2] from directions [N, 3, H, W] both, of any length.

    Pixels whose true normal is the zero vector count nowhere; a predicted zero vector is 90 degrees off.
    """
    fits = outputs.ndim == 4 and outputs.shape[1] == 3 and outputs.shape == labels.shape
    _check(outputs, labels, fits, "normals [N, 3, H, W] and normals [N, 3, H, W]")
    _finite(labels, "labels")
    rows = np.empty((len(labels), 2))
    for row, directions, label in zip(rows, outputs, labels.cpu(), strict=True):
        true, predicted = label.double().flatten(1), directions.cpu().double().flatten(1)  # [3, HW]
        measured = (true != 0).any(0)
        true, predicted = true[:, measured], predicted[:, measured]
        lengths = (true.norm(dim=0) * predicted.norm(dim=0)).clamp_min(torch.finfo(torch.float64).tiny)
        cosines = ((true * predicted).sum(0) / lengths).clamp(-1, 1)
        row[:] = float(cosines.acos().sum()) * ANGLES, int(measured.sum())
    return rows


CONTRIBUTIONS: Mapping[TaskKind, Callable[[Tensor, Tensor], Rows]] = MappingProxyType(
    {
        "classification": classification,
        "regression": regression,
        "segmentation": segmentation,
        "depth": depth,
        "normals": normals,
    }
)


def _rows(*columns: Tensor) -> Rows:
    return np.stack([column.detach().cpu().double().numpy() for column in columns], axis=1)


def _check(outputs: Tensor, labels: Tensor, fits: bool, wanted: str) -> None:
    """Shapes belong together and outputs are numbers."""
    if not fits or len(outputs) != len(labels):
        shapes = f"outputs {list(outputs.shape)} and labels {list(labels.shape)}"
        raise Mismatch(f"{shapes} are not {wanted}", hint="check the task's kind, head and labels")
    _finite(outputs, "outputs")


def _finite(values: Tensor, name: str) -> None:
    if bool(torch.isfinite(values).all()):
        return
    if name == "labels":
        raise BadFile("labels hold NaN or infinity", hint="repair or remove these items")
    raise BadNumber("outputs hold NaN or infinity", hint="`taskmerge inspect` the checkpoint: it may be damaged")


def _check_classes(labels: Tensor, classes: int) -> None:
    """Labels are among the classes."""
    wrong = labels[(labels < 0) | (labels >= classes)]
    if len(wrong):
        what = f"label {int(wrong[0])} is outside the {classes} classes (0 to {classes - 1})"
        raise BadFile(what, hint="check the labels, and that the head belongs to this task")
