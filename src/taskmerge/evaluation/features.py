"""Features of a sample of items: what one checkpoint makes of them, as the task's head sees them."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from taskmerge.evaluation.checkpoints import Encoder
from taskmerge.evaluation.scores import FeatureSet
from taskmerge.evaluation.workload import DataSet
from taskmerge.models.adapters import Adapted
from taskmerge.models.contract import Head
from taskmerge.models.outputs import Outputs
from taskmerge.seeds import uniform_at

MOST = 500
"""Items of a task whose features are kept at most."""


def sample_of(data: DataSet, count: int, seed: int) -> Tensor:
    """Which items of a data set are looked at: at most `count`, ascending, the same for every checkpoint."""
    if count >= len(data.items):
        return torch.arange(len(data.items))
    order = uniform_at(seed, data.task.name, "items for features", 0, len(data.items)).argsort(stable=True)
    return order[:count].sort().values


def feature_set(
    encoder: Encoder, data: DataSet, head: Head, part: Outputs, places: Tensor, *, normalised: bool
) -> FeatureSet:  # fmt: skip
    """The features of some items of a data set, whose outputs are all in `part`, as its head sees them."""
    with torch.no_grad():
        features = part.features[places.to(part.features.device)]
        if isinstance(head, Adapted):
            features = head.adapter(features)
        features = functional.normalize(features, dim=-1) if normalised else features
    outputs = part.values[places]
    predicted = outputs.argmax(1) if data.task.kind == "classification" else outputs.reshape(len(outputs))
    return FeatureSet(
        encoder=encoder.row, task=data.task.name, digest=encoder.digest, fingerprint=data.labelled.fingerprint,
        features=features.float().cpu().numpy(), predicted=predicted.double().numpy(),
        labels=data.labels[places].double().numpy(), places=data.items.indices[places].numpy().astype(np.int64),
        kind=data.task.kind, classes=tuple(data.task.classes),
    )  # fmt: skip
