"""What --max-memory counts: this run and what the process holds, not what it once held for another's work."""

import subprocess
import sys
from pathlib import Path

import pytest

from taskmerge.errors import NotEnough
from taskmerge.merging.costs import Budget

AFTER_ANOTHERS_WORK = """
import sys, torch, taskmerge
from taskmerge.numerics.memory import peak_memory
work = torch.ones(1_000_000_000, dtype=torch.uint8)
{let_go}
assert peak_memory() > 1e9
taskmerge.merge(sys.argv[1:], method="average", max_memory="1G", output="out.safetensors")
"""


@pytest.mark.parametrize(
    ("resident", "held", "peak", "refused"),
    [(500, 600, 5000, False), (500, 1001, 1001, True), (901, 0, 0, True), (900, 1000, 1000, False)],
)
def test_a_limit_counts_what_is_held_and_needed(resident: int, held: int, peak: int, refused: bool) -> None:
    allowed = Budget(1, 1000, resident, held, peak)
    if refused:
        with pytest.raises(NotEnough, match="this needs 0 MB, --max-memory allows 0 MB"):
            allowed.check("this", "w", 100)
    else:
        allowed.check("this", "w", 100)


@pytest.mark.parametrize(("let_go", "code"), [("del work", 0), ("", 1)])
def test_memory_given_back_before_does_not_count(tmp_path: Path, let_go: str, code: int) -> None:
    tiny = Path(__file__).parents[2] / "examples" / "tiny"
    inputs = [str(path) for path in sorted(tiny.glob("*.safetensors"))]
    script = AFTER_ANOTHERS_WORK.format(let_go=let_go)
    done = subprocess.run([sys.executable, "-c", script, *inputs], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, "NotEnough" in done.stderr) == (code, bool(code)), done.stderr
