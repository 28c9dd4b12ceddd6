"""CLIP_benchmark's own table builder reads what is exported: its real `build` command, found by CLIP_BENCHMARK.

CLIP_BENCHMARK is a folder that holds its package `clip_benchmark`, such as an unpacked wheel or a site-packages. What
it downloads and captions with (requests, pycocoevalcap) is not needed to build a table and may be absent.
"""

import csv
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from report_cases import TEXT, VISION, report
from taskmerge.reports.render import clip_benchmark_files
from taskmerge.reports.render import csv as as_csv

HOME = os.environ.get("CLIP_BENCHMARK", "")
BUILD = """
import importlib.util, sys, unittest.mock
for name in ("requests", "pycocoevalcap", "webdataset"):
    if importlib.util.find_spec(name) is None:
        for part in ("", ".tokenizer", ".tokenizer.ptbtokenizer", ".bleu.bleu", ".cider.cider", ".meteor.meteor",
                     ".rouge.rouge", ".spice.spice", ".eval"):
            sys.modules[name + part] = unittest.mock.MagicMock()
from clip_benchmark.cli import main
sys.argv[0] = "clip_benchmark"
main()
"""


@pytest.mark.skipif(not (Path(HOME) / "clip_benchmark" / "cli.py").is_file(), reason="CLIP_BENCHMARK names no package")
@pytest.mark.parametrize("tasks", [VISION, TEXT])
def test_its_builder_makes_our_rows_from_our_files(tasks: dict[str, str], tmp_path: Path) -> None:
    found = report(tasks, ["merged", "other"], cross=True, corruptions=["jpeg"])
    (tmp_path / "results").mkdir()
    for name, text in clip_benchmark_files(found).items():
        (tmp_path / "results" / name).write_text(text, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": HOME}
    command = [sys.executable, "-c", BUILD, "build", "results", "--output", "benchmark.csv"]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
    with open(tmp_path / "benchmark.csv", newline="") as file:
        theirs = list(csv.DictReader(file))
    ours = list(csv.DictReader(io.StringIO(as_csv(found))))
    assert len(theirs) == len(found.rows)
    key = ["dataset", "pretrained", "head", "corruption"]
    assert sorted(theirs, key=lambda row: [row[one] for one in key]) == sorted(
        ours, key=lambda row: [row[one] for one in key]
    )
