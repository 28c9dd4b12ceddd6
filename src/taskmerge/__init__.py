"""taskmerge: turns several fine-tunings of one base model into one model.

The public names are loaded when they are first used, so that `import taskmerge` is instant.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Chosen": "taskmerge.workflows.chosen_merge",
    "DiffReport": "taskmerge.checkpoint.difference",
    "Inspection": "taskmerge.merging.contents",
    "MergeReceipt": "taskmerge.merging.record",
    "Report": "taskmerge.evaluation.scores",
    "TaskmergeError": "taskmerge.errors",
    "VectorsReceipt": "taskmerge.merging.vectors",
    "Verification": "taskmerge.merging.verify",
    "choose": "taskmerge.workflows.chosen_merge",
    "diff": "taskmerge.checkpoint.difference",
    "evaluate": "taskmerge.evaluation.run",
    "inspect": "taskmerge.merging.contents",
    "merge": "taskmerge.merging.merge",
    "rank": "taskmerge.workflows.choose",
    "vectors": "taskmerge.merging.vectors",
    "verify": "taskmerge.merging.verify",
}
__all__ = [
    "Chosen",
    "DiffReport",
    "Inspection",
    "MergeReceipt",
    "Report",
    "TaskmergeError",
    "VectorsReceipt",
    "Verification",
    "__version__",
    "choose",
    "diff",
    "evaluate",
    "inspect",
    "merge",
    "rank",
    "vectors",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module `taskmerge` has no attribute `{name}`")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
