"""taskmerge: turns several fine-tunings of one base model into one model.

The public names are loaded when they are first used, so that `import taskmerge` is instant.
"""

from importlib import import_module

from taskmerge.version import __version__

TYPE_CHECKING = False  # as type checkers know it; importing `typing` would take longer than all else here
if TYPE_CHECKING:  # for those who check types: the same names, loaded
    from taskmerge.checkpoint.difference import DiffReport as DiffReport
    from taskmerge.checkpoint.difference import diff as diff
    from taskmerge.diagnosis.doctor import doctor as doctor
    from taskmerge.diagnosis.report import Diagnosis as Diagnosis
    from taskmerge.errors import TaskmergeError as TaskmergeError
    from taskmerge.errors import TaskmergeWarning as TaskmergeWarning
    from taskmerge.evaluation.run import evaluate as evaluate
    from taskmerge.evaluation.scores import Report as Report
    from taskmerge.experts.contents import Inspection as Inspection
    from taskmerge.experts.contents import inspect as inspect
    from taskmerge.merging.planned import MergePlan as MergePlan
    from taskmerge.merging.record import MergeReceipt as MergeReceipt
    from taskmerge.merging.verification import Verification as Verification
    from taskmerge.merging.verify import verify as verify
    from taskmerge.recovery.recover import recover as recover
    from taskmerge.recovery.report import Recovery as Recovery
    from taskmerge.reports.files import report as report
    from taskmerge.spectra.report import SpectrumReport as SpectrumReport
    from taskmerge.task_vectors.vectors import VectorsReceipt as VectorsReceipt
    from taskmerge.task_vectors.vectors import vectors as vectors
    from taskmerge.workflows.adapt import adapt as adapt
    from taskmerge.workflows.adapt_report import AdaptReceipt as AdaptReceipt
    from taskmerge.workflows.choose import rank as rank
    from taskmerge.workflows.chosen_merge import Chosen as Chosen
    from taskmerge.workflows.merge import merge as merge
    from taskmerge.workflows.rebuild import rebuild as rebuild
    from taskmerge.workflows.spectrum import spectrum as spectrum
    from taskmerge.workflows.sweep import sweep as sweep
    from taskmerge.workflows.sweeps.sweep import SweepReport as SweepReport

_HOMES = {
    "AdaptReceipt": "taskmerge.workflows.adapt_report",
    "Chosen": "taskmerge.workflows.chosen_merge",
    "Diagnosis": "taskmerge.diagnosis.report",
    "DiffReport": "taskmerge.checkpoint.difference",
    "Inspection": "taskmerge.experts.contents",
    "MergePlan": "taskmerge.merging.planned",
    "MergeReceipt": "taskmerge.merging.record",
    "Recovery": "taskmerge.recovery.report",
    "Report": "taskmerge.evaluation.scores",
    "SpectrumReport": "taskmerge.spectra.report",
    "SweepReport": "taskmerge.workflows.sweeps.sweep",
    "TaskmergeError": "taskmerge.errors",
    "TaskmergeWarning": "taskmerge.errors",
    "VectorsReceipt": "taskmerge.task_vectors.vectors",
    "Verification": "taskmerge.merging.verification",
    "adapt": "taskmerge.workflows.adapt",
    "diff": "taskmerge.checkpoint.difference",
    "doctor": "taskmerge.diagnosis.doctor",
    "evaluate": "taskmerge.evaluation.run",
    "inspect": "taskmerge.experts.contents",
    "merge": "taskmerge.workflows.merge",
    "rank": "taskmerge.workflows.choose",
    "rebuild": "taskmerge.workflows.rebuild",
    "recover": "taskmerge.recovery.recover",
    "report": "taskmerge.reports.files",
    "spectrum": "taskmerge.workflows.spectrum",
    "sweep": "taskmerge.workflows.sweep",
    "vectors": "taskmerge.task_vectors.vectors",
    "verify": "taskmerge.merging.verify",
}
__all__ = [
    "AdaptReceipt",
    "Chosen",
    "Diagnosis",
    "DiffReport",
    "Inspection",
    "MergePlan",
    "MergeReceipt",
    "Recovery",
    "Report",
    "SpectrumReport",
    "SweepReport",
    "TaskmergeError",
    "TaskmergeWarning",
    "VectorsReceipt",
    "Verification",
    "__version__",
    "adapt",
    "diff",
    "doctor",
    "evaluate",
    "inspect",
    "merge",
    "rank",
    "rebuild",
    "recover",
    "report",
    "spectrum",
    "sweep",
    "vectors",
    "verify",
]


def __getattr__(name: str):  # type: ignore[no-untyped-def]  # anything
    if name not in _HOMES:
        raise AttributeError(f"module `taskmerge` has no attribute `{name}`")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
