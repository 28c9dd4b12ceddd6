"""What `spectrum -o FOLDER` writes: the report, all singular values, and the page that is made of the report."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save

from taskmerge.cli import reporting, writing
from taskmerge.reports.runs import REPORT
from taskmerge.specs.recipe_file import recipe_text
from taskmerge.spectra.report import dumps

if TYPE_CHECKING:
    from taskmerge.spectra.report import SpectrumReport

VALUES = "spectra.safetensors"
RECIPE = "recipe.yaml"
"""The recipe of the merge that is recommended."""


def write_folder(report: "SpectrumReport", document: Mapping[str, Any], folder: Path, *, overwrite: bool) -> None:
    """report.json, recipe.yaml of what is recommended, spectra.safetensors (`delta/MATRIX` and `centred/MATRIX` [T, r],
    float32) and the page. Raises BadOutput."""
    advice = report.recommendation
    recipe = {} if not advice or not advice["arguments"] else {RECIPE: recipe_text(
        advice["recipe"], {one.name: Path(one.path) for one in report.experts},
        Path(report.base) if report.base else None, folder,
    )}  # fmt: skip
    values = {f"{space}/{name}": s.float() for space in report.spaces for name, s in report.values(space).items()}
    files: dict[str, str | bytes] = {REPORT: dumps(document), VALUES: save(values), **recipe}
    writing.write_files(folder, files, overwrite=overwrite)
    reporting.write_page(document, folder, overwrite=overwrite)
