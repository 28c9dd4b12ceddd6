"""CONTRIBUTING.md keeps its word: its example is a method, green in this project and in a package of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```(python|toml)\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.DOTALL)
METHOD, ORACLE, ENTRY, LAWS = (text for _, text in BLOCKS)
BESIDE_THE_OTHERS = """
from pathlib import Path

import taskmerge.methods

taskmerge.methods.__path__.append(str(Path(__file__).parent / "methods"))
"""


def run(folder: Path, *words: str) -> str:
    """`python WORDS` in a folder whose packages can be imported; what it printed."""
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "PYTHONUTF8": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_two_files_beside_the_others_are_a_method(tmp_path: Path) -> None:
    """The file as if it lay in `taskmerge/methods/`: its own test, and the shared laws that find it."""
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "median.py").write_text(METHOD, encoding="utf-8")
    (tmp_path / "test_median.py").write_text(ORACLE, encoding="utf-8")
    (tmp_path / "conftest.py").write_text(BESIDE_THE_OTHERS, encoding="utf-8")
    (tmp_path / "test_laws.py").write_text((ROOT / "tests/methods/test_laws.py").read_text("utf-8"), encoding="utf-8")
    quiet = ("-q", "-p", "no:cacheprovider", "-W", "error")
    passed = run(tmp_path, "-m", "pytest", *quiet, "test_median.py", "test_laws.py", "-k", "median")
    assert re.search(r"^1[0-9] passed", passed, re.MULTILINE), passed


@pytest.mark.slow
def test_a_package_of_its_own_is_a_method(tmp_path: Path) -> None:
    package, about = tmp_path / "my_package", tmp_path / "my_package-1.0.dist-info"
    package.mkdir()
    about.mkdir()
    (package / "__init__.py").touch()
    (package / "median.py").write_text(METHOD, encoding="utf-8")
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    group, name, value = re.findall(r'"(.*?)"\]\n(\w+) = "(.*?)"', ENTRY)[0]
    (about / "entry_points.txt").write_text(f"[{group}]\n{name} = {value}\n")
    (tmp_path / "test_median.py").write_text(LAWS, encoding="utf-8")
    run(tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_median.py")
    assert "Per entry the task vector in the middle." in run(tmp_path, "-m", "taskmerge", "methods", "median")
