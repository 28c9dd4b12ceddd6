"""README's commands, copied literally, print what README says; options that docs/migration.md gives are understood."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from taskmerge.cli import app
from taskmerge.methods.registry import find

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with the example and the program on the path."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    return tmp_path


def environment() -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "COLUMNS": "100", "NO_COLOR": "1"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.slow
def test_the_console_session_is_what_comes_out(here: Path) -> None:
    (session,) = blocks("console")
    steps = [part.split("\n", 1) for part in session.split("$ ")[1:]]
    for command, wanted in steps:
        done = subprocess.run(command, shell=True, cwd=here, env=environment(), capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, wanted), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "prints"),
    [
        (blocks("python")[0], "merged.safetensors"),
        (blocks("python")[1] + "print(type(merged), merged['visual.proj'].dtype)", "<class 'dict'> torch.float16"),
    ],
)
def test_the_python_sessions_run(here: Path, script: str, prints: str) -> None:
    done = subprocess.run([sys.executable, "-c", script], cwd=here, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert prints in done.stdout
    assert "Warning" not in done.stderr


def test_state_dicts_take_four_lines_and_no_file() -> None:
    files, memory = blocks("python")
    assert len([line for line in memory.splitlines() if line]) == 4
    assert "output" in files
    assert "output" not in memory


@pytest.mark.slow
def test_five_folders_of_language_models_become_one(here: Path) -> None:
    from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, dtype="bfloat16",
    )  # fmt: skip
    for name in ("base", "code", "maths", "chat", "medicine", "law"):
        Qwen2ForCausalLM(config).bfloat16().save_pretrained(here / name)
    (block,) = [block for block in blocks("bash") if "hf download" in block]
    _, *commands = block.splitlines()
    assert len(commands) == 2
    for command in commands:
        done = subprocess.run(command, shell=True, cwd=here, env=environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    merged = AutoModelForCausalLM.from_pretrained(here / "merged")
    assert all(value.isfinite().all() for value in merged.parameters())


def test_every_linked_page_is_there() -> None:
    linked = re.findall(r"\]\(((?:docs|examples)/[^)#]+|[A-Z]+\.md)\)", README)
    assert linked
    assert [name for name in linked if not (ROOT / name).exists()] == []


MIGRATION = (ROOT / "docs" / "migration.md").read_text(encoding="utf-8")
PLACES = {"D": "0.5", "P": "0.5", "GAMMA": "0.01", "T": "0.3", "a=FIRST": "", "b=SECOND": ""}


@pytest.mark.parametrize("given", sorted(set(re.findall(r"`(--method [^`]+)`", MIGRATION))))
def test_the_options_for_users_of_other_tools_are_understood(given: str, here: Path) -> None:
    words = [PLACES.get(word, word) for word in given.split()]
    tasks = ("arrows", "colours", "counts")[: find(words[1]).tasks[1]]
    files = [f"{here}/examples/tiny/{name}.safetensors" for name in ("base", *tasks)]
    output = here / "merged.safetensors"
    assert app.run(["merge", "--dry-run", "--quiet", *filter(None, words), *files, "-o", str(output)]) == 0
